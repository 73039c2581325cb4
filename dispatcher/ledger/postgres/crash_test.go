package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/postgres"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/pgtest"
)

// writers write jobs from their beginning to their end until they are stopped, and keep what they were told is durable.
type writers struct {
	*testing.T
	store ledger.Store
	stop  atomic.Bool
	all   sync.WaitGroup

	mu     sync.Mutex
	acked  map[string]string // by job, the last step that was acknowledged
	failed int
}

func startWriters(t *testing.T, s ledger.Store, n int) *writers {
	w := &writers{T: t, store: s, acked: map[string]string{}}
	for range n {
		w.all.Go(func() {
			for !w.stop.Load() {
				if err := w.job(); err != nil {
					w.mu.Lock()
					w.failed++
					w.mu.Unlock()
					if !errors.Is(err, ledger.ErrUnavailable) {
						t.Errorf("%v, want ErrUnavailable", err)
						return
					}
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
	}
	return w
}

func (w *writers) ack(id, step string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked[id] = step
}

func (w *writers) count() (acked, failed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked), w.failed
}

func (w *writers) job() error {
	ctx, id, now := context.Background(), jobs.NewID(), time.Now()
	a := ledger.Admission{
		Job: jobs.Job{ID: id, Spec: &jobs.Spec{Image: "base"}}, Key: id,
		Entry: ledger.Entry{ID: id, Tenant: "t", Image: "base", State: jobs.StateQueued, AcceptedAt: now, ExpiresAt: now},
	}
	if taken, err := w.store.Admit(ctx, a); err != nil || taken != nil {
		return fmt.Errorf("admit: %+v, %w", taken, err)
	}
	w.ack(id, "admit")
	h := jobs.Held{Job: id, Attempt: 1, Epoch: 1}
	if specs, err := w.store.Lease(ctx, []ledger.Lease{{Held: h, Worker: "a", At: now}}); err != nil || specs[0] == nil {
		return fmt.Errorf("lease: %q, %w", specs, err)
	}
	w.ack(id, "lease")
	r := jobs.Result{Ending: jobs.Exited, Class: jobs.ClassUser, EndedAt: now}
	final := jobs.Event{Type: jobs.EventResult, Job: id, Tenant: "t", Final: true}
	if ok, err := w.store.Finish(ctx, h, jobs.StateEnded, r, final); err != nil || !ok {
		return fmt.Errorf("finish: %v, %w", ok, err)
	}
	w.ack(id, "finish")
	return nil
}

// check looks for all that was acknowledged, and that no transition was done by half.
func (w *writers) check() {
	w.Helper()
	ctx := context.Background()
	finals := map[string]int{}
	out, err := w.store.Outbox(ctx, 0, 1<<30)
	if err != nil {
		w.Fatal(err)
	}
	for _, o := range out {
		finals[o.Event.Job]++
	}
	q := jobs.ListRequest{Limit: 1000}
	all := map[string]jobs.Job{}
	for {
		r, err := w.store.List(ctx, "t", q)
		if err != nil {
			w.Fatal(err)
		}
		for _, j := range r.Jobs {
			all[j.ID] = j
		}
		if q.Before = r.Next; r.Next == "" {
			break
		}
	}
	for id, step := range w.acked {
		j, ok := all[id]
		good := ok && (step == "admit" || step == "lease" && j.Attempt == 1 || step == "finish" && j.State == jobs.StateEnded)
		if !good {
			w.Errorf("%s of %s was acknowledged; there is %+v", step, id, j)
		}
	}
	for id, j := range all {
		if ended := j.State == jobs.StateEnded; ended != (j.Result != nil) || finals[id] > 1 || ended != (finals[id] == 1) {
			w.Errorf("job %s is %s with %d final events", id, j.State, finals[id])
		}
	}
}

// until waits for something that the writers bring about.
func (w *writers) until(what string, is func(acked, failed int) bool) {
	w.Helper()
	for end := time.Now().Add(time.Minute); !is(w.count()); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			acked, failed := w.count()
			w.Fatalf("%s: %d jobs, %d failures", what, acked, failed)
		}
	}
}

// TestServerKilled kills the server in the middle of writes, again and again: what was acknowledged is there, errors say that the database
// cannot be reached, and the same handle writes on when it can.
func TestServerKilled(t *testing.T) {
	server := pgtest.Start(t)
	s := openLeader(t, server.Database(t))
	for range 3 {
		w := startWriters(t, s, 16)
		w.until("before the kill", func(acked, _ int) bool { return acked > 50 })
		server.Kill()
		w.until("while it is dead", func(_, failed int) bool { return failed > 16 })
		if _, err := s.Workers(t.Context()); !errors.Is(err, ledger.ErrUnavailable) {
			t.Errorf("read: %v, want ErrUnavailable", err)
		}
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		before, _ := w.count()
		w.until("after the kill", func(acked, _ int) bool { return acked > before+50 })
		w.stop.Store(true)
		w.all.Wait()
		w.check()
	}
}

// TestConnectionsCut ends every connection of a ledger in the middle of writes.
func TestConnectionsCut(t *testing.T) {
	server := pgtest.Start(t)
	s := openLeader(t, server.Database(t))
	w := startWriters(t, s, 16)
	for range 10 {
		before, _ := w.count()
		w.until("between cuts", func(acked, _ int) bool { return acked > before+20 })
		server.Exec(t, "postgres", `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'paddock'`)
	}
	w.stop.Store(true)
	w.all.Wait()
	w.check()
}

func openLeader(t *testing.T, url string) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error("close:", err)
		}
	})
	if _, err := s.Lead(t.Context(), "test", time.Hour); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestOpenRefuses: what cannot be a ledger is an error that says why.
func TestOpenRefuses(t *testing.T) {
	server := pgtest.Start(t)
	url := server.Database(t)
	if _, err := postgres.Open(t.Context(), server.URL("nosuch")); err == nil {
		t.Error("opened a database that is not there")
	}
	var all sync.WaitGroup
	for range 4 { // at once, the first time
		all.Go(func() {
			s, err := postgres.Open(t.Context(), url)
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	server.Exec(t, "test1", `INSERT INTO goose_db_version (version_id, is_applied) VALUES (9000, TRUE)`)
	if _, err := postgres.Open(t.Context(), url); err == nil {
		t.Error("opened a newer schema")
	} else {
		t.Log(err)
	}
	server.Kill()
	if _, err := postgres.Open(t.Context(), url); !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("open without a server: %v, want ErrUnavailable", err)
	}
}
