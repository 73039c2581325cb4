// Package match decides which worker gets which job. It is pure: no clock, no I/O, the same input gives the same output. Jobs go by
// priority, then by age; of the workers that can take a job, one with a ready machine of its image is preferred.
package match

import (
	"container/list"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Item is a queued job.
type Item struct {
	ID, Image string
	Priority  int // 0 to 9, 9 first
	Resources jobs.Resources
	// Avoid is a worker that should not get it while others can.
	Avoid string
	// NotBefore is the earliest time for it.
	NotBefore time.Time
}

// Worker is a worker that waits for jobs.
type Worker struct {
	Name  string
	Slots int
	Free  jobs.Resources
	Warm  map[string]int
	// Images that it can run; nil means every image.
	Images map[string]jobs.Resources
}

// Assignment is a job for a worker: the index in the workers that Match was given.
type Assignment struct {
	Item   Item
	Worker int
}

const priorities = 10

// Queue holds items in their order. It is not safe for concurrent use.
type Queue struct {
	bands [priorities]list.List
	at    map[string]*list.Element
}

// New gives an empty queue.
func New() *Queue { return &Queue{at: map[string]*list.Element{}} }

// Len is how many items wait.
func (q *Queue) Len() int { return len(q.at) }

// Push adds an item behind those of its priority.
func (q *Queue) Push(i Item) { q.at[i.ID] = q.bands[band(i)].PushBack(i) }

// PushFront adds an item before those of its priority: one that has waited its time already.
func (q *Queue) PushFront(i Item) { q.at[i.ID] = q.bands[band(i)].PushFront(i) }

// Remove takes an item out and tells whether it was in.
func (q *Queue) Remove(id string) bool {
	e := q.at[id]
	if e == nil {
		return false
	}
	q.bands[band(e.Value.(Item))].Remove(e)
	delete(q.at, id)
	return true
}

func band(i Item) int { return priorities - 1 - min(max(i.Priority, 0), priorities-1) }

// maxPassedOver bounds how many items that nobody can take now are looked at: a long queue of large jobs must not make each match slow.
const maxPassedOver = 2000

// Match takes out of the queue what the workers can take, and reduces their slots and resources by it. others tells whether a worker
// besides the named one is alive and could run the item, free or not. next is when the earliest item that was too early may be matched;
// zero for none.
func (q *Queue) Match(now time.Time, workers []Worker, others func(besides string, i Item) bool) (out []Assignment, next time.Time) {
	slots := 0
	for _, w := range workers {
		slots += max(w.Slots, 0)
	}
	passed := 0
	for b := range q.bands {
		for e := q.bands[b].Front(); e != nil && slots > 0 && passed < maxPassedOver; {
			item, here := e.Value.(Item), e
			e = e.Next()
			if now.Before(item.NotBefore) {
				if next.IsZero() || item.NotBefore.Before(next) {
					next = item.NotBefore
				}
				continue
			}
			w := best(item, workers, others)
			if w < 0 {
				passed++
				continue
			}
			size := sizeOf(item, &workers[w])
			workers[w].take(item.Image, size)
			slots--
			q.bands[b].Remove(here)
			delete(q.at, item.ID)
			out = append(out, Assignment{item, w})
		}
	}
	return out, next
}

// best gives the worker for an item: one with a warm machine, else the one with most room; -1 for none.
func best(i Item, workers []Worker, others func(string, Item) bool) int {
	found := -1
	for n := range workers {
		w := &workers[n]
		if !w.Fits(i) || w.Name == i.Avoid && others(w.Name, i) {
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

// Fits tells whether the worker has the image, a slot and the room for an item.
func (w *Worker) Fits(i Item) bool {
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
