package bus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// Storing events durably, as 64 workers' attempts and the dispatcher's outbox do it: every write is synced.
func BenchmarkPublish(b *testing.B) {
	for name, n := range map[string]int64{"events=1": 1, "events=3": 3} {
		b.Run(name, func(b *testing.B) {
			bus := bustest.Start(b).Connect()
			b.SetParallelism(64)
			b.ReportAllocs()
			var published atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := bus.Publish(b.Context(), series(jobs.NewID(), 1, 1, n)...); err != nil {
						b.Error(err)
					}
					published.Add(n)
				}
			})
			b.ReportMetric(float64(published.Load())/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// What it costs those who publish that others read 10 MB of a job's output again and again, and what one such reading takes.
func BenchmarkReplay(b *testing.B) {
	for _, readers := range []int{0, 1, 4} {
		b.Run(fmt.Sprintf("readers=%d", readers), func(b *testing.B) {
			server, brain := bustest.Start(b), &bustest.Brain{}
			bus := server.Connect()
			bustest.Serve(b, bus, brain)
			long, other := brain.Add("default"), brain.Add("default")
			chunk := strings.Repeat("o", 32<<10)
			for seq := int64(1); seq <= 320; seq++ {
				bustest.Publish(b, bus, bustest.Event(long, 1, seq, chunk))
			}
			ctx, stop := context.WithCancel(b.Context())
			var reading sync.WaitGroup
			var took, times atomic.Int64
			for range readers {
				nc := server.Plain()
				reading.Go(func() {
					for ctx.Err() == nil {
						t := time.Now()
						if err := readAll(ctx, nc, long, 320); err != nil && ctx.Err() == nil {
							b.Error(err)
							return
						}
						took.Add(int64(time.Since(t)))
						times.Add(1)
					}
				})
			}
			var each []time.Duration
			b.ResetTimer()
			for i := range b.N {
				t := time.Now()
				bustest.Publish(b, bus, bustest.Event(other, 1, int64(i+1), "x"))
				each = append(each, time.Since(t))
			}
			b.StopTimer()
			stop()
			reading.Wait()
			slices.Sort(each)
			b.ReportMetric(float64(each[len(each)/2].Microseconds()), "p50-µs/publish")
			b.ReportMetric(float64(each[len(each)*99/100].Microseconds()), "p99-µs/publish")
			if n := times.Load(); n > 0 {
				b.ReportMetric(float64(took.Load())/float64(n)/1e6, "ms/10MB")
			}
		})
	}
}

func readAll(ctx context.Context, nc *nats.Conn, job string, want int) error {
	for q := (jobs.ReplayRequest{Job: job}); ; {
		body, err := json.Marshal(q)
		if err != nil {
			return err
		}
		m, err := nc.RequestWithContext(ctx, jobs.ReplaySubject("default"), body)
		if err != nil {
			return err
		}
		var reply struct {
			Events []json.RawMessage
			Next   jobs.Position
			More   bool
			Error  *jobs.Error
		}
		if err := json.Unmarshal(m.Data, &reply); err != nil {
			return err
		}
		if reply.Error != nil {
			return reply.Error
		}
		if want -= len(reply.Events); !reply.More {
			if want != 0 {
				return fmt.Errorf("%d events are missing", want)
			}
			return nil
		}
		q.After = reply.Next
	}
}
