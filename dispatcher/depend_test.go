package dispatcher_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

func after(ids ...string) *jobs.Spec {
	s := spec()
	s.DependsOn = ids
	return s
}

// ok reports that the program has ended with 0.
func (h *hand) ok(l jobs.Lease) {
	h.Helper()
	code := 0
	h.send(l, jobs.Report{Result: jobs.Result{Ending: jobs.Exited, ExitCode: &code}})
}

// idle checks that no job is given.
func (h *hand) idle(what string) {
	h.Helper()
	if got := h.lease(8, 100*time.Millisecond); len(got) != 0 {
		h.Fatalf("%s: given %v", what, names(got))
	}
}

// A pipeline runs in its order, whatever is started anew in between.
func TestDependsOn(t *testing.T) {
	for name, between := range map[string]func(r *rig){"as it is": func(*rig) {}, "over restarts": func(r *rig) { r.restart() }} {
		t.Run(name, func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				a := r.worker("a")
				build := r.admit(spec())
				test, lint := r.admit(after(build.ID)), r.admit(after(build.ID))
				deploy := r.admit(after(test.ID, lint.ID))
				l := a.one()
				if l.Job != build.ID {
					r.Fatalf("given %s first", l.Job)
				}
				a.idle("the others wait")
				a.ok(l)
				between(r)
				a = r.worker("a")
				one, two := a.one(), a.one()
				if got := map[string]bool{one.Job: true, two.Job: true}; !got[test.ID] || !got[lint.ID] {
					r.Fatalf("given %v, want %s and %s", got, test.ID, lint.ID)
				}
				a.ok(one)
				a.idle("one of two has ended")
				between(r)
				a = r.worker("a")
				a.beat(two.Held)
				a.ok(two)
				if l := a.one(); l.Job != deploy.ID {
					r.Errorf("given %s last", l.Job)
				}
			})
		})
	}
}

// Where a job ends otherwise than well, so do all behind it.
func TestDependencyFailed(t *testing.T) {
	for name, end := range map[string]func(a *hand, l jobs.Lease){
		"exit 1": func(a *hand, l jobs.Lease) {
			code := 1
			a.send(l, jobs.Report{Result: jobs.Result{Ending: jobs.Exited, ExitCode: &code}})
		},
		"a signal": func(a *hand, l jobs.Lease) { a.report(l, jobs.Signaled) },
		"dead": func(a *hand, l jobs.Lease) {
			a.report(l, jobs.HostResources)
			for range 3 {
				a.report(a.one(), jobs.HostResources)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				a := r.worker("a")
				first := r.admit(spec())
				second := r.admit(after(first.ID))
				third := r.admit(after(second.ID))
				end(a, a.one())
				synctest.Wait()
				r.ended(second.ID, jobs.StateEnded, jobs.DependencyFailed)
				r.ended(third.ID, jobs.StateEnded, jobs.DependencyFailed)
				late := r.admit(after(first.ID)) // what has failed already is no other case
				r.ended(late.ID, jobs.StateEnded, jobs.DependencyFailed)
			})
		})
	}
}

func TestDependsOnWhatIsNotThere(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		j := r.admit(spec())
		for what, s := range map[string]*jobs.Spec{"an unknown job": after(jobs.NewID()), "one of two": after(j.ID, jobs.NewID())} {
			_, _, err := r.Admit(r.Context(), "t", s)
			r.wantCode(what, jobs.CodeInvalid, err)
		}
		_, _, err := r.Admit(r.Context(), "u", after(j.ID))
		r.wantCode("another tenant's job", jobs.CodeInvalid, err)
	})
}

// The wait for others is no wait in the queue; a cancel ends it.
func TestDependsOnForLong(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		first := r.admit(spec())
		s := after(first.ID)
		s.QueueTTLMS = 60_000
		second, third := r.admit(s), r.admit(after(first.ID))
		l := a.one()
		a.live(10*time.Minute, l.Held)
		r.stands(second.ID, jobs.StateQueued)
		if _, err := r.Cancel(r.Context(), "t", third.ID); err != nil {
			r.Fatal(err)
		}
		r.ended(third.ID, jobs.StateEnded, jobs.Canceled)
		a.ok(l)
		a.drain() // now it can run, and nobody takes it
		time.Sleep(50 * time.Second)
		r.stands(second.ID, jobs.StateQueued)
		time.Sleep(20 * time.Second)
		r.ended(second.ID, jobs.StateEnded, jobs.Expired)
	})
}

// A job with a time of its own is not given before it, and its queue TTL counts from then.
func TestRunAt(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		s := spec()
		s.RunAt, s.QueueTTLMS = time.Now().Add(time.Hour), 60_000
		j, expiring := r.admit(s), r.admit(s)
		if !r.job(j.ID).RunAt.Equal(s.RunAt) {
			r.Errorf("the record says %v", r.job(j.ID).RunAt)
		}
		a.live(30 * time.Minute)
		a.idle("half an hour before")
		r.restart()
		a = r.worker("a")
		for time.Until(s.RunAt) > 0 {
			a.beat()
			if got := a.lease(1, 10*time.Second); len(got) > 0 {
				if early := time.Until(s.RunAt); early > 0 {
					r.Fatalf("given %v before its time", early)
				}
				r.stands(got[0].Job, jobs.StateLeased)
				if got[0].Job != j.ID {
					expiring = j
				}
				break
			}
		}
		time.Sleep(61 * time.Second)
		r.ended(expiring.ID, jobs.StateEnded, jobs.Expired)
	})
}

// Where the end of a job that can never run fails, it is tried again.
func TestDependencyEndFails(t *testing.T) {
	for _, op := range []string{"end queued"} {
		t.Run(op, func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				a := r.worker("a")
				first := r.admit(spec())
				second := r.admit(after(first.ID))
				l := a.one()
				var failed atomic.Int32
				r.store.before(func(did string) error {
					if did == op && failed.Add(1) <= 3 {
						return errDisk
					}
					return nil
				})
				a.report(l, jobs.Signaled)
				time.Sleep(10 * time.Second)
				if failed.Load() < 4 {
					t.Errorf("it was tried %d times", failed.Load())
				}
				r.ended(second.ID, jobs.StateEnded, jobs.DependencyFailed)
			})
		})
	}
}

// A job that depends on many is asked about each of them a few times, not about all of them whenever one ends; so it goes on, or does not, the
// more quickly.
func TestDependsOnMany(t *testing.T) {
	for name, restart := range map[string]bool{"as it is": false, "over a restart": true} {
		t.Run(name, func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				a := r.worker("a")
				var ids []string
				for range jobs.MaxDependsOn {
					ids = append(ids, r.admit(spec()).ID)
				}
				last, half := r.admit(after(ids...)), r.admit(after(ids[:32]...))
				bad := r.admit(spec())
				doomed := r.admit(after(append([]string{bad.ID}, ids[1:]...)...))
				r.store.asked.Store(0)
				for n := range ids {
					if restart && n == 40 {
						r.restart()
						a = r.worker("a")
					}
					r.stands(last.ID, jobs.StateQueued)
					a.ok(a.one())
				}
				synctest.Wait()
				given := map[string]bool{}
				for range 3 {
					l := a.one()
					given[l.Job] = true
					if l.Job == bad.ID {
						a.report(l, jobs.Signaled)
					} else {
						a.ok(l)
					}
				}
				if !given[last.ID] || !given[half.ID] || !given[bad.ID] {
					r.Errorf("given %v, want %s, %s and %s", given, last.ID, half.ID, bad.ID)
				}
				r.ended(doomed.ID, jobs.StateEnded, jobs.DependencyFailed)
				if n := r.store.asked.Load(); n > 4*3*jobs.MaxDependsOn {
					r.Errorf("%d outcomes were asked for, for three jobs that depend on %d at most", n, jobs.MaxDependsOn)
				}
			})
		})
	}
}
