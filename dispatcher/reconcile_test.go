package dispatcher_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

// However many jobs run out at once, and however slowly they are ended, a worker that is lost is noticed in time; and they all end.
func TestLossIsNoticedWhileManyExpire(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		lost := r.admit(spec())
		a.one()
		s := spec()
		s.QueueTTLMS = 10_000
		const many = 2000
		for range many {
			r.admit(s)
		}
		r.store.before(func(op string) error {
			if op == "end queued" {
				time.Sleep(time.Second)
			}
			return nil
		})
		time.Sleep(30 * time.Second)
		r.stands(lost.ID, jobs.StateQueued)
		time.Sleep(time.Minute)
		synctest.Wait()
		left := 0
		for _, row := range r.disk.rows() {
			if !row.State.Terminal() {
				left++
			}
		}
		if left != 1 {
			r.Errorf("%d jobs have not ended of the %d that ran out", left-1, many)
		}
	})
}

// A job of which the broker does not take an attempt's end holds up no other one, and has no further attempt before viewers know of that end.
func TestLossWithoutTheBrokersAnswer(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a, b := r.worker("a"), r.worker("b")
		mute, first, second := r.admit(spec()), r.admit(spec()), r.admit(spec())
		r.board.silence(mute.ID)
		a.lease(2, 0)
		held := b.lease(1, 0)[0].Held
		b.live(30*time.Second, held)
		r.stands(mute.ID, jobs.StateQueued)
		if got := b.lease(2, 10*time.Second); len(got) != 1 || got[0].Job != first.ID {
			r.Errorf("leased %+v, want the one that is not mute", got)
		}
		b.send(jobs.Lease{Held: held}, jobs.Report{Result: jobs.Result{Ending: jobs.Exited}})
		time.Sleep(5 * time.Second)
		r.ended(second.ID, jobs.StateEnded, jobs.Exited)
		if all := r.board.of(mute.ID); len(all) > 0 {
			r.Errorf("the board is silent, and has %+v", all)
		}
		r.board.silence()
		b.live(time.Minute)
		if got := b.lease(1, 10*time.Second); len(got) != 1 || got[0].Job != mute.ID {
			r.Errorf("leased %+v, want the one that was mute", got)
		}
		if all := r.board.of(mute.ID); len(all) != 1 || all[0].State != jobs.StateQueued {
			r.Errorf("events %+v, want one", all)
		}
	})
}

// A job that is to be tried again does not wait for ever either, whatever its queue TTL was.
func TestExpiresBetweenAttempts(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		s := spec()
		s.QueueTTLMS = 60_000
		j := r.admit(s)
		l := a.one()
		a.prints(l, 1, "out")
		a.send(l, jobs.Report{Events: 1, Result: jobs.Result{Ending: jobs.VMFailed}})
		time.Sleep(24 * time.Hour)
		r.stands(j.ID, jobs.StateQueued)
		time.Sleep(5 * time.Second)
		r.ended(j.ID, jobs.StateEnded, jobs.Expired)
	})
}

// What ended long ago is deleted, however much it is; what has not ended stays.
func TestForget(t *testing.T) {
	rigged(t, dispatcher.Config{KeepEnded: 24 * time.Hour}, func(r *rig) {
		a := r.worker("a")
		week := spec()
		week.QueueTTLMS = (7 * 24 * time.Hour).Milliseconds()
		keyed := spec()
		keyed.IdempotencyKey = "key"
		first := r.admit(keyed)
		for range 1200 {
			r.admit(spec())
		}
		for range 1201 {
			a.report(a.lease(1, 0)[0], jobs.Exited)
		}
		waits := r.admit(week)
		time.Sleep(23 * time.Hour)
		r.ended(first.ID, jobs.StateEnded, jobs.Exited)
		time.Sleep(time.Hour + 2*time.Minute)
		_, err := r.Get(r.Context(), "t", first.ID)
		r.wantCode("get", jobs.CodeNotFound, err)
		synctest.Wait()
		if n := len(r.disk.rows()); n != 1 {
			r.Errorf("%d jobs are kept, want the one that waits", n)
		}
		r.stands(waits.ID, jobs.StateQueued)
		r.admit(keyed)
	})
}

// A job that its key still names must not be deleted: the key's next use would run it again.
func TestNewKeepsEndedAsLongAsKeys(t *testing.T) {
	store := &memory{disk: newDisk(t)}
	if _, err := dispatcher.New(dispatcher.Config{Store: store, Events: newBoard(t), KeepEnded: 23 * time.Hour}); err == nil {
		t.Error("no error")
	}
}

// While workers cannot be heard no lease runs out, however long that is; afterwards each has a whole one.
func TestNotConnected(t *testing.T) {
	var away atomic.Bool
	rigged(t, dispatcher.Config{Connected: func() bool { return !away.Load() }}, func(r *rig) {
		a := r.worker("a")
		j, k := r.admit(spec()), r.admit(spec())
		l := a.one()
		a.beat(l.Held)
		m := a.one() // of which no heartbeat has told yet
		away.Store(true)
		time.Sleep(time.Hour)
		r.stands(j.ID, jobs.StateLeased)
		away.Store(false)
		time.Sleep(10 * time.Second)
		if got := a.beat(l.Held, m.Held); len(got.Drop) != 0 || got.Session != a.session {
			r.Errorf("answer %+v", got)
		}
		a.ok(l)
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
		away.Store(true)
		time.Sleep(time.Hour)
		away.Store(false)
		time.Sleep(22 * time.Second) // and it is not heard of again
		r.stands(k.ID, jobs.StateQueued)
	})
}
