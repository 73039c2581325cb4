// Package match decides which worker gets which job. It is pure: no clock, no I/O, the same input gives the same output. Jobs go by
// priority, then by age; of the workers that can take a job, one with a ready machine of its image is preferred.
package match

import (
	"slices"
	"strings"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Item is a queued job.
type Item struct {
	ID, Image string
	Priority  int // 0 to 9, 9 first
	Resources jobs.Resources
	// Network is what a worker has to offer of networks, joined by commas; empty for nothing.
	Network string
	// NotBefore is the earliest time for it.
	NotBefore time.Time
	// Avoid is a worker that should not get it before AvoidUntil while others could.
	Avoid      string
	AvoidUntil time.Time
}

// Worker is a worker that waits for jobs.
type Worker struct {
	Name  string
	Slots int
	Free  jobs.Resources
	Warm  map[string]int
	// Images that it can run; nil means every image.
	Images map[string]jobs.Resources
	// Networks is what it offers of networks.
	Networks []string
}

// Assignment is a job for a worker: the index in the workers that Match was given.
type Assignment struct {
	Item   Item
	Worker int
}

// Match takes out of the queue what the workers can take, and reduces their slots and resources by it. others tells whether a worker
// besides the named one is alive and could run the item, free or not; it may look at the item's image, resources and network only. next is when
// time changes what may be matched; zero for never.
func (q *Queue) Match(now time.Time, workers []Worker, others func(besides string, i Item) bool) (out []Assignment, next time.Time) {
	q.advance(now)
	slots := 0
	for _, w := range workers {
		slots += max(w.Slots, 0)
	}
	var passed []*line // nobody can take these; workers have only less and less while they are matched
	for slots > 0 && q.heads.Len() > 0 {
		l := q.heads.list[0]
		p := l.items.list[0]
		w := best(p.Item, l.avoid, workers, others)
		if w < 0 {
			q.heads.remove(l)
			passed = append(passed, l)
			continue
		}
		workers[w].take(p.Image, sizeOf(p.Item, &workers[w]))
		slots--
		q.Remove(p.ID)
		out = append(out, Assignment{p.Item, w})
	}
	for _, l := range passed {
		q.heads.add(l)
	}
	if q.later.Len() > 0 {
		next = q.later.list[0].until
	}
	return out, next
}

// best gives the worker for an item: one with a warm machine, else the one with most room; -1 for none.
func best(i Item, avoid string, workers []Worker, others func(string, Item) bool) int {
	found := -1
	for n := range workers {
		w := &workers[n]
		if !w.Fits(i) || w.Name == avoid && others(w.Name, i) {
			continue
		}
		if found < 0 || better(i.Image, w, &workers[found]) {
			found = n
		}
	}
	return found
}

func better(image string, a, b *Worker) bool {
	if warmA, warmB := a.Warm[image] > 0, b.Warm[image] > 0; warmA != warmB {
		return warmA
	}
	return a.Slots > b.Slots
}

// Fits tells whether the worker has the image, the network, a slot and the room for an item.
func (w *Worker) Fits(i Item) bool {
	if i.Network != "" {
		for need := range strings.SplitSeq(i.Network, ",") {
			if !slices.Contains(w.Networks, need) {
				return false
			}
		}
	}
	if w.Images != nil {
		if _, ok := w.Images[i.Image]; !ok {
			return false
		}
	}
	size := sizeOf(i, w)
	return w.Slots > 0 && w.Free.VCPUs >= size.VCPUs && w.Free.MemoryMiB >= size.MemoryMiB
}

// sizeOf is the machine's size: the item's, else the image's on that worker, else the least.
func sizeOf(i Item, w *Worker) jobs.Resources {
	d := w.Images[i.Image]
	r := i.Resources
	if r.VCPUs == 0 {
		r.VCPUs = max(d.VCPUs, 1)
	}
	if r.MemoryMiB == 0 {
		r.MemoryMiB = max(d.MemoryMiB, 1)
	}
	return r
}

func (w *Worker) take(image string, r jobs.Resources) {
	w.Slots--
	w.Free.VCPUs -= r.VCPUs
	w.Free.MemoryMiB -= r.MemoryMiB
	if w.Warm[image] > 0 {
		w.Warm[image]--
	}
}
