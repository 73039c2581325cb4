package dispatcher_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

// The broker has the final event, and its dispatcher died, or the ledger failed, before that was noted. However long it takes until it is
// published again, the broker having forgotten that it knows it, viewers see one end.
func TestOutboxAgainAfterLong(t *testing.T) {
	for _, pause := range []time.Duration{time.Second, time.Hour} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("after %v, restart %v", pause, restart), func(t *testing.T) {
				bubble(t, dispatcher.Config{}, func(r *rig) {
					a := r.worker("a")
					fail := func(op string) error {
						if op == "published" {
							return errDisk
						}
						return nil
					}
					r.store.before(fail)
					j, dead := r.admit(spec()), r.admit(retries(0))
					for _, l := range a.lease(2, 0) {
						if l.Job == j.ID {
							a.prints(l, 1, "out")
							a.send(l, jobs.Report{Events: 1, Result: jobs.Result{Ending: jobs.Exited}})
						} else {
							a.report(l, jobs.VMFailed)
						}
					}
					r.ended(j.ID, jobs.StateEnded, jobs.Exited)
					if restart {
						r.kill()
						time.Sleep(pause)
						r.start()
					} else {
						r.board.before(func(string) error { return errDisk })
						time.Sleep(pause)
						r.board.before(nil)
						r.store.before(nil)
						time.Sleep(time.Second)
					}
					r.ended(j.ID, jobs.StateEnded, jobs.Exited)
					r.ended(dead.ID, jobs.StateDead, jobs.VMFailed)
					if got := r.board.buried(dead.ID); len(got) != 1 {
						r.Errorf("buried %q, want once", got)
					}
					if len(r.disk.out) != 0 {
						r.Errorf("outbox %+v", r.disk.out)
					}
				})
			})
		}
	}
}

// What was committed while the broker was away comes out when it is back, in order, however much it is.
func TestOutboxOrder(t *testing.T) {
	bubble(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		r.board.before(func(string) error { return errDisk })
		var want []string
		for range 600 {
			j := r.admit(spec())
			a.report(a.one(), jobs.Exited)
			want = append(want, j.ID)
		}
		r.board.before(nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if diff := gocmp.Diff(want, r.board.order); diff != "" {
			r.Errorf("published (-want +got):\n%s", diff)
		}
		for _, id := range want {
			r.ended(id, jobs.StateEnded, jobs.Exited)
		}
	})
}

// Another attempt begins only when viewers can see that the last one has ended: they see the attempts in order.
func TestOutboxBeforeTheNextAttempt(t *testing.T) {
	bubble(t, dispatcher.Config{}, func(r *rig) {
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
		fresh := r.admit(&jobs.Spec{Image: "base", Steps: []jobs.Step{{Cmd: "true"}}})
		a.report(a.one(), jobs.Exited) // one that was not tried before waits for nothing
		r.stands(fresh.ID, jobs.StateEnded)
		for range 5 {
			if reply, err := a.Lease(r.Context(), a.request(1, 2*time.Second)); len(reply.Leases) > 0 {
				r.Errorf("leased %+v, %v", reply.Leases, err)
			}
			a.beat()
		}
		r.board.before(nil)
		l = a.one()
		if l.Job != j.ID || l.Attempt != 2 {
			r.Errorf("leased %+v, want the second attempt", l.Held)
		}
		a.prints(l, 1, "out")
		time.Sleep(time.Minute) // the worker is lost
		l = a.one()
		a.report(l, jobs.Exited)
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

// An event that no message can carry does not hold up the others'.
func TestOutboxTooLarge(t *testing.T) {
	bubble(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		large, other := r.admit(spec()), r.admit(spec())
		r.board.large = map[string]bool{large.ID: true}
		r.board.before(func(op string) error { // so that both ends stand in the outbox together
			if op == "publish" {
				return errDisk
			}
			return nil
		})
		for _, l := range a.lease(2, 0) {
			a.report(l, jobs.Exited)
		}
		r.board.before(nil)
		time.Sleep(time.Second)
		r.ended(other.ID, jobs.StateEnded, jobs.Exited)
		if j := r.job(large.ID); j.State != jobs.StateEnded || len(r.disk.out) != 0 {
			r.Errorf("the large one is %s, the outbox holds %+v", j.State, r.disk.out)
		}
	})
}
