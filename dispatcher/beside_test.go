package dispatcher_test

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/postgres"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/pgtest"
)

// besideFor is how long one iteration of BenchmarkBesideBatches lasts.
const besideFor = 5 * time.Second

// BenchmarkBesideBatches is how long single jobs of one tenant take to be admitted, leased and reported, one after the other, while another sends
// batches of 10,000 without a pause; and how many jobs come in by those.
func BenchmarkBesideBatches(b *testing.B) {
	b.Run("ledger=sqlite", func(b *testing.B) {
		benchmarkBeside(b, func() (ledger.Store, error) { return sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "ledger.db")) })
	})
	b.Run("ledger=postgres", func(b *testing.B) {
		server := pgtest.Start(b)
		benchmarkBeside(b, func() (ledger.Store, error) {
			s, err := postgres.Open(b.Context(), server.Database(b))
			if err == nil {
				_, err = s.Lead(b.Context(), "bench", time.Hour)
			}
			return s, err
		})
	})
}

func benchmarkBeside(b *testing.B, open func() (ledger.Store, error)) {
	for _, kind := range []struct {
		name   string
		atomic bool
		key    string
	}{{"each", false, ""}, {"atomic", true, "key"}} {
		b.Run("batch="+kind.name, func(b *testing.B) {
			took := map[string][]time.Duration{}
			admitted, lasted := 0, time.Duration(0)
			for b.Loop() {
				n, d := beside(b, open, jobs.BatchRequest{Atomic: kind.atomic, IdempotencyKey: kind.key, Defaults: common, Jobs: bodies(slices.Repeat([]string{`{}`}, jobs.MaxBatch)...)}, took)
				admitted, lasted = admitted+n, lasted+d
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(admitted)/lasted.Seconds(), "batched/s")
			for what, list := range took {
				slices.Sort(list)
				for unit, at := range map[string]int{"p50": len(list) / 2, "p99": len(list) * 99 / 100, "max": len(list) - 1} {
					b.ReportMetric(float64(list[at].Microseconds())/1000, what+"-"+unit+"-ms")
				}
			}
		})
	}
}

// beside is one iteration: it adds to took, and gives how many jobs came in by batches, and in what time.
func beside(b *testing.B, open func() (ledger.Store, error), batch jobs.BatchRequest, took map[string][]time.Duration) (admitted int, lasted time.Duration) {
	ctx, stop := context.WithCancel(b.Context())
	store, err := open()
	if err != nil {
		b.Fatal(err)
	}
	d, err := dispatcher.New(dispatcher.Config{Store: store, Events: &nowhere{}, MaxQueued: 1 << 30})
	if err != nil {
		b.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		if err := d.Run(ctx); err != nil {
			b.Error(err)
		}
	})
	defer func() {
		stop()
		running.Wait()
		if err := store.Close(); err != nil {
			b.Error(err)
		}
	}()
	beat, err := d.Beat(ctx, jobs.Beat{Worker: "a", Capacity: size, Images: []jobs.OfferedImage{{Name: "base", Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 256}}}})
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	var batches sync.WaitGroup
	batches.Go(func() {
		for n := 0; time.Since(began) < besideFor; n++ {
			q := batch
			if q.IdempotencyKey != "" {
				q.IdempotencyKey = jobs.NewID()
			}
			if _, err := d.AdmitBatch(ctx, "many", &q); err != nil {
				b.Error(err)
				return
			}
			admitted += len(q.Jobs)
		}
		lasted = time.Since(began)
	})
	timed := func(what string, do func() error) {
		at := time.Now()
		if err := do(); err != nil {
			b.Error(err)
		}
		took[what] = append(took[what], time.Since(at))
	}
	zero := 0
	for time.Since(began) < besideFor && !b.Failed() {
		timed("admit", func() error { _, _, err := d.Admit(ctx, "single", spec()); return err })
		var got jobs.LeaseReply
		timed("lease", func() (err error) {
			got, err = d.Lease(ctx, jobs.LeaseRequest{Worker: "a", Session: beat.Session, Slots: 1, Free: size, WaitMS: 20_000})
			return err
		})
		for _, l := range got.Leases {
			timed("report", func() error {
				_, err := d.Report(ctx, jobs.Report{Worker: "a", Session: beat.Session, Held: l.Held, Result: jobs.Result{Ending: jobs.Exited, ExitCode: &zero}})
				return err
			})
		}
		time.Sleep(2 * time.Millisecond)
	}
	batches.Wait()
	return admitted, lasted
}
