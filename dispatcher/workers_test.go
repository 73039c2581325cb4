package dispatcher_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

func TestBeat(t *testing.T) {
	rigged(t, dispatcher.Config{LeaseTTL: 9 * time.Second}, func(r *rig) {
		a, b := r.worker("a"), r.worker("b")
		if a.session == b.session || a.session == 0 || b.session == 0 {
			r.Errorf("sessions %d and %d", a.session, b.session)
		}
		session := a.session
		a.live(10 * time.Minute)
		if diff := gocmp.Diff(jobs.BeatReply{Session: session, TTLMS: 9000, Contract: jobs.Contract}, a.beat()); diff != "" {
			r.Errorf("answer (-want +got):\n%s", diff)
		}
		for _, name := range []string{"", "a.b", "a b", "*"} {
			_, err := r.Beat(r.Context(), jobs.Beat{Worker: name})
			r.wantCode("worker "+name, jobs.CodeInvalid, err)
		}
		r.store.before(func(string) error { return errDisk })
		_, err := r.Beat(r.Context(), jobs.Beat{Worker: "c"})
		r.wantCode("a new worker without a ledger", jobs.CodeUnavailable, err)
		a.beat() // one that is known needs none
	})
}

func TestBeatRunning(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(spec())
		l := a.one()
		h := l.Held
		h.Running = true
		r.store.before(func(op string) error { return errDisk })
		a.beat(h)
		r.store.before(nil)
		r.stands(j.ID, jobs.StateLeased)
		a.beat(h) // the ledger failed: the next one tells it
		r.stands(j.ID, jobs.StateRunning)
		a.beat(l.Held)
		r.stands(j.ID, jobs.StateRunning)
		a.report(l, jobs.VMFailed)
		if got := a.beat(h); len(got.Drop) != 1 {
			r.Errorf("an attempt that was given back is not dropped: %+v", got)
		}
		r.stands(j.ID, jobs.StateQueued)
		a.report(a.one(), jobs.Exited)
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

// What a worker names and does not have is to be dropped.
func TestBeatDrops(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a, b := r.worker("a"), r.worker("b")
		r.admit(spec())
		l := a.one()
		other := l.Held
		other.Epoch--
		unknown := jobs.Held{Job: jobs.NewID(), Attempt: 1, Epoch: 1}
		if diff := gocmp.Diff([]jobs.Held{other, unknown}, a.beat(other, unknown, l.Held).Drop); diff != "" {
			r.Errorf("drop (-want +got):\n%s", diff)
		}
		if diff := gocmp.Diff([]jobs.Held{l.Held}, b.beat(l.Held).Drop); diff != "" {
			r.Errorf("another's (-want +got):\n%s", diff)
		}
	})
}

// A worker that is silent for its lease and the grace has lost its attempts, and not before; its late report is fenced.
func TestWorkerSilent(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a, b := r.worker("a"), r.worker("b")
		j := r.admit(spec())
		l := a.lease(1, 0)[0]
		a.prints(l, 1, "one", "two")
		a.beat(l.Held)
		b.live(19 * time.Second)
		r.stands(j.ID, jobs.StateLeased)
		b.live(3 * time.Second)
		r.stands(j.ID, jobs.StateQueued)
		again := b.one()
		if again.Attempt != 2 {
			r.Errorf("attempt %d", again.Attempt)
		}
		if !a.report(l, jobs.Exited).Fenced {
			r.Error("the lost attempt's report is not fenced")
		}
		session := a.session
		if got := a.beat(l.Held); got.Session <= session || len(got.Drop) != 1 {
			r.Errorf("the lost worker hears %+v", got)
		}
		b.prints(again, 1, "one", "two", "three")
		b.send(again, jobs.Report{Events: 3, Result: jobs.Result{Ending: jobs.Exited}})
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
		if all := r.board.of(j.ID); len(all) != 7 || all[2].State != jobs.StateQueued {
			r.Errorf("events %+v", all)
		}
	})
}

// A report that comes while the worker counts as silent and its attempt is still its own, counts.
func TestWorkerSilentReportsInTime(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(spec())
		l := a.one()
		time.Sleep(19 * time.Second)
		if a.report(l, jobs.Exited).Fenced {
			r.Error("fenced")
		}
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

// All of a lost worker's attempts cost a retry, and one that has none left is dead.
func TestWorkerLostForGood(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(retries(1))
		l := a.one()
		a.prints(l, 1, "out")
		time.Sleep(time.Minute)
		l = a.one()
		a.prints(l, 1, "out")
		time.Sleep(time.Minute)
		r.ended(j.ID, jobs.StateDead, jobs.WorkerLost)
		if got := r.board.buried(j.ID); len(got) != 1 {
			r.Errorf("buried %q", got)
		}
		if got := r.job(j.ID).Result; got.Worker != "a" || got.Attempt != 2 {
			r.Errorf("result %+v", got)
		}
	})
}

// A worker that is started anew under its name takes back what its earlier life had, at once.
func TestWorkerStartedAnew(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		lost, kept := r.admit(spec()), r.admit(spec())
		first := a.lease(1, 0)[0]
		successor := r.worker("a")
		if successor.session <= a.session {
			r.Errorf("session %d after %d", successor.session, a.session)
		}
		second := successor.lease(1, 0)[0]
		successor.live(2*time.Second, second.Held)
		r.stands(lost.ID, jobs.StateQueued)
		if !a.report(first, jobs.Exited).Fenced {
			r.Error("the earlier life's report is not fenced")
		}
		again := successor.lease(1, 5*time.Second)[0]
		if again.Job != first.Job || again.Attempt != 2 {
			r.Errorf("leased %+v", again.Held)
		}
		successor.report(again, jobs.Exited)
		successor.report(second, jobs.Exited)
		r.ended(lost.ID, jobs.StateEnded, jobs.Exited)
		r.ended(kept.ID, jobs.StateEnded, jobs.Exited)
	})
}

// Two registrations of one name that overtake each other: the later session stands, and what it leased stays its own.
func TestWorkerRegistersTwiceAtOnce(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		hold := make(chan struct{})
		var n atomic.Int64
		r.store.after(func(op string) error {
			if op == "register" && n.Add(1) == 1 {
				<-hold
			}
			return nil
		})
		slow := make(chan jobs.BeatReply)
		go func() {
			reply, _ := r.Beat(r.Context(), jobs.Beat{Worker: "a", Capacity: size, Images: []jobs.OfferedImage{{Name: "base"}}})
			slow <- reply
		}()
		synctest.Wait()
		a := r.worker("a")
		j := r.admit(spec())
		l := a.one()
		close(hold)
		<-slow
		session := a.session
		a.live(15*time.Second, l.Held)
		if a.session != session {
			r.Errorf("session %d became %d", session, a.session)
		}
		if a.report(l, jobs.Exited).Fenced {
			r.Error("fenced")
		}
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

// A lease whose answer never reached its worker: the worker beats on and does not name it.
func TestLeaseLostOnItsWay(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		lost, held := r.admit(spec()), r.admit(spec())
		leases := a.lease(2, 0)
		l := leases[1]
		a.live(9*time.Second, l.Held)
		r.stands(lost.ID, jobs.StateLeased)
		a.live(4*time.Second, l.Held)
		r.stands(lost.ID, jobs.StateQueued)
		a.live(time.Minute, l.Held)
		r.stands(held.ID, jobs.StateLeased)
		if again := a.lease(1, time.Second); len(again) != 1 || again[0].Attempt != 2 {
			r.Errorf("leased %+v", again)
		}
	})
}

// A worker whose lease is on its way back does not hold its heartbeat up: while the broker does not answer, the worker lives.
func TestBeatDoesNotWaitForTheBroker(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		r.admit(spec())
		a.one()
		r.board.before(func(string) error { time.Sleep(10 * time.Second); return errDisk })
		for range 30 {
			start := time.Now()
			a.beat()
			if d := time.Since(start); d > 0 {
				r.Errorf("a heartbeat took %v", d)
			}
			time.Sleep(2 * time.Second)
		}
		r.board.before(nil)
		time.Sleep(12 * time.Second)
	})
}

// That an attempt runs is told to the ledger behind the heartbeat: while a disk stands still for longer than a lease, the worker lives, and keeps
// what acts on others.
func TestBeatDoesNotWaitForTheLedger(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(spec())
		l := a.one()
		h := l.Held
		h.Running = true
		r.store.before(func(op string) error {
			if op == "running" {
				time.Sleep(30 * time.Second)
			}
			return nil
		})
		for range 14 {
			start := time.Now()
			if reply := a.beat(h); len(reply.Drop) > 0 {
				r.Errorf("after the disk stood still: %+v", reply)
			}
			if d := time.Since(start); d > 0 {
				r.Errorf("a heartbeat took %v", d)
			}
			r.stands(j.ID, jobs.StateLeased)
			time.Sleep(2 * time.Second)
		}
		a.live(4*time.Second, h)
		r.stands(j.ID, jobs.StateRunning)
		a.report(l, jobs.Exited)
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
		time.Sleep(time.Minute) // what was told of it besides
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

// While the ledger does not take a worker that is there, a job that only it could run may be sent again; not when that worker has gone.
func TestAdmitBeforeItsWorkerIsTaken(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		r.worker("b", "other")
		r.restartWithoutOffers()
		r.worker("b", "other")
		r.store.before(func(op string) error {
			if op == "register" {
				return errDisk
			}
			return nil
		})
		again := func() bool {
			_, _, err := r.Admit(r.Context(), "t", spec())
			return jobs.ErrorOf(err) != nil && jobs.ErrorOf(err).RetryAfterMS > 0
		}
		for range 60 {
			if _, err := r.Beat(r.Context(), a.heartbeat()); err == nil {
				r.Fatal("the worker was taken")
			}
			if !again() {
				r.Fatal("the job was refused for good")
			}
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		if again() {
			r.Error("the worker has gone, and the job is to be sent again")
		}
	})
}
