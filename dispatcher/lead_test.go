package dispatcher_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/postgres"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/pgtest"
)

// candidate is a process that may lead, over a PostgreSQL that others share. Its clock is the real one.
type candidate struct {
	name  string
	lost  *lossy
	end   func() // an orderly end
	leads chan *dispatcher.Dispatcher
	done  chan struct{} // closed when it has ended, with err
	err   error
}

// lossy is a ledger that can be cut off: what is asked of it fails.
type lossy struct {
	ledger.Store
	cut atomic.Bool
}

var errCutOff = errors.New("cut off")

func (l *lossy) Lead(ctx context.Context, holder string, ttl time.Duration) (int64, error) {
	if l.cut.Load() {
		return 0, errCutOff
	}
	return l.Store.Lead(ctx, holder, ttl)
}

// ether carries announcements between candidates.
type ether struct {
	mu    sync.Mutex
	heard []func(int64)
}

func (e *ether) Announce(_ context.Context, term int64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, h := range e.heard {
		h(term)
	}
	return nil
}

func (e *ether) Announced(ctx context.Context, heard func(int64)) error {
	e.mu.Lock()
	e.heard = append(e.heard, heard)
	e.mu.Unlock()
	<-ctx.Done()
	return nil
}

func stand(t *testing.T, name, url string, peers dispatcher.Peers) *candidate {
	t.Helper()
	store, err := postgres.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	c := &candidate{name: name, lost: &lossy{Store: store}, leads: make(chan *dispatcher.Dispatcher, 10), done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	go func() {
		defer close(c.done)
		c.err = dispatcher.Lead(ctx, dispatcher.Config{Store: c.lost, Events: newBoard(t), Peers: peers}, name, func(ctx context.Context, d *dispatcher.Dispatcher) error {
			c.leads <- d
			<-ctx.Done()
			return nil
		})
	}()
	c.end = sync.OnceFunc(func() {
		cancel()
		if <-c.done; c.err != nil && !errors.Is(c.err, ledger.ErrOutdated) {
			t.Error(name, c.err)
		}
		if err := store.Close(); err != nil {
			t.Error(name, err)
		}
	})
	t.Cleanup(c.end)
	return c
}

// leading waits until a candidate leads.
func (c *candidate) leading(t *testing.T, within time.Duration) *dispatcher.Dispatcher {
	t.Helper()
	select {
	case d := <-c.leads:
		return d
	case <-time.After(within):
		t.Fatalf("%s does not lead after %v", c.name, within)
		return nil
	}
}

// deposes checks that who leads meanwhile has put an end to another's term: a machine that stands still for longer than a term hands it on.
func (c *candidate) deposes(t *testing.T, d *dispatcher.Dispatcher) {
	t.Helper()
	if len(c.leads) == 0 {
		return
	}
	if j, _, err := d.Admit(t.Context(), "t", spec()); err == nil {
		t.Fatalf("two lead: %s, and who has accepted %s", c.name, j.ID)
	}
	t.Logf("%s has taken over: this machine stood still", c.name)
}

// One of two leads; the other takes over, with all that was accepted, when it ends; and when it is cut off from the ledger. Whoever is deposed
// accepts nothing any more. When a newer version has brought the ledger up to date, who leads and who stands by end, and say why.
func TestLead(t *testing.T) {
	server := pgtest.Start(t)
	url, air := server.Database(t), &ether{}
	a := stand(t, "a", url, air)
	first := a.leading(t, time.Minute)
	b := stand(t, "b", url, air)
	j, _, err := first.Admit(t.Context(), "t", spec())
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	b.deposes(t, first)
	a.end()
	second := b.leading(t, 30*time.Second)
	if got, err := second.Get(t.Context(), "t", j.ID); err != nil || got.State != jobs.StateQueued {
		t.Errorf("the job is %+v, %v", got, err)
	}
	if state, err := second.Cancel(t.Context(), "t", j.ID); err != nil || state != jobs.StateQueued {
		t.Errorf("canceled: %s, %v", state, err)
	}

	c := stand(t, "c", url, air)
	b.lost.cut.Store(true) // it cannot renew, and could still write
	third := c.leading(t, time.Minute)
	k, _, err := third.Admit(t.Context(), "t", spec())
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = second.Admit(t.Context(), "t", spec())
	if e, ok := errors.AsType[*jobs.Error](err); !ok || e.Code != jobs.CodeUnavailable {
		t.Errorf("who was deposed answers %v", err)
	}
	if ok, err := b.lost.EndQueued(t.Context(), k.ID, 0, jobs.StateEnded, jobs.Result{Ending: jobs.Expired}, jobs.Event{}); ok || !errors.Is(err, ledger.ErrNotLeader) {
		t.Errorf("who was deposed writes: %v, %v", ok, err)
	}
	b.lost.cut.Store(false)
	time.Sleep(2 * time.Second)
	if got, err := third.Get(t.Context(), "t", k.ID); err != nil || got.State != jobs.StateQueued {
		t.Errorf("the job is %+v, %v", got, err)
	}
	b.deposes(t, third)
	if len(c.leads) > 0 {
		t.Error("c leads anew")
	}

	server.Exec(t, "test1", `INSERT INTO goose_db_version (version_id, is_applied) VALUES (9000, true)`)
	for _, old := range []*candidate{b, c} {
		select {
		case <-old.done:
			if !errors.Is(old.err, ledger.ErrOutdated) {
				t.Errorf("%s ends with %v", old.name, old.err)
			}
		case <-time.After(time.Minute):
			t.Errorf("%s goes on with a ledger that it does not know", old.name)
		}
	}
}

// A ledger that does not answer for some seconds delays requests, and refuses none. One that does not for longer refuses them, those that have
// waited and, at once, those that come; so does one that another leads. Workers, who ask again by themselves, are not kept waiting.
func TestRidesOut(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.kill()
		r.store = &memory{disk: r.disk}
		r.store.open()
		lost, leads := &lossy{Store: r.store}, make(chan *dispatcher.Dispatcher, 1)
		ctx, stop := context.WithCancel(context.WithoutCancel(r.Context()))
		done := make(chan error, 1)
		go func() {
			done <- dispatcher.Lead(ctx, dispatcher.Config{Store: lost, Events: r.board}, "a", func(ctx context.Context, d *dispatcher.Dispatcher) error {
				leads <- d
				<-ctx.Done()
				return nil
			})
		}()
		defer func() {
			stop()
			if err := <-done; err != nil {
				r.Error(err)
			}
			_ = r.store.Close()
		}()
		r.Dispatcher = <-leads
		w := r.worker("w", "base")
		takes := func(what string, after time.Duration, want jobs.Code) {
			r.Helper()
			began := time.Now()
			_, _, err := r.Admit(r.Context(), "t", spec())
			if took := time.Since(began); took < after || took > after+2*time.Second {
				r.Errorf("%s: answered after %v, want %v", what, took, after)
			}
			r.wantCode(what, want, err)
		}
		cut := func(d time.Duration) {
			lost.cut.Store(true)
			time.Sleep(4 * time.Second) // its term is over
			time.AfterFunc(d, func() { lost.cut.Store(false) })
		}
		takes("led", 0, "")
		cut(5 * time.Second)
		_, err := r.Lease(r.Context(), w.request(1, time.Second))
		r.wantCode("a worker", jobs.CodeUnavailable, err)
		takes("a hiccup", 5*time.Second, "")
		takes("after it", 0, "")
		cut(20 * time.Second)
		takes("one that lasts", 9*time.Second, jobs.CodeUnavailable)
		takes("as it lasts", 0, jobs.CodeUnavailable)
		time.Sleep(15 * time.Second)
		takes("led again", 0, "")

		lost.cut.Store(true)
		time.Sleep(4 * time.Second)
		began := time.Now()
		time.AfterFunc(2*time.Second, func() {
			if _, err := r.disk.db.Exec(`UPDATE leader SET term = term + 1, holder = 'b'`); err != nil {
				r.Error(err)
			}
			lost.cut.Store(false)
		})
		_, _, err = r.Admit(r.Context(), "t", spec())
		r.wantCode("another leads", jobs.CodeUnavailable, err)
		if took := time.Since(began); took > 4*time.Second {
			r.Errorf("that another leads is said after %v", took)
		}
	})
}

// endless is a ledger that takes its time to be read.
type endless struct {
	ledger.Store
	asked chan struct{}
}

func (e *endless) Workers(ctx context.Context) ([]ledger.Worker, error) {
	close(e.asked)
	<-ctx.Done()
	return nil, ctx.Err()
}

// Who is stopped while it reads the ledger ends in order.
func TestStoppedWhileItReads(t *testing.T) {
	e := &endless{asked: make(chan struct{})}
	d, err := dispatcher.New(dispatcher.Config{Store: e, Events: newBoard(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	<-e.asked
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
