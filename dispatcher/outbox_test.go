package dispatcher_test

import (
	"fmt"
	"slices"
	"sync/atomic"
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
				rigged(t, dispatcher.Config{}, func(r *rig) {
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
					if len(r.disk.out()) != 0 {
						r.Errorf("outbox %+v", r.disk.out())
					}
				})
			})
		}
	}
}

// What was committed while the broker was away comes out when it is back, in order, however much it is.
func TestOutboxOrder(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
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
	rigged(t, dispatcher.Config{}, func(r *rig) {
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
	rigged(t, dispatcher.Config{}, func(r *rig) {
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
		if j := r.job(large.ID); j.State != jobs.StateEnded || len(r.disk.out()) != 0 {
			r.Errorf("the large one is %s, the outbox holds %+v", j.State, r.disk.out())
		}
	})
}

// silenced are many jobs that a worker has lost, of which the board neither takes an attempt's end nor tells; more than are read at once.
func (r *rig) silenced(n int) (ids []string) {
	r.Helper()
	lost := r.worker("lost")
	for range n {
		ids = append(ids, r.admit(spec()).ID)
	}
	q := lost.request(n, 0)
	q.Free = jobs.Resources{VCPUs: n, MemoryMiB: n * size.MemoryMiB}
	reply, err := r.Lease(r.Context(), q)
	if err != nil || len(reply.Leases) != n {
		r.Fatalf("leased %d of %d, %v", len(reply.Leases), n, err)
	}
	r.board.silence(ids...)
	return ids
}

// However many events the broker does not take, all others go out, batches' ends too, and it is not asked in a busy loop.
func TestOutboxBehindMany(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		mute := r.silenced(600)
		var asked atomic.Int64
		r.store.before(func(op string) error {
			if op == "outbox" {
				asked.Add(1)
			}
			return nil
		})
		time.Sleep(25 * time.Second) // the worker is lost
		r.stands(mute[0], jobs.StateQueued)
		a := r.worker("a")
		for _, id := range mute { // so that they are not given again, which is another matter
			if _, err := r.Cancel(r.Context(), "t", id); err != nil {
				r.Fatal(err)
			}
		}
		for range 3 {
			j := r.admit(spec())
			l := a.one()
			a.report(l, jobs.Exited)
			time.Sleep(time.Second)
			r.ended(j.ID, jobs.StateEnded, jobs.Exited)
		}
		reply := r.batch(jobs.BatchRequest{Defaults: common, Jobs: bodies(`{}`)})
		a.report(a.one(), jobs.Exited)
		time.Sleep(time.Second)
		synctest.Wait()
		if n := r.board.batchEnds(reply.Batch.ID); n != 1 {
			r.Errorf("the end of a batch of others was told %d times", n)
		}
		time.Sleep(10 * time.Minute) // the pauses are as long as they get
		before := asked.Load()
		time.Sleep(time.Minute)
		if n := asked.Load() - before; n > 4*600 {
			r.Errorf("the outbox was read %d times in a minute in which 600 jobs' events were tried", n)
		}
		for _, id := range mute {
			if all := r.board.of(id); len(all) > 0 {
				r.Fatalf("the board is silent, and has %+v", all)
			}
		}
		r.board.silence()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		for _, id := range mute {
			r.ended(id, jobs.StateEnded, jobs.Canceled)
		}
		if out := r.disk.out(); len(out) != 0 {
			r.Errorf("the outbox has %d events left", len(out))
		}
	})
}

// An attempt's end that the broker is slow to take holds up nobody: not other jobs' events, and not how far batches are.
func TestOutboxBesideTheSlow(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.silenced(40)
		a := r.worker("a")
		reply := r.batch(jobs.BatchRequest{Defaults: common, Jobs: bodies(`{}`, `{}`)})
		held := a.lease(2, 0)
		a.live(19*time.Second, held[0].Held, held[1].Held)
		for !slices.ContainsFunc(r.disk.out(), func(string) bool { return true }) { // the lost ones are being closed
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond)
		a.report(held[0], jobs.Exited)
		time.Sleep(2 * 250 * time.Millisecond)
		r.ended(held[0].Job, jobs.StateEnded, jobs.Exited)
		if n := r.board.told(reply.Batch.ID); n != 1 {
			r.Errorf("viewers were told that %d jobs of the batch have ended, want 1", n)
		}
		a.report(held[1], jobs.Exited)
		time.Sleep(2 * 250 * time.Millisecond)
		r.ended(held[1].Job, jobs.StateEnded, jobs.Exited)
		if n := r.board.batchEnds(reply.Batch.ID); n != 1 {
			r.Errorf("the end of the batch was told %d times", n)
		}
	})
}

// The end of a batch comes after its jobs', however late those come.
func TestOutboxBatchAfterItsJobs(t *testing.T) {
	for name, restart := range map[string]bool{"as it is": false, "over a restart": true} {
		t.Run(name, func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				a := r.worker("a")
				reply := r.batch(jobs.BatchRequest{Defaults: common, Jobs: bodies(`{"infra_retries":0}`, `{"infra_retries":0}`)})
				held := a.lease(2, 0)
				r.board.silence(held[0].Job)
				a.report(held[1], jobs.Exited)
				time.Sleep(30 * time.Second) // the worker is lost
				r.stands(held[0].Job, jobs.StateDead)
				if restart {
					r.restart()
					time.Sleep(10 * time.Second)
				}
				if n := r.board.batchEnds(reply.Batch.ID); n != 0 {
					r.Errorf("the end of the batch was told %d times before its last job's", n)
				}
				r.board.silence()
				time.Sleep(time.Minute)
				r.ended(held[0].Job, jobs.StateDead, jobs.WorkerLost)
				if n := r.board.batchEnds(reply.Batch.ID); n != 1 {
					r.Errorf("the end of the batch was told %d times", n)
				}
			})
		})
	}
}

// An event that the broker refuses again and again, or about which it does not answer, holds up its own job's only.
func TestOutboxBesideTheRefused(t *testing.T) {
	for name, stop := range map[string]func(b *board, ids ...string){"refused": (*board).refuses, "silent": (*board).silence} {
		t.Run(name, func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				a := r.worker("a")
				r.store.before(func(op string) error { // so that nobody is sure of what was published
					if op == "published" {
						return errDisk
					}
					return nil
				})
				r.board.before(func(op string) error {
					if op == "publish" {
						return errDisk
					}
					return nil
				})
				var ids []string
				for range 8 {
					ids = append(ids, r.admit(spec()).ID)
				}
				for _, l := range a.lease(8, 0) {
					a.report(l, jobs.Exited)
				}
				time.Sleep(time.Second)
				r.kill()
				r.board.before(nil)
				stop(r.board, ids[:6]...)
				r.start()
				time.Sleep(30 * time.Second)
				for _, id := range ids[6:] {
					r.ended(id, jobs.StateEnded, jobs.Exited)
				}
				a = r.worker("a")
				late := r.admit(spec())
				a.report(a.one(), jobs.Exited)
				time.Sleep(time.Second)
				r.ended(late.ID, jobs.StateEnded, jobs.Exited)
				stop(r.board)
				time.Sleep(2 * time.Minute)
				for _, id := range ids {
					r.ended(id, jobs.StateEnded, jobs.Exited)
				}
				if out := r.disk.out(); len(out) != 0 {
					r.Errorf("the outbox has %d events left", len(out))
				}
			})
		})
	}
}
