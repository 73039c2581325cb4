package match_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher/match"
	"github.com/paddockvm/paddock/jobs"
)

// distinct queues n items of a tenant, each of a size of its own that nobody has the room for.
func distinct(q *match.Queue, tenant string, n int) {
	for i := range n {
		q.Push(match.Item{ID: fmt.Sprint(tenant, i), Tenant: tenant, Image: "python", Since: now, Resources: jobs.Resources{VCPUs: 1, MemoryMiB: room.MemoryMiB + 1 + i}})
	}
}

// One tenant's many kinds of items that cannot go are looked at in parts: another's goes at once, and its own that can go, behind all of them, soon.
func TestLookedAtInParts(t *testing.T) {
	const kinds, parts = 10_000, 40 // 256 at a time
	q := match.New(match.Config{ReserveAfter: -1})
	distinct(q, "a", kinds)
	small := jobs.Resources{VCPUs: 1, MemoryMiB: 256}
	last := match.Item{ID: "last", Tenant: "a", Image: "python", Since: now.Add(time.Second), Resources: small}
	q.Push(last)
	q.Push(match.Item{ID: "other", Tenant: "b", Image: "python", Since: now.Add(time.Second), Resources: small})
	at := now.Add(time.Minute)
	ask := func() (ids []string, next time.Time) {
		out, next := q.Match(at, []match.Worker{{Name: "w", Slots: 8, Free: room, Capacity: room}}, nil)
		for _, a := range out {
			ids = append(ids, a.ID)
		}
		return ids, next
	}
	if ids, _ := ask(); len(ids) != 1 || ids[0] != "other" {
		t.Fatalf("the first match gives %v, want the other tenant's", ids)
	}
	// until matches until an item goes, or until there is no reason to match again.
	until := func() (ids []string, matches int) {
		for len(ids) == 0 {
			var next time.Time
			ids, next = ask()
			matches++
			switch {
			case len(ids) > 0 || next.IsZero():
				return ids, matches
			case next.Sub(at) <= 0 || next.Sub(at) > 10*time.Millisecond || matches > 2*parts:
				t.Fatalf("after %d matches the next is to be %v later", matches, next.Sub(at))
			}
			at = next
		}
		return ids, matches
	}
	for range 3 { // and again, when it comes again
		ids, n := until()
		if len(ids) != 1 || ids[0] != "last" || n > parts+1 {
			t.Fatalf("%v is given after %d matches, want the last", ids, n)
		}
		if ids, n = until(); len(ids) != 0 || n > parts+1 {
			t.Fatalf("%v is given after %d matches, want nothing more, and an end", ids, n)
		}
		q.Release("last")
		q.Push(last)
	}
}

// However few are looked at in a match: when there is no reason to match again, nothing is left that could go; whatever comes, ends and is removed
// while some of what waits is aside.
func TestNothingStaysAside(t *testing.T) {
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		q := match.New(match.Config{ReserveAfter: -1})
		q.LookAt(1 + rnd.IntN(4))
		at := now
		waiting, held := map[string]int{}, map[string]int{} // memory, by id
		free := 1000
		for n := range 60 {
			at = at.Add(time.Millisecond)
			for id, size := range held { // any of them
				if rnd.IntN(4) == 0 {
					q.Release(id)
					delete(held, id)
					free += size
				}
				break
			}
			for id := range waiting {
				if rnd.IntN(8) == 0 {
					q.Remove(id)
					delete(waiting, id)
				}
				break
			}
			for range rnd.IntN(4) {
				id, size := fmt.Sprint(n, "-", len(waiting)), 100+10*rnd.IntN(120)
				q.Push(match.Item{ID: id, Tenant: fmt.Sprint(rnd.IntN(2)), Image: "python", Since: at, Resources: jobs.Resources{VCPUs: 1, MemoryMiB: size}})
				waiting[id] = size
			}
			for quiet := rnd.IntN(3) > 0; ; { // sometimes only one match
				w := []match.Worker{{Name: "w", Slots: 4, Free: jobs.Resources{VCPUs: 99, MemoryMiB: free}, Capacity: jobs.Resources{VCPUs: 99, MemoryMiB: 1000}}}
				out, next := q.Match(at, w, nil)
				for _, a := range out {
					free -= waiting[a.ID]
					held[a.ID] = waiting[a.ID]
					delete(waiting, a.ID)
				}
				if free != w[0].Free.MemoryMiB || free < 0 {
					t.Fatalf("seed %d: the worker has %d left, want %d", seed, w[0].Free.MemoryMiB, free)
				}
				if !quiet {
					break
				}
				if !next.IsZero() {
					at = next
					continue
				}
				if len(out) > 0 { // it may have run out of slots
					continue
				}
				for id, size := range waiting {
					if size <= free {
						t.Fatalf("seed %d: %s, of %d MiB, waits though %d are free", seed, id, size, free)
					}
				}
				break
			}
		}
		if len(waiting) != q.Len() {
			t.Fatalf("seed %d: %d wait, want %d", seed, q.Len(), len(waiting))
		}
	}
}
