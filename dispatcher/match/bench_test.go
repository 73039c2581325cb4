package match_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/paddockvm/paddock/dispatcher/match"
	"github.com/paddockvm/paddock/jobs"
)

const benchTenants = 10_000

// fill queues n items of so many tenants, and gives what each takes of memory, its id with it.
func fill(n, tenants int, like func(n int) match.Item) (q *match.Queue, bytes float64) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	q = match.New(match.Config{})
	for n := range n {
		q.Push(benchItem(n, tenants, like))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	return q, float64(after.HeapAlloc-before.HeapAlloc) / float64(n)
}

func benchItem(n, tenants int, like func(n int) match.Item) match.Item {
	i := like(n)
	i.ID, i.Tenant, i.Since = fmt.Sprintf("0199f6c2-7d2f-7000-8000-%012d", n), fmt.Sprint("tenant-", i.Image, i.Concurrency.Key, n%tenants), now
	return i
}

func alike(n int) match.Item { return match.Item{Image: "python", Priority: n % 10} }

// run measures matches that give one item each, of which the one before the last hundred then ends, and another comes: the queue keeps its
// length.
func run(b *testing.B, q *match.Queue, n, tenants int, like func(n int) match.Item) {
	workers := []match.Worker{{Name: "a", Images: map[string]jobs.Resources{"python": {VCPUs: 1, MemoryMiB: 256}}, Capacity: room}}
	held := make(chan string, 100)
	for b.Loop() {
		workers[0].Slots, workers[0].Free = 1, room
		out, _ := q.Match(now, workers, nil)
		if len(out) != 1 {
			b.Fatalf("%d items were matched, want one", len(out))
		}
		if held <- out[0].ID; len(held) == cap(held) {
			q.Release(<-held)
		}
		q.Push(benchItem(n, tenants, like))
		n++
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "matches/s")
}

// BenchmarkMatch is one item for one slot, out of queues of many lengths.
func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint("queued=", n), func(b *testing.B) {
			tenants := min(n, benchTenants)
			q, bytes := fill(n, tenants, alike)
			run(b, q, n, tenants, alike)
			b.ReportMetric(bytes, "B/queued")
		})
	}
}

// BenchmarkMatchBlocked is the same where all else waits: many tenants for an image that nobody offers, one for room with a thousand kinds
// of items, or a kind each, many for their keys.
func BenchmarkMatchBlocked(b *testing.B) {
	for name, tt := range map[string]struct {
		tenants int
		like    func(n int) match.Item
	}{
		"tenants": {benchTenants, func(int) match.Item { return match.Item{Image: "windows"} }},
		"kinds": {1, func(n int) match.Item {
			return match.Item{Resources: jobs.Resources{VCPUs: 100, MemoryMiB: 1 + n%1000}}
		}},
		"a kind each": {1, func(n int) match.Item {
			return match.Item{Resources: jobs.Resources{VCPUs: 100, MemoryMiB: 1 + n}}
		}},
		"keys": {10, func(n int) match.Item {
			return match.Item{Image: "python", Concurrency: jobs.Concurrency{Key: fmt.Sprint("key-", n%10), Limit: 1}}
		}},
	} {
		b.Run(name, func(b *testing.B) {
			const n = 100_000
			q, _ := fill(n, tt.tenants, tt.like)
			for key := range 10 {
				held := tt.like(key)
				held.ID, held.Tenant, held.Resources = fmt.Sprint("held-", key), fmt.Sprint("tenant-", held.Image, held.Concurrency.Key, key), jobs.Resources{VCPUs: 1, MemoryMiB: 1}
				q.Hold(held, "a")
			}
			q.Push(benchItem(n, benchTenants, alike))
			run(b, q, n+1, benchTenants, alike)
		})
	}
}

// BenchmarkMatchKinds is one tenant of a thousand images beside others, all of which may go.
func BenchmarkMatchKinds(b *testing.B) {
	const n = 100_000
	like := func(n int) match.Item {
		return match.Item{Image: "python", Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 1 + n%1000}}
	}
	q, _ := fill(n, 1, like)
	run(b, q, n, 1, like)
}

// BenchmarkMatchFleet gives an item each to a thousand workers that ask, and say of which templates they have or nothing of them.
func BenchmarkMatchFleet(b *testing.B) {
	for name, templates := range map[string]map[string][]jobs.Shape{
		"untold": nil,
		"told":   {"python": {{Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 512}}, {Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 256}}}},
	} {
		b.Run(name, func(b *testing.B) {
			const n, tenants = 10_000, 100
			q, _ := fill(n, tenants, alike)
			workers := make([]match.Worker, 1000)
			given := 0
			for b.Loop() {
				for i := range workers {
					workers[i] = match.Worker{
						Name: fmt.Sprint(i), Slots: 1, Free: room, Capacity: room, Templates: templates,
						Images: map[string]jobs.Resources{"python": {VCPUs: 1, MemoryMiB: 256}},
					}
				}
				out, _ := q.Match(now, workers, nil)
				for _, a := range out {
					q.Release(a.ID)
					q.Push(benchItem(n+given, tenants, alike))
					given++
				}
			}
			b.ReportMetric(float64(given)/b.Elapsed().Seconds(), "matches/s")
		})
	}
}
