package dispatcher_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

// asked is a request for leases that stands.
type asked struct {
	reply jobs.LeaseReply
	err   error
	at    time.Time
	done  chan struct{}
}

// ask begins a request and returns when it stands.
func (h *hand) ask(ctx context.Context, request jobs.LeaseRequest) *asked {
	a := &asked{done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.reply, a.err = h.Lease(ctx, request)
		a.at = time.Now()
	}()
	synctest.Wait()
	return a
}

func (a *asked) leases(t *testing.T) []jobs.Lease {
	t.Helper()
	<-a.done
	if a.err != nil {
		t.Error("lease:", a.err)
	}
	return a.reply.Leases
}

func TestLeaseWaitsForAJob(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		start := time.Now()
		poll := a.ask(r.Context(), a.request(4, 20*time.Second))
		time.Sleep(3 * time.Second)
		s := spec()
		s.Labels = map[string]string{"k": "v"}
		j := r.admit(s)
		got := poll.leases(t)
		if len(got) != 1 || poll.at.Sub(start) != 3*time.Second {
			r.Fatalf("leases %+v after %v", got, poll.at.Sub(start))
		}
		l := got[0]
		if l.Epoch <= 0 {
			r.Errorf("epoch %d", l.Epoch)
		}
		want := jobs.Lease{Held: jobs.Held{Job: j.ID, Attempt: 1, Epoch: l.Epoch}, Tenant: "t", Spec: *s, Image: "base", AcceptedAt: j.AcceptedAt, QueuedMS: l.QueuedMS}
		if diff := gocmp.Diff(want, l); diff != "" {
			r.Errorf("lease (-want +got):\n%s", diff)
		}
		start = time.Now()
		poll = a.ask(r.Context(), a.request(4, 5*time.Second))
		if got := poll.leases(t); len(got) != 0 || poll.at.Sub(start) != 5*time.Second {
			r.Errorf("with nothing queued: %v after %v", names(got), poll.at.Sub(start))
		}
		start = time.Now()
		poll = a.ask(r.Context(), a.request(4, 24*time.Hour))
		if poll.leases(t); poll.at.Sub(start) > time.Minute {
			r.Errorf("a request stood for %v", poll.at.Sub(start))
		}
	})
}

// No attempt is given that the ledger does not have, with its number and epoch.
func TestLeaseIsCommittedFirst(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(spec())
		r.store.before(func(op string) error {
			if op == "lease" {
				return errDisk
			}
			return nil
		})
		_, err := a.Lease(r.Context(), a.request(1, 0))
		r.wantCode("lease", jobs.CodeUnavailable, err)
		r.store.before(nil)
		l := a.one()
		row := r.disk.rows()[j.ID]
		if row.State != jobs.StateLeased || row.Attempt != l.Attempt || row.Epoch != l.Epoch || row.Worker != "a" || row.Session != a.session || l.Attempt != 1 {
			r.Errorf("leased %+v, the ledger has %+v", l.Held, row.Entry)
		}
	})
}

func TestLeaseWithoutSession(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.admit(spec())
		a := r.worker("a")
		for name, request := range map[string]jobs.LeaseRequest{
			"never seen":        {Worker: "b", Slots: 1, Free: size},
			"session never had": {Worker: "a", Session: a.session + 1, Slots: 1, Free: size},
			"no session":        {Worker: "a", Slots: 1, Free: size},
		} {
			_, err := r.Lease(r.Context(), request)
			r.wantCode(name, jobs.CodeForbidden, err)
		}
		successor := r.worker("a")
		_, err := a.Lease(r.Context(), a.request(1, 0))
		r.wantCode("an earlier session", jobs.CodeForbidden, err)
		time.Sleep(time.Minute)
		_, err = successor.Lease(r.Context(), successor.request(1, 0))
		r.wantCode("a session that ran out", jobs.CodeForbidden, err)
		r.restart()
		_, err = successor.Lease(r.Context(), successor.request(1, 0))
		r.wantCode("a session that this dispatcher has not heard of", jobs.CodeForbidden, err)
	})
}

// A request whose caller has gone takes no job with it.
func TestLeaseWithdrawn(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a, b := r.worker("a"), r.worker("b")
		ctx, cancel := context.WithCancel(r.Context())
		gone := a.ask(ctx, a.request(8, 20*time.Second))
		cancel()
		if got := gone.leases(t); len(got) != 0 {
			r.Errorf("leased %v", names(got))
		}
		j := r.admit(spec())
		if diff := gocmp.Diff([]string{j.ID}, names(b.lease(1, 0))); diff != "" {
			r.Errorf("leased by another (-want +got):\n%s", diff)
		}
		if j := r.job(j.ID); j.Attempt != 1 {
			r.Errorf("attempt %d", j.Attempt)
		}
	})
}

// A worker asks one request after the other. One that stands when it asks anew was given up, with a connection that was lost or a process that was
// killed and goes on in its session: it is answered at once, and takes no job with it.
func TestLeaseAskedAnew(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		start := time.Now()
		given := a.ask(r.Context(), a.request(8, 20*time.Second))
		anew := a.ask(r.Context(), a.request(8, 20*time.Second))
		if got := given.leases(t); len(got) != 0 || given.at.Sub(start) > 0 {
			r.Errorf("who listens no more was answered %v after %v, want nothing at once", names(got), given.at.Sub(start))
		}
		j := r.admit(spec())
		if diff := gocmp.Diff([]string{j.ID}, names(anew.leases(t))); diff != "" {
			r.Errorf("leased (-want +got):\n%s", diff)
		}
	})
}

// A request that stands when its worker is started anew, or begins to drain, is answered at once, and not with jobs: nobody would run them.
func TestLeaseOfAWorkerThatHasGone(t *testing.T) {
	for name, leave := range map[string]func(a *hand){
		"started anew": func(a *hand) { a.worker("a") },
		"draining":     func(a *hand) { a.drain() },
	} {
		t.Run(name, func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				a := r.worker("a")
				poll := a.ask(r.Context(), a.request(8, 20*time.Second))
				start := time.Now()
				leave(a)
				if got := poll.leases(t); len(got) != 0 || time.Since(start) > 0 {
					r.Errorf("leased %v after %v, want nothing at once", names(got), time.Since(start))
				}
				j := r.admit(spec())
				r.stands(j.ID, jobs.StateQueued)
				b := r.worker("b")
				b.report(b.one(), jobs.Exited)
				r.ended(j.ID, jobs.StateEnded, jobs.Exited)
			})
		})
	}
}

// A worker that drains may ask, and gets nothing.
func TestLeaseDraining(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		r.admit(spec())
		a.drain()
		start := time.Now()
		if got := a.lease(8, 20*time.Second); len(got) != 0 || time.Since(start) > 0 {
			r.Errorf("leased %v after %v, want nothing at once", names(got), time.Since(start))
		}
		a.beat()
		if got := a.lease(8, 20*time.Second); len(got) != 1 {
			r.Errorf("leased %v when it takes jobs again", names(got))
		}
	})
}

func TestLeasePrefersWarm(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		cold, warm := r.worker("cold"), r.worker("warm")
		large := cold.ask(r.Context(), cold.request(8, 10*time.Second))
		request := warm.request(1, 10*time.Second)
		request.Warm = map[string]int{"base": 1}
		ready := warm.ask(r.Context(), request)
		first := r.admit(spec())
		if diff := gocmp.Diff([]string{first.ID}, names(ready.leases(t))); diff != "" {
			r.Errorf("warm worker's (-want +got):\n%s", diff)
		}
		second := r.admit(spec())
		if diff := gocmp.Diff([]string{second.ID}, names(large.leases(t))); diff != "" {
			r.Errorf("cold worker's (-want +got):\n%s", diff)
		}
	})
}

// Jobs go by priority, then by age, as far as there is room.
func TestLeaseOrder(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		low, high := 1, 9
		var ids []string
		for _, p := range []*int{nil, &low, nil, &high} {
			s := spec()
			s.Priority = p
			ids = append(ids, r.admit(s).ID)
			time.Sleep(time.Millisecond)
		}
		r.restart() // the ledger has the order too
		a.beat()
		if diff := gocmp.Diff([]string{ids[3], ids[0]}, names(a.lease(2, 0))); diff != "" {
			r.Errorf("the first two (-want +got):\n%s", diff)
		}
		if diff := gocmp.Diff([]string{ids[2], ids[1]}, names(a.lease(8, 0))); diff != "" {
			r.Errorf("the rest (-want +got):\n%s", diff)
		}
	})
}

// The queue TTL is for jobs that no worker has had yet: one that waits for another attempt does not expire.
func TestExpiresNotBetweenAttempts(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		s := spec()
		s.QueueTTLMS = 60_000
		failed, runs := r.admit(s), r.admit(s)
		l := map[string]jobs.Lease{}
		for _, x := range a.lease(2, 0) {
			l[x.Job] = x
		}
		a.live(55*time.Second, l[failed.ID].Held, l[runs.ID].Held)
		a.report(l[failed.ID], jobs.VMFailed)
		a.live(20*time.Second, l[runs.ID].Held)
		r.stands(failed.ID, jobs.StateQueued)
		r.stands(runs.ID, jobs.StateLeased)
	})
}

func TestExpires(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		s := spec()
		s.QueueTTLMS = 60_000
		short, long := r.admit(s), r.admit(spec())
		time.Sleep(59 * time.Second)
		r.stands(short.ID, jobs.StateQueued)
		r.store.before(func(op string) error { // it ends when the ledger is there again, and that is told when the broker is
			if op == "end queued" {
				return errDisk
			}
			return nil
		})
		r.board.before(func(string) error { return errDisk })
		time.Sleep(5 * time.Second)
		r.stands(short.ID, jobs.StateQueued)
		r.store.before(nil)
		time.Sleep(5 * time.Second)
		r.stands(short.ID, jobs.StateEnded)
		r.board.before(nil)
		time.Sleep(2 * time.Second)
		r.ended(short.ID, jobs.StateEnded, jobs.Expired)
		a := r.worker("a")
		if diff := gocmp.Diff([]string{long.ID}, names(a.lease(8, 0))); diff != "" {
			r.Errorf("left (-want +got):\n%s", diff)
		}
		other := r.admit(&jobs.Spec{Image: "base", Steps: []jobs.Step{{Cmd: "true"}}, Resources: jobs.Resources{VCPUs: 8}})
		time.Sleep(24*time.Hour + 2*time.Second)
		r.ended(other.ID, jobs.StateEnded, jobs.Expired)
	})
}

// The ledger's answer to a lease is lost: the attempt may be in it and is nobody's. Memory finds that out, and the job runs.
func TestLeaseAnswerOfLedgerLost(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(spec())
		r.loseAnswer("lease")
		_, err := a.Lease(r.Context(), a.request(1, 0))
		r.wantCode("lease", jobs.CodeUnavailable, err)
		l := a.one()
		if l.Job != j.ID || l.Attempt != 2 {
			r.Errorf("leased %+v, want the second attempt", l.Held)
		}
		a.report(l, jobs.Exited)
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

// What a worker is to be given cannot be read: another attempt follows, which costs the job nothing.
func TestLeasedAndNotRead(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(retries(0))
		write := func(spec string) {
			if _, err := r.disk.db.ExecContext(r.Context(), `UPDATE jobs SET spec = ? WHERE id = ?`, []byte(spec), j.ID); err != nil {
				r.Error(err)
			}
		}
		var whole string
		if err := r.disk.db.QueryRowContext(r.Context(), `SELECT spec FROM jobs WHERE id = ?`, j.ID).Scan(&whole); err != nil {
			r.Fatal(err)
		}
		write(whole[:len(whole)/2])
		r.store.before(func(op string) error {
			if op == "requeue" {
				write(whole)
			}
			return nil
		})
		begin := time.Now()
		l := a.one()
		if l.Job != j.ID || l.Attempt != 2 || time.Since(begin) > 10*time.Second {
			r.Errorf("after %s leased %+v, want the second attempt", time.Since(begin), l.Held)
		}
		a.report(l, jobs.Exited)
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

// Jobs wait out a failing ledger in their order.
func TestLeaseLedgerFailsForAWhile(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		var ids []string
		for range 3 {
			ids = append(ids, r.admit(spec()).ID)
			time.Sleep(time.Millisecond)
		}
		r.store.before(func(op string) error { return errDisk })
		for range 10 {
			_, err := a.Lease(r.Context(), a.request(2, 2*time.Second))
			if c := code(err); c != "" && c != jobs.CodeUnavailable {
				r.Errorf("lease: %v", err)
			}
			a.beat()
			time.Sleep(time.Second)
		}
		r.store.before(nil)
		time.Sleep(2 * time.Second)
		if diff := gocmp.Diff(ids, names(a.lease(3, 0))); diff != "" {
			r.Errorf("leased (-want +got):\n%s", diff)
		}
	})
}

// A worker that asks for leases is answered while it listens, however slow the broker is to take what goes before a job's next attempt.
func TestLeaseBesideASlowBroker(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		again := r.admit(spec())
		l := a.one()
		r.board.before(func(op string) error {
			if op == "publish" {
				time.Sleep(30 * time.Second)
			}
			return nil
		})
		a.report(l, jobs.VMFailed)
		time.Sleep(2 * time.Second) // its next attempt may begin
		fresh := r.admit(spec())
		start := time.Now()
		got := a.lease(2, 2*time.Second)
		if took := time.Since(start); took > 4*time.Second {
			r.Errorf("the answer took %v: nobody listens any more", took)
		}
		if len(got) != 1 || got[0].Job != fresh.ID {
			r.Errorf("leased %v, want the job of which nothing is to be told before", names(got))
		}
		r.board.before(nil)
		a.live(40 * time.Second)
		if l := a.one(); l.Job != again.ID || l.Attempt != 2 {
			r.Errorf("leased %+v, want the second attempt of %s", l.Held, again.ID)
		}
	})
}

// A lease that is in the ledger only when its worker has stopped waiting for it is given to others, at no cost to the job's retries.
func TestLeaseTooLate(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(retries(0))
		r.store.before(func(op string) error {
			if op == "lease" {
				time.Sleep(8 * time.Second)
			}
			return nil
		})
		start := time.Now()
		if got := a.lease(1, 2*time.Second); len(got) > 0 {
			r.Errorf("given after %v, when nobody listens any more", time.Since(start))
		}
		r.store.before(nil)
		l := a.one()
		if l.Job != j.ID {
			r.Fatalf("leased %+v, want %s", l, j.ID)
		}
		a.report(l, jobs.Exited)
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}
