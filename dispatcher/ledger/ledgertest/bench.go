package ledgertest

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// Bench measures a ledger that is empty and leads: admissions one at a time by as many clients as named, and in batches of 10,000; and
// whole lives of jobs: Admit, Lease, Running, Finish, Published.
func Bench(b *testing.B, open func(b *testing.B) ledger.Store) {
	for _, c := range []struct {
		name    string
		clients int
		run     func(b *testing.B, s ledger.Store, clients int)
	}{
		{"admit/clients=1", 1, benchAdmit},
		{"admit/clients=64", 64, benchAdmit},
		{"admit/clients=256", 256, benchAdmit},
		{"admit batch", 0, func(b *testing.B, s ledger.Store, _ int) { benchBatch(b, s) }},
		{"life/clients=1", 1, benchLife},
		{"life/clients=64", 64, benchLife},
		{"life/clients=256", 256, benchLife},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := open(b)
			defer func() {
				if err := s.Close(); err != nil {
					b.Error(err)
				}
			}()
			start := time.Now()
			b.ResetTimer()
			c.run(b, s, c.clients)
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "jobs/s")
		})
	}
}

func benchAdmission() ledger.Admission {
	id, now := jobs.NewID(), time.Now()
	return ledger.Admission{
		Job: jobs.Job{
			ID: id, Tenant: "t", State: jobs.StateQueued, Image: "python", AcceptedAt: now, Spec: &jobs.Spec{ID: id, Language: "python", Source: "print('hello')"},
		},
		Hash: "hash of " + id,
		Entry: ledger.Entry{
			ID: id, Tenant: "t", Image: "python", State: jobs.StateQueued, Priority: 5, AcceptedAt: now, ExpiresAt: now.Add(time.Hour), InfraLeft: 3,
		},
	}
}

// clients run do b.N times in all.
func clients(b *testing.B, n int, do func() error) {
	var all sync.WaitGroup
	var done atomic.Int64
	for range n {
		all.Go(func() {
			for done.Add(1) <= int64(b.N) {
				if err := do(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}

func benchAdmit(b *testing.B, s ledger.Store, n int) {
	clients(b, n, func() error {
		_, err := s.Admit(context.Background(), benchAdmission())
		return err
	})
}

func benchBatch(b *testing.B, s ledger.Store) {
	for left := b.N; left > 0; left -= jobs.MaxBatch {
		batch := ledger.BatchAdmission{ID: jobs.NewID(), Tenant: "t", AcceptedAt: time.Now(), Hash: "hash"}
		for range min(left, jobs.MaxBatch) {
			batch.Jobs = append(batch.Jobs, benchAdmission())
		}
		if _, err := s.AdmitBatch(context.Background(), batch); err != nil {
			b.Fatal(err)
		}
	}
}

func benchLife(b *testing.B, s ledger.Store, n int) {
	ctx, stop := context.WithCancel(context.Background())
	var publishing sync.WaitGroup
	publishing.Go(func() { publish(ctx, b, s) })
	clients(b, n, func() error {
		a := benchAdmission()
		if _, err := s.Admit(ctx, a); err != nil {
			return err
		}
		h := jobs.Held{Job: a.Job.ID, Attempt: 1, Epoch: 1}
		if _, err := s.Lease(ctx, []ledger.Lease{{Held: h, Worker: "a", Session: 1, At: time.Now()}}); err != nil {
			return err
		}
		if err := s.Running(ctx, []jobs.Held{h}, time.Now()); err != nil {
			return err
		}
		zero := 0
		r := jobs.Result{Ending: jobs.Exited, Class: jobs.ClassUser, ExitCode: &zero, Attempt: 1, Worker: "a", EndedAt: time.Now()}
		_, err := s.Finish(ctx, h, jobs.StateEnded, r, final(h.Job, 1, r))
		return err
	})
	stop()
	publishing.Wait()
}

// publish takes events from the outbox, as the dispatcher does, until ctx ends.
func publish(ctx context.Context, b *testing.B, s ledger.Store) {
	for ctx.Err() == nil {
		out, err := s.Outbox(context.Background(), 0, 256)
		if err == nil {
			ids := make([]int64, len(out))
			for i, o := range out {
				ids[i] = o.ID
			}
			err = s.Published(context.Background(), ids)
		}
		if err != nil {
			b.Error(err)
			return
		}
		if len(out) == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}
