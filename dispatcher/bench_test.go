package dispatcher_test

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
	"github.com/paddockvm/paddock/jobs"
)

// nowhere takes events and forgets them: what is left is the dispatcher's and the ledger's own cost.
type nowhere struct{ final atomic.Int64 }

func (n *nowhere) Publish(_ context.Context, events ...jobs.Event) error {
	for i := range events {
		if events[i].Final {
			n.final.Add(1)
		}
	}
	return nil
}
func (n *nowhere) CloseAttempt(context.Context, jobs.Event) error     { return nil }
func (n *nowhere) Has(context.Context, jobs.Event) (bool, error)      { return false, nil }
func (*nowhere) Progress(context.Context, jobs.Batch) error           { return nil }
func (n *nowhere) DeadLetter(context.Context, jobs.Job, string) error { return nil }

// BenchmarkJob is one job through Admit, Lease and Report on a ledger in a file, with the final event out of the outbox; as many
// clients at once as named, and two workers.
func BenchmarkJob(b *testing.B) {
	for _, clients := range []int{1, 16, 64, 256} {
		b.Run("clients="+strconv.Itoa(clients), func(b *testing.B) { benchmarkJobs(b, clients) })
	}
}

func benchmarkJobs(b *testing.B, clients int) {
	ctx, stop := context.WithCancel(b.Context())
	store, err := sqlite.Open(ctx, filepath.Join(b.TempDir(), "ledger.db"))
	if err != nil {
		b.Fatal(err)
	}
	events := &nowhere{}
	d, err := dispatcher.New(dispatcher.Config{Store: store, Events: events})
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
	ended := make(chan struct{}, 1<<16)
	for _, name := range []string{"a", "b"} {
		running.Go(func() { benchWorker(ctx, b, d, name, ended) })
	}
	b.ResetTimer()
	start := time.Now()
	var admitting sync.WaitGroup
	var n atomic.Int64
	for range clients {
		admitting.Go(func() {
			for n.Add(1) <= int64(b.N) {
				if _, _, err := d.Admit(ctx, "default", &jobs.Spec{Language: "python", Source: "print('hello')"}); err != nil {
					b.Error(err)
					return
				}
				<-ended
			}
		})
	}
	admitting.Wait()
	for events.final.Load() < int64(b.N) {
		time.Sleep(time.Millisecond)
	}
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "jobs/s")
}

func benchWorker(ctx context.Context, b *testing.B, d *dispatcher.Dispatcher, name string, ended chan<- struct{}) {
	room := jobs.Resources{VCPUs: 128, MemoryMiB: 1 << 20}
	beat, err := d.Beat(ctx, jobs.Beat{Worker: name, Capacity: room, Images: []jobs.OfferedImage{{Name: "python", Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 256}}}})
	if err != nil {
		b.Error(err)
		return
	}
	zero := 0
	free := make(chan struct{}, room.VCPUs)
	for range room.VCPUs {
		free <- struct{}{}
	}
	var busy sync.WaitGroup
	defer busy.Wait()
	for ctx.Err() == nil {
		<-free
		slots := 1
	more:
		for {
			select {
			case <-free:
				slots++
			default:
				break more
			}
		}
		reply, err := d.Lease(ctx, jobs.LeaseRequest{Worker: name, Session: beat.Session, Slots: slots, Free: jobs.Resources{VCPUs: slots, MemoryMiB: 1 << 20}, WaitMS: 20_000})
		if err != nil && ctx.Err() == nil {
			b.Error(err)
			return
		}
		for range slots - len(reply.Leases) {
			free <- struct{}{}
		}
		for _, l := range reply.Leases {
			busy.Go(func() {
				_, err := d.Report(ctx, jobs.Report{Worker: name, Session: beat.Session, Held: l.Held, Events: 3, Result: jobs.Result{Ending: jobs.Exited, ExitCode: &zero, Worker: name,
					Steps: []jobs.StepResult{{Name: "0", Ending: jobs.Exited, ExitCode: &zero, Stdout: jobs.Output{Content: jobs.Content{Text: "hello\n"}, Bytes: 6}}}}})
				if err != nil && ctx.Err() == nil {
					b.Error(err)
				}
				free <- struct{}{}
				ended <- struct{}{}
			})
		}
	}
}

// BenchmarkDependents is how long it takes from the end of a job until many that depend on it are given to a worker: the time is one of them's.
func BenchmarkDependents(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 20_000} {
		b.Run("n="+strconv.Itoa(n), func(b *testing.B) {
			for b.Loop() {
				benchmarkDependents(b, n)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n), "µs/dependent")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func benchmarkDependents(b *testing.B, n int) {
	b.StopTimer()
	defer b.StartTimer()
	ctx, stop := context.WithCancel(b.Context())
	store, err := sqlite.Open(ctx, filepath.Join(b.TempDir(), "ledger.db"))
	if err != nil {
		b.Fatal(err)
	}
	d, err := dispatcher.New(dispatcher.Config{Store: store, Events: &nowhere{}, MaxQueued: 2 * n})
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
	ok := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	beat, err := d.Beat(ctx, jobs.Beat{Worker: "a", Capacity: size, Images: []jobs.OfferedImage{{Name: "base", Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 256}}}})
	ok(err)
	first, _, err := d.Admit(ctx, "t", spec())
	ok(err)
	common, err := json.Marshal(after(first.ID))
	ok(err)
	for left := n; left > 0; left -= jobs.MaxBatch {
		_, err := d.AdmitBatch(ctx, "t", &jobs.BatchRequest{Defaults: common, Jobs: bodies(slices.Repeat([]string{`{}`}, min(left, jobs.MaxBatch))...)})
		ok(err)
	}
	lease := func(slots int) []jobs.Lease {
		free := jobs.Resources{VCPUs: 2 * n, MemoryMiB: 2 * n * size.MemoryMiB}
		reply, err := d.Lease(ctx, jobs.LeaseRequest{Worker: "a", Session: beat.Session, Slots: slots, Free: free, WaitMS: 60_000})
		ok(err)
		return reply.Leases
	}
	l := lease(1)[0]
	zero := 0
	b.StartTimer()
	_, err = d.Report(ctx, jobs.Report{Worker: "a", Session: beat.Session, Held: l.Held, Result: jobs.Result{Ending: jobs.Exited, ExitCode: &zero}})
	ok(err)
	for left := n; left > 0; {
		left -= len(lease(left))
	}
	b.StopTimer()
}
