package dispatcher

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// awaitLooks is how often Await reads the ledger besides: an end that memory was not told of is found by then.
const awaitLooks = 5 * time.Second

// awaited is a job whose end somebody waits for.
type awaited struct {
	ended chan struct{} // closed at the end
	by    int
}

// Await blocks until a job of a tenant has ended, and gives it, with its result. An error is a *jobs.Error, or ctx's cause.
func (d *Dispatcher) Await(ctx context.Context, tenant, id string) (jobs.Job, error) {
	if err := d.ready(ctx); err != nil {
		return jobs.Job{}, err
	}
	ended, done := d.await(id)
	defer done()
	look := time.NewTicker(awaitLooks)
	defer look.Stop()
	for {
		j, err := d.Get(ctx, tenant, id)
		if err != nil || j.State.Terminal() {
			return j, err
		}
		select {
		case <-ended:
			ended = nil // the ledger has it
		case <-look.C:
		case <-ctx.Done():
			return j, context.Cause(ctx)
		}
	}
}

// await gives a channel that is closed when the job ends.
func (d *Dispatcher) await(id string) (ended <-chan struct{}, done func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.awaits[id]
	if a == nil {
		a = &awaited{ended: make(chan struct{})}
		d.awaits[id] = a
	}
	a.by++
	return a.ended, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if a.by--; a.by == 0 && d.awaits[id] == a {
			delete(d.awaits, id)
		}
	}
}

// gone takes a job that has ended out of memory, and wakes those who wait for its end; d.mu is held.
func (d *Dispatcher) gone(id string) {
	if e := d.entries[id]; e != nil {
		if e.State == jobs.StateQueued {
			d.waits(e, -1)
		}
		d.unblock(e)
		delete(d.entries, id)
		delete(d.held, id)
		if e.Batch != "" {
			d.moved[e.Batch] = e.Tenant
			d.movedOn.set()
		}
	}
	d.queue.Remove(id)
	d.queue.Release(id)
	if l := d.dependents[id]; len(l) > 0 {
		d.lookAt(slices.Collect(maps.Keys(l))...)
	}
	if a := d.awaits[id]; a != nil {
		close(a.ended)
		delete(d.awaits, id)
	}
}
