package dispatcher_test

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

// Whatever is a user's or a policy's doing ends the job as it was reported, with one final event behind the worker's own.
func TestReportEnds(t *testing.T) {
	for _, ending := range []jobs.Ending{jobs.Exited, jobs.Signaled, jobs.TimeLimit, jobs.OutputLimit, jobs.VMExited, jobs.StartFailed, jobs.Canceled} {
		t.Run(string(ending), func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				a := r.worker("a")
				j := r.admit(spec())
				l := a.one()
				a.prints(l, 1, "one", "two", "three")
				if reply := a.send(l, jobs.Report{Events: 3, Result: jobs.Result{Ending: ending, Reason: "so", Worker: "a"}}); reply.Fenced {
					r.Error("fenced")
				}
				r.ended(j.ID, jobs.StateEnded, ending)
				if all := r.board.of(j.ID); len(all) != 4 || all[3].Type != jobs.EventResult || all[3].Tenant != "t" {
					r.Errorf("events %+v", all)
				}
				if got := r.job(j.ID); got.Result.Reason != "so" || got.Result.Attempt != 1 {
					r.Errorf("result %+v", got.Result)
				}
				if len(r.disk.out()) != 0 || len(r.board.buried(j.ID)) != 0 {
					r.Errorf("outbox %+v, buried %v", r.disk.out(), r.board.buried(j.ID))
				}
			})
		})
	}
}

// Only the current attempt's report counts, once; every other one is told so and changes nothing.
func TestReportFenced(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(spec())
		first := a.one()
		fenced := func(what string, l jobs.Lease) {
			r.Helper()
			before := *r.disk.rows()[j.ID]
			for _, ending := range []jobs.Ending{jobs.Exited, jobs.VMFailed} {
				if reply := a.report(l, ending); !reply.Fenced {
					r.Errorf("%s: not fenced as %s", what, ending)
				}
			}
			synctest.Wait()
			if diff := gocmp.Diff(before.Entry, r.disk.rows()[j.ID].Entry); diff != "" {
				r.Errorf("%s changed the ledger:\n%s", what, diff)
			}
		}
		with := func(l jobs.Lease, change func(h *jobs.Held)) jobs.Lease {
			change(&l.Held)
			return l
		}
		fenced("another epoch", with(first, func(h *jobs.Held) { h.Epoch++ }))
		fenced("a later attempt", with(first, func(h *jobs.Held) { h.Attempt++ }))
		fenced("an unknown job", with(first, func(h *jobs.Held) { h.Job = jobs.NewID() }))
		a.report(first, jobs.VMFailed)
		fenced("an attempt that was given back", first)
		var log bytes.Buffer
		late := jobs.Report{Held: first.Held, Worker: "a", Session: a.session, Result: jobs.Result{Ending: jobs.TimeLimit}}
		if _, err := r.Report(zerolog.New(&log).WithContext(r.Context()), late); err != nil {
			r.Fatal(err)
		}
		for _, want := range []string{j.ID, `"attempt":1`, `"worker":"a"`, string(jobs.TimeLimit)} {
			if !strings.Contains(log.String(), want) {
				r.Errorf("logged %q, which does not say %s", &log, want)
			}
		}
		second := a.one()
		if second.Attempt != 2 || second.Epoch <= first.Epoch {
			r.Errorf("the second attempt is %+v, the first %+v", second.Held, first.Held)
		}
		fenced("an earlier attempt", first)
		fenced("an earlier epoch", with(second, func(h *jobs.Held) { h.Epoch = first.Epoch }))
		if a.report(second, jobs.Exited).Fenced {
			r.Error("the current attempt is fenced")
		}
		fenced("a repeat", second)
		fenced("an attempt of a job that has ended", first)
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

// Of many reports of one attempt at once, one counts.
func TestReportAtOnce(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(spec())
		l := a.one()
		r.store.before(func(op string) error {
			time.Sleep(time.Second)
			return nil
		})
		var taken atomic.Int64
		var reports sync.WaitGroup
		for n := range 10 {
			reports.Go(func() {
				ending := jobs.Exited
				if n%2 == 0 {
					ending = jobs.VMFailed
				}
				if !a.report(l, ending).Fenced {
					taken.Add(1)
				}
			})
		}
		reports.Wait()
		if taken.Load() != 1 {
			r.Errorf("%d reports were taken", taken.Load())
		}
		r.store.before(nil)
		time.Sleep(5 * time.Second) // for the outbox
		if r.job(j.ID).State == jobs.StateQueued {
			a.report(a.one(), jobs.Exited)
		}
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

// Our own failures are tried again, after pauses that double, until the retries are used up; then the job is dead and buried, once.
func TestReportInfra(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(retries(3))
		for n := range 4 {
			start := time.Now()
			l := a.one()
			pause := time.Second << max(n-1, 0)
			if waited := time.Since(start); n > 0 && (waited < pause || waited > pause+pause/4+time.Millisecond) {
				r.Errorf("attempt %d after %v, want %v and a quarter at most", n+1, waited, pause)
			}
			if l.Attempt != n+1 {
				r.Errorf("attempt %d, want %d", l.Attempt, n+1)
			}
			a.prints(l, 1, "out")
			a.send(l, jobs.Report{Events: 1, Result: jobs.Result{Ending: jobs.AgentLost, Reason: fmt.Sprint("try ", n)}})
			synctest.Wait()
			if all := r.board.of(j.ID); n < 3 && (all[len(all)-1].State != jobs.StateQueued || !strings.Contains(all[len(all)-1].Reason, fmt.Sprint("agent_lost: try ", n))) {
				r.Errorf("after attempt %d viewers see %+v", n+1, all[len(all)-1])
			}
		}
		r.ended(j.ID, jobs.StateDead, jobs.AgentLost)
		if diff := gocmp.Diff([]string{"agent_lost: try 3"}, r.board.buried(j.ID)); diff != "" {
			r.Errorf("buried (-want +got):\n%s", diff)
		}
		if got := a.lease(1, time.Minute/2); len(got) != 0 {
			r.Errorf("a dead job runs: %+v", got)
		}
	})
}

// A retry that is due does not wait for one that is due later.
func TestReportInfraManyWait(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		slow := r.admit(retries(10))
		for range 5 { // its next pause is 16 s
			l := a.one()
			for l.Attempt < 5 && a.report(l, jobs.VMFailed).Fenced {
				r.Fatal("fenced")
			}
			if l.Attempt == 5 {
				fast := r.admit(spec())
				f := a.one()
				poll := a.ask(r.Context(), a.request(8, 20*time.Second))
				start := time.Now()
				a.report(f, jobs.VMFailed)
				a.report(l, jobs.VMFailed)
				if got := poll.leases(t); len(got) != 1 || got[0].Job != fast.ID || poll.at.Sub(start) > 2*time.Second {
					r.Errorf("leased %v after %v, want %s after 1 s", names(got), poll.at.Sub(start), fast.ID)
				}
			}
		}
		r.stands(slow.ID, jobs.StateQueued)
	})
}

// A retry goes to another worker where there is one.
func TestReportInfraElsewhere(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a, b := r.worker("a"), r.worker("b")
		j := r.admit(spec())
		a.report(a.lease(1, 0)[0], jobs.VMFailed)
		mine, theirs := a.ask(r.Context(), a.request(8, 10*time.Second)), b.ask(r.Context(), b.request(1, 10*time.Second))
		if diff := gocmp.Diff([]string{j.ID}, names(theirs.leases(t))); diff != "" {
			r.Errorf("the other's (-want +got):\n%s", diff)
		}
		if got := mine.leases(t); len(got) != 0 {
			r.Errorf("the same worker got %v", names(got))
		}
	})
}

// Where the others do not ask for it, a retry comes back to its last worker, after a while: those may all be busy for hours.
func TestReportInfraElsewhereForAWhile(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a, b := r.worker("a"), r.worker("b")
		j := r.admit(spec())
		a.report(a.one(), jobs.VMFailed)
		start := time.Now()
		var got []jobs.Lease
		for len(got) == 0 && time.Since(start) < time.Hour {
			a.beat()
			b.beat()
			got = a.lease(1, 2*time.Second)
		}
		if waited := time.Since(start); len(got) != 1 || got[0].Job != j.ID || waited < 31*time.Second || waited > 32*time.Second {
			r.Errorf("leased %v after %v, want it 30 s after its pause", names(got), waited)
		}
	})
}

// The ledger keeps jobs by when they ended: a worker whose clock is wrong does not have its results deleted.
func TestReportOfAWrongClock(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(spec())
		a.send(a.one(), jobs.Report{Result: jobs.Result{Ending: jobs.Exited, EndedAt: time.Unix(0, 0)}})
		time.Sleep(2 * time.Minute)
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
		if got := r.job(j.ID); got.EndedAt.Before(got.LeasedAt) {
			r.Errorf("ended at %v, leased at %v", got.EndedAt, got.LeasedAt)
		}
	})
}

// A result in words that this dispatcher does not know ends the attempt all the same: the worker would send it for ever.
func TestReportUnknownEnding(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(retries(0))
		if a.report(a.one(), "abducted").Fenced {
			r.Error("fenced")
		}
		r.ended(j.ID, jobs.StateDead, jobs.WorkerLost)
		if reason := r.job(j.ID).Result.Reason; !strings.Contains(reason, `"abducted"`) {
			r.Errorf("reason %q", reason)
		}
	})
}

// The ledger has the report and its answer was lost, on the way to us or to the worker, which sends it again. Nothing is doubled, and
// the job goes on.
func TestReportAnswerLost(t *testing.T) {
	for _, c := range []struct {
		name   string
		op     string
		ending jobs.Ending
		state  jobs.State
	}{
		{"end", "finish", jobs.Exited, jobs.StateEnded},
		{"another attempt", "requeue", jobs.VMFailed, jobs.StateQueued},
	} {
		t.Run(c.name, func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				a := r.worker("a")
				j := r.admit(spec())
				l := a.one()
				r.loseAnswer(c.op)
				_, err := a.Report(r.Context(), jobs.Report{Worker: "a", Session: a.session, Held: l.Held, Result: jobs.Result{Ending: c.ending}})
				r.wantCode("report", jobs.CodeUnavailable, err)
				if !a.report(l, jobs.TimeLimit).Fenced {
					r.Error("the repeat is not fenced")
				}
				r.stands(j.ID, c.state)
				if c.state == jobs.StateQueued {
					l = a.one()
					if l.Attempt != 2 || r.disk.rows()[j.ID].InfraLeft != 2 {
						r.Errorf("attempt %d, %d retries left", l.Attempt, r.disk.rows()[j.ID].InfraLeft)
					}
					a.report(l, jobs.Exited)
				}
				time.Sleep(time.Minute)
				r.ended(j.ID, jobs.StateEnded, jobs.Exited)
				a.beat()
				if got := a.lease(8, 10*time.Second); len(got) != 0 {
					r.Errorf("it runs again: %+v", got)
				}
			})
		})
	}
}

// While the ledger cannot be written, no report is taken and none is lost.
func TestReportLedgerFails(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(spec())
		l := a.one()
		r.store.before(func(string) error { return errDisk })
		for range 3 {
			_, err := a.Report(r.Context(), jobs.Report{Worker: "a", Held: l.Held, Result: jobs.Result{Ending: jobs.Exited}})
			r.wantCode("report", jobs.CodeUnavailable, err)
		}
		r.store.before(nil)
		if len(r.board.of(j.ID)) != 0 {
			r.Errorf("viewers see %+v", r.board.of(j.ID))
		}
		if a.report(l, jobs.Exited).Fenced {
			r.Error("fenced")
		}
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

// A worker that miscounts its events by far costs viewers nothing: the end comes after what is there.
func TestReportOfEventsThatAreNone(t *testing.T) {
	for _, events := range []int64{-1, -2, math.MinInt64, math.MaxInt64 - 1, math.MaxInt64} {
		t.Run(fmt.Sprint(events), func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				a := r.worker("a")
				j := r.admit(spec())
				l := a.one()
				a.prints(l, 1, "x", "y")
				a.send(l, jobs.Report{Result: jobs.Result{Ending: jobs.Exited}, Events: events})
				r.ended(j.ID, jobs.StateEnded, jobs.Exited)
			})
		})
	}
}

// What nobody can read of a result goes nowhere: its attempt counts as one whose worker is lost.
func TestReportThatNobodyCanRead(t *testing.T) {
	ref := func(sum string) []jobs.ArtifactResult {
		return []jobs.ArtifactResult{{Path: "a", Object: &jobs.ObjectRef{Name: "n", SHA256: sum}}}
	}
	for name, result := range map[string]jobs.Result{
		"no ending":            {},
		"an ending":            {Ending: "melted"},
		"a step's ending":      {Ending: jobs.Exited, Steps: []jobs.StepResult{{Ending: jobs.Exited}, {Ending: "melted"}}},
		"an artifact's digest": {Ending: jobs.Exited, Artifacts: ref("abc")},
	} {
		t.Run(name, func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				a := r.worker("a")
				j := r.admit(retries(0))
				a.send(a.one(), jobs.Report{Result: result})
				r.ended(j.ID, jobs.StateDead, jobs.WorkerLost)
				if got := r.job(j.ID).Result; !strings.HasPrefix(got.Reason, "the worker reported ") || got.Steps != nil || got.Artifacts != nil {
					r.Errorf("result %+v", got)
				}
			})
		})
	}
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(spec())
		a.send(a.one(), jobs.Report{Result: jobs.Result{Ending: jobs.Exited, Steps: []jobs.StepResult{{Ending: jobs.Exited}}, Artifacts: ref(strings.Repeat("0a", 32))}})
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}
