// Package match decides which worker gets which job, and when. It is pure: it has no clock and does no I/O; the same calls in the same
// order give the same answers. It imports jobs only.
//
// # Whose turn it is
//
// Each pool of workers has a round of its own, of the tenants that have something to run there. It is a deficit round robin that goes
// item by item: each tenant has an account of the processors that it was given, over its weight; the one with the least goes next, and
// among equals the one whose last turn is longest ago. Nobody saves up: who comes, or could not be served, begins where the round stands,
// with no more credit than the others. So a tenant that had nothing before is next, however much others have queued.
//
// An item costs its virtual processors and not 1: they are what a host has least of, and a tenant that asks for large machines would
// have a multiple of the others' share. It does not cost its time, which nobody knows before; Share.MaxRunning and the like are against
// tenants whose jobs are long.
//
// # Which of a tenant's jobs
//
// Priority orders the jobs of one tenant and does nothing between tenants. It is worth waiting time: an item stands among its tenant's
// like one that came AgeStep earlier for each step of its priority. So bands are strict for those that come together, every item is
// promoted one band each AgeStep, and none starves; the order of two items never changes, and a heap keeps it. No band needs a reserve.
//
// An item that cannot go now, because no worker that asks can take it, because its tenant is at a cap or its concurrency key at its
// limit, does not hold up those after it.
//
// # Which worker
//
// One with a ready machine of the image, then one that has the template of the machine, then one that has to build it; of those the fullest,
// that is the one of which the scarcer of processors and memory would have the least left (large room is kept together for large jobs);
// then the one with the fewest jobs of the tenant; then the one with most slots. Workers where attempts have failed are avoided for a
// while, all of them, as long as others could take the item.
//
// An item that only cold workers could take waits for a warm one that is busy, but not longer than Config.WarmWait from when it could
// first have run; and one that only workers without the template could take for one that has it, for Config.TemplateWait. Items that come
// while others of their tenant and kind wait are not held up any more: under load no slot stays empty. Nor is one that is in a hurry.
//
// An item for which no worker has had the room for Config.ReserveAfter has one reserved: that worker gets nothing else until the item
// fits, but items of tenants whose turn was before, once as many as fill it: who comes with a single one does not wait for the large item
// too. There is one reservation in a pool at a time, so a tenant of large jobs empties one host and not the fleet.
//
// # What it costs
//
// Items that are the same to every worker are a kind. A match looks at a kind once, however many items and tenants it has; where nobody
// can take it, at nothing else of it. So time grows with the kinds that are blocked, of one tenant's with 256 at most, and with the logarithm of items
// and tenants: behind those 256 the next matches look, each a few milliseconds later. What
// waits for a cap or a key is not looked at until an attempt that counts has ended.
package match

import (
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Config is what a Queue goes by. The zero value treats all tenants alike, sets no caps and holds nothing up.
type Config struct {
	// Share gives a tenant's share; nil gives everybody the zero Share. It is asked when a tenant comes into the queue that is not in it.
	Share func(tenant string) Share
	// AgeStep is how much waiting one step of priority is worth; 0 means 30 s.
	AgeStep time.Duration
	// WarmWait is how long an item of an image may be held up for a worker that has a ready machine of it and is busy: less than making one
	// takes. nil means not at all. It gives the same for the same image.
	WarmWait func(image string) time.Duration
	// TemplateWait is how long an item may be held up for a worker that has the template of its machine and is busy, where others would
	// have to build it: less than that takes. 0 means not at all.
	TemplateWait time.Duration
	// ReserveAfter is how long an item waits for room before a worker is reserved for it; 0 means 30 s, less than 0 never.
	ReserveAfter time.Duration
}

// Share is what a tenant may have. The caps are of what runs at once, and 0 is no cap.
type Share struct {
	// Weight is the tenant's part of the processors beside other tenants'; 0 means 1, and more than 1,000,000 that.
	Weight                             int
	MaxRunning, MaxVCPUs, MaxMemoryMiB int
}

// Item is a job that waits for a worker.
type Item struct {
	ID, Tenant string
	// Pool is the workers' that may get it; empty means jobs.DefaultPool.
	Pool, Image string
	Priority    int // 0 to 9, 9 first
	Resources   jobs.Resources
	// Network is what a worker has to offer of networks, joined by commas; empty for nothing.
	Network string
	// Requires are the labels that a worker must have, as jobs.Required gives them.
	Requires string
	// Concurrency bounds how many of the tenant's items with its key are held at once; without a key nothing does.
	Concurrency jobs.Concurrency
	// Since is when it came: it stands before those of its tenant and priority that came later, also when it comes again.
	Since time.Time
	// NotBefore is the earliest time for it.
	NotBefore time.Time
	// Avoid are workers that should not get it before AvoidUntil while others could.
	Avoid      []string
	AvoidUntil time.Time
	// Hurry says that it is not held up for a better worker than there is.
	Hurry bool
}

// Worker is a worker: one that asks for items, or one of the fleet.
type Worker struct {
	Name string
	// Pool is the worker's; empty means jobs.DefaultPool.
	Pool string
	// Labels are what items may require.
	Labels map[string]string
	// Slots is how many items it takes; of one that asks.
	Slots int
	// Free is what it has left, of one that asks; Capacity is all that it has.
	Free, Capacity jobs.Resources
	// Warm counts its ready machines by image; of one that does not ask, as it was last told.
	Warm map[string]int
	// Templates are the shapes of machines of which it has the template, by image but for snapshots, which are templates; nil where it does not
	// say: then it may have all, but is not waited for.
	Templates map[string][]jobs.Shape
	// Images that it can run, with their sizes; nil means every image.
	Images map[string]jobs.Resources
	// Networks is what it offers of networks.
	Networks []string
	// Draining says that it takes no more.
	Draining bool
}

// Assignment is an item for a worker: the index in the workers that Match was given.
type Assignment struct {
	ID     string
	Worker int
}

// Match takes out of the queue what the workers that ask can take, and reduces their Slots, Free and Warm by it. What it gives is held, as
// by Hold, until Release. fleet gives all workers that live, those that ask among them, in any order; it is called once at
// most, where something depends on it, and nil means that there are no others. next is when time changes what may be matched; zero for
// never.
func (q *Queue) Match(now time.Time, asking []Worker, fleet func() []Worker) (out []Assignment, next time.Time) {
	q.advance(stamp(now))
	q.round++
	r := &round{Queue: q, now: stamp(now), asking: asking, fleetOf: fleet}
	r.measure()
	for n := range asking {
		if p := q.pools[poolName(asking[n].Pool)]; p != nil && p.round != q.round {
			p.round = q.round
			r.serve(p)
		}
	}
	if q.later.Len() > 0 {
		r.comeBack(q.later.list[0].late.until)
	}
	if r.next > 0 {
		next = time.Unix(0, r.next).UTC()
	}
	return r.out, next
}

// stamp is a time as the queue counts it, in nanoseconds; the zero time comes before all.
func stamp(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func poolName(name string) string {
	if name == "" {
		return jobs.DefaultPool
	}
	return name
}
