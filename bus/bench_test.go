package bus_test

import (
	"sync/atomic"
	"testing"

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
