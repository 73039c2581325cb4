package dispatcher_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/bubble"
)

// Running jobs are taken up by their workers' next heartbeats, queued ones go to whoever asks, ended ones stay as they are.
func TestRestart(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		ended := r.admit(spec())
		a.report(a.one(), jobs.Exited)
		runs := r.admit(spec())
		l := a.one()
		h := l.Held
		h.Running = true
		a.beat(h)
		waits := r.admit(spec())
		synctest.Wait()
		session := a.session
		r.restart()

		r.stands(runs.ID, jobs.StateRunning)
		r.ended(ended.ID, jobs.StateEnded, jobs.Exited)
		if diff := gocmp.Diff(jobs.BeatReply{Session: session, TTLMS: 15_000, Contract: jobs.Contract}, a.beat(h)); diff != "" {
			r.Errorf("answer to the worker (-want +got):\n%s", diff)
		}
		next := a.lease(1, 0)
		if diff := gocmp.Diff([]string{waits.ID}, names(next)); diff != "" {
			r.Fatalf("leased (-want +got):\n%s", diff)
		}
		if next[0].Epoch <= l.Epoch {
			r.Errorf("epoch %d after %d", next[0].Epoch, l.Epoch)
		}
		a.live(time.Minute, h, next[0].Held)
		if a.report(l, jobs.Exited).Fenced {
			r.Error("the running job's report is fenced")
		}
		a.report(next[0], jobs.Exited)
		r.ended(runs.ID, jobs.StateEnded, jobs.Exited)
		r.ended(waits.ID, jobs.StateEnded, jobs.Exited)
	})
}

// However long the dispatcher was away, a worker has a whole lease to be heard of again; then its attempts are given to others.
func TestRestartGivesWorkersTime(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a, gone := r.worker("a"), r.worker("gone")
		mine, theirs := r.admit(spec()), r.admit(spec())
		l := a.lease(1, 0)[0]
		lost := gone.lease(1, 0)[0]
		if l.Job != mine.ID {
			mine, theirs = theirs, mine
		}
		r.kill()
		time.Sleep(time.Hour)
		r.start()
		time.Sleep(18 * time.Second)
		r.stands(mine.ID, jobs.StateLeased)
		r.stands(theirs.ID, jobs.StateLeased)
		a.live(5*time.Second, l.Held)
		r.stands(mine.ID, jobs.StateLeased)
		r.stands(theirs.ID, jobs.StateQueued)
		if !gone.report(lost, jobs.Exited).Fenced {
			r.Error("the lost attempt's report is not fenced")
		}
		a.report(l, jobs.Exited)
		a.report(a.one(), jobs.Exited)
		r.ended(mine.ID, jobs.StateEnded, jobs.Exited)
		r.ended(theirs.ID, jobs.StateEnded, jobs.Exited)
	})
}

// A worker lives that the ledger has forgotten; what it leases then is its own all the same when the dispatcher restarts.
func TestRestartOfAForgottenWorkersDispatcher(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		if ok, err := r.store.Remove(r.Context(), "a"); err != nil || !ok {
			r.Fatal("remove:", ok, err)
		}
		if _, kept := r.disk.sessions()["a"]; kept {
			r.Fatal("the ledger still has the session: this test shows nothing")
		}
		j := r.admit(spec())
		l := a.one()
		r.restart()
		time.Sleep(2 * time.Second)
		session := a.session
		a.live(time.Minute, l.Held)
		if a.session != session || a.report(l, jobs.Exited).Fenced {
			r.Errorf("session %d became %d", session, a.session)
		}
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

// A worker that lives on reports to a dispatcher that it has not beaten to yet: the attempt is its own all the same.
func TestRestartThenReport(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(spec())
		l := a.one()
		r.restart()
		if a.report(l, jobs.Exited).Fenced {
			r.Error("fenced")
		}
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
		r.restart()
		if !a.report(l, jobs.Exited).Fenced {
			r.Error("the repeat is not fenced")
		}
	})
}

// The pause before a retry, and what is left of them, outlive the dispatcher.
func TestRestartKeepsRetries(t *testing.T) {
	rigged(t, dispatcher.Config{RetryBase: 20 * time.Second}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(retries(1))
		a.report(a.one(), jobs.VMFailed)
		r.restart()
		start := time.Now()
		l := a.one()
		if waited := time.Since(start); waited < 19*time.Second || l.Attempt != 2 {
			r.Errorf("attempt %d after %v, want the second after 20 s", l.Attempt, waited)
		}
		a.report(l, jobs.VMFailed)
		r.ended(j.ID, jobs.StateDead, jobs.VMFailed)
	})
}

// A ledger that cannot be read ends Run; nobody is answered as if it were empty.
func TestRunLedgerFails(t *testing.T) {
	for _, op := range []string{"open", "workers"} {
		t.Run(op, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				store := &memory{disk: newDisk(t)}
				defer store.Close()
				store.before(func(o string) error {
					if o == op {
						return errDisk
					}
					return nil
				})
				d, err := dispatcher.New(dispatcher.Config{Store: store, Events: newBoard(t)})
				if err != nil {
					t.Fatal(err)
				}
				if err := d.Run(t.Context()); err == nil {
					t.Error("Run returned no error")
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, _, err := d.Admit(ctx, "t", spec()); code(err) != jobs.CodeUnavailable {
					t.Errorf("admit: %v", err)
				}
			})
		})
	}
}
