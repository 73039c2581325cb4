package dispatcher_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

func TestCancelQueued(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(spec())
		for what, id := range map[string]string{"an unknown job": jobs.NewID(), "nonsense": "x"} {
			_, err := r.Cancel(r.Context(), "t", id)
			r.wantCode(what, jobs.CodeNotFound, err)
		}
		_, err := r.Cancel(r.Context(), "u", j.ID)
		r.wantCode("another tenant's job", jobs.CodeNotFound, err)
		_, err = r.Cancel(r.Context(), "a.b", j.ID)
		r.wantCode("no tenant", jobs.CodeInvalid, err)
		r.stands(j.ID, jobs.StateQueued)
		for _, want := range []jobs.State{jobs.StateQueued, jobs.StateEnded} {
			if got, err := r.Cancel(r.Context(), "t", j.ID); got != want || err != nil {
				r.Errorf("cancel: %s, %v, want %s", got, err, want)
			}
			r.ended(j.ID, jobs.StateEnded, jobs.Canceled)
		}
		if got := a.lease(1, time.Second); len(got) != 0 {
			r.Errorf("it runs: %+v", got)
		}
	})
}

// A cancel reaches a running job with its worker's heartbeat; how the job ends then is its own.
func TestCancelRunning(t *testing.T) {
	for _, c := range []struct {
		name              string
		reported, becomes jobs.Ending
	}{
		{"canceled", jobs.Canceled, jobs.Canceled},
		{"ended before it heard", jobs.Exited, jobs.Exited},
		{"failed by us", jobs.VMFailed, jobs.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				a := r.worker("a")
				j := r.admit(spec())
				l := a.one()
				if got := a.beat(l.Held).Cancel; len(got) != 0 {
					r.Errorf("cancel %+v", got)
				}
				if got, err := r.Cancel(r.Context(), "t", j.ID); got != jobs.StateLeased || err != nil {
					r.Errorf("cancel: %s, %v", got, err)
				}
				for range 2 { // the heartbeat's answer may be lost
					if diff := gocmp.Diff([]jobs.Held{l.Held}, a.beat(l.Held).Cancel); diff != "" {
						r.Errorf("cancel (-want +got):\n%s", diff)
					}
				}
				r.restart()
				if diff := gocmp.Diff([]jobs.Held{l.Held}, a.beat(l.Held).Cancel); diff != "" {
					r.Errorf("cancel after a restart (-want +got):\n%s", diff)
				}
				a.report(l, c.reported)
				r.ended(j.ID, jobs.StateEnded, c.becomes)
			})
		})
	}
}

// A canceled job whose worker is lost is not tried again.
func TestCancelThenLost(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(spec())
		a.one()
		if _, err := r.Cancel(r.Context(), "t", j.ID); err != nil {
			r.Fatal(err)
		}
		time.Sleep(time.Minute)
		r.ended(j.ID, jobs.StateEnded, jobs.Canceled)
	})
}

// A cancel may fall between any two steps of another transition. In each case the job ends, and as canceled where nothing ended it first.
func TestCancelMeanwhile(t *testing.T) {
	for _, c := range []struct {
		name string
		op   string // the ledger's operation, before or after which the cancel comes
		run  func(r *rig, a *hand, id string)
		// endings that may come of it
		endings []jobs.Ending
	}{
		{"admitted", "admit", func(*rig, *hand, string) {}, []jobs.Ending{jobs.Canceled}},
		{"leased", "lease", func(r *rig, a *hand, _ string) {
			for _, l := range a.lease(1, time.Second) {
				a.beat(l.Held)
				a.report(l, jobs.Canceled)
			}
		}, []jobs.Ending{jobs.Canceled}},
		{"given back", "requeue", func(r *rig, a *hand, _ string) { a.report(a.one(), jobs.VMFailed) }, []jobs.Ending{jobs.Canceled}},
		{"ended", "finish", func(r *rig, a *hand, _ string) { a.report(a.one(), jobs.Exited) }, []jobs.Ending{jobs.Exited}},
	} {
		for _, when := range []string{"before", "after"} {
			t.Run(when+" it is "+c.name, func(t *testing.T) {
				rigged(t, dispatcher.Config{}, func(r *rig) {
					a := r.worker("a")
					s := spec()
					s.ID = jobs.NewID()
					var once atomic.Bool
					hook := func(op string) error {
						if op == c.op && once.CompareAndSwap(false, true) {
							if _, err := r.Cancel(r.Context(), "t", s.ID); code(err) != "" && code(err) != jobs.CodeNotFound {
								r.Error("cancel:", err)
							}
						}
						return nil
					}
					if when == "before" {
						r.store.before(hook)
					} else {
						r.store.after(hook)
					}
					r.admit(s)
					c.run(r, a, s.ID)
					if c.op == "admit" && when == "before" { // there was no such job yet
						a.report(a.one(), jobs.Exited)
						r.ended(s.ID, jobs.StateEnded, jobs.Exited)
						return
					}
					for range 5 {
						if got := a.lease(1, 2*time.Second); len(got) > 0 {
							r.Errorf("a canceled job runs: %+v", got)
						}
						a.beat()
					}
					j := r.job(s.ID)
					if j.Result == nil || !slices.Contains(c.endings, j.Result.Ending) {
						r.Fatalf("job is %s with the result %+v, want one of %v", j.State, j.Result, c.endings)
					}
					r.ended(s.ID, jobs.StateEnded, j.Result.Ending)
				})
			})
		}
	}
}

// The ledger fails in the midst of a cancel: the job ends when it is there again, as canceled, and does not run.
func TestCancelFailsHalfway(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart ", restart), func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				a := r.worker("a")
				j := r.admit(spec())
				r.store.before(func(op string) error {
					if op == "end queued" {
						return errDisk
					}
					return nil
				})
				if _, err := r.Cancel(r.Context(), "t", j.ID); err != nil {
					r.Error("cancel:", err)
				}
				time.Sleep(3 * time.Second)
				r.stands(j.ID, jobs.StateQueued)
				r.store.before(nil)
				if restart {
					r.restart()
					a.beat()
				}
				if got := a.lease(1, 5*time.Second); len(got) > 0 {
					r.Errorf("a canceled job runs: %+v", got)
				}
				r.ended(j.ID, jobs.StateEnded, jobs.Canceled)
			})
		})
	}
}

// The event that gave a job back to the queue is not out yet when the job is canceled: the final event comes after it, and takes no
// number that it has.
func TestCancelBetweenAttempts(t *testing.T) {
	for _, restart := range []bool{false, true} {
		rigged(t, dispatcher.Config{RetryBase: time.Minute}, func(r *rig) {
			a := r.worker("a")
			j := r.admit(spec())
			l := a.one()
			a.prints(l, 1, "out")
			r.board.before(func(op string) error {
				if op == "publish" {
					return errDisk
				}
				return nil
			})
			a.send(l, jobs.Report{Events: 1, Result: jobs.Result{Ending: jobs.VMFailed}})
			if restart {
				r.restart()
			}
			if _, err := r.Cancel(r.Context(), "t", j.ID); err != nil {
				r.Error("cancel:", err)
			}
			time.Sleep(5 * time.Second)
			r.board.before(nil)
			time.Sleep(5 * time.Second)
			r.ended(j.ID, jobs.StateEnded, jobs.Canceled)
			if all := r.board.of(j.ID); len(all) != 3 {
				r.Errorf("events %+v", all)
			}
		})
	}
}
