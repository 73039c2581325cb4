package dispatcher

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// A job that depends on others stands before the matcher only after all of them have ended well. How they have ended is asked of the
// ledger, when it comes into memory and whenever one of them ends: there is one way, whatever was missed.

// block has a job wait for those that it depends on; d.mu is held.
func (d *Dispatcher) block(e *ledger.Entry) {
	d.blocked[e.ID] = e
	d.unmet[e.ID] = slices.Clone(e.DependsOn)
	for _, on := range e.DependsOn {
		if d.dependents[on] == nil {
			d.dependents[on] = map[string]bool{}
		}
		d.dependents[on][e.ID] = true
	}
	d.lookAt(e.ID)
}

// lookAt has blocked jobs looked at; d.mu is held.
func (d *Dispatcher) lookAt(ids ...string) {
	d.suspect = append(d.suspect, ids...)
	d.suspected.set()
}

// unblock takes a job from among the blocked; d.mu is held.
func (d *Dispatcher) unblock(e *ledger.Entry) {
	if d.blocked[e.ID] != e {
		return
	}
	delete(d.blocked, e.ID)
	delete(d.unmet, e.ID)
	for _, on := range e.DependsOn {
		if delete(d.dependents[on], e.ID); len(d.dependents[on]) == 0 {
			delete(d.dependents, on)
		}
	}
	d.noteEnd(e, time.Now())
}

// dependencyRetry is the pause after the ledger has not told.
const dependencyRetry = time.Second

// depend looks at blocked jobs until ctx ends.
func (d *Dispatcher) depend(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.suspected:
		}
		for tenant, list := range d.suspects() {
			if err := d.release(ctx, tenant, list); err != nil && ctx.Err() == nil {
				zerolog.Ctx(ctx).Error().Err(err).Msg("look at dependencies")
				pause(ctx, dependencyRetry)
				d.mu.Lock()
				for _, s := range list {
					d.lookAt(s.ID)
				}
				d.mu.Unlock()
			}
		}
	}
}

// suspect is a blocked job that is to be looked at: by those that it depends on which may have ended since it was.
type suspect struct {
	ledger.Entry
	ended []string
}

// suspects gives the blocked jobs that are to be looked at, by tenant. What memory has open is not asked for: each job is asked for once by
// each that depends on it, however many others that has.
func (d *Dispatcher) suspects() map[string][]suspect {
	d.mu.Lock()
	defer d.mu.Unlock()
	l, seen := map[string][]suspect{}, map[string]bool{}
	list := d.suspect
	d.suspect = nil
	for n, id := range list {
		d.breathe(n)
		e := d.blocked[id]
		if e == nil || seen[id] {
			continue
		}
		seen[id] = true
		s := suspect{Entry: *e}
		for _, on := range d.unmet[id] {
			if o := d.entries[on]; o == nil || o.Tenant != e.Tenant {
				s.ended = append(s.ended, on)
			}
		}
		if len(s.ended) > 0 {
			l[e.Tenant] = append(l[e.Tenant], s)
		}
	}
	return l
}

// dependentsAtOnce is how many blocked jobs are looked at, or let go on, before others have their turn: each may depend on many, and tens of
// thousands on the same.
const dependentsAtOnce = 100

// breathe lets others have their turn after so many of a list, of which the n-th is next; d.mu is held, but not all the time.
func (d *Dispatcher) breathe(n int) {
	if n%dependentsAtOnce == dependentsAtOnce-1 {
		d.mu.Unlock()
		d.mu.Lock()
	}
}

// release asks how the jobs that a tenant's jobs depend on have ended, and lets those go on that may, or ends them.
func (d *Dispatcher) release(ctx context.Context, tenant string, list []suspect) error {
	var ids []string
	for _, s := range list {
		ids = append(ids, s.ended...)
	}
	slices.Sort(ids)
	outcomes, err := d.cfg.Store.Outcomes(ctx, tenant, slices.Compact(ids))
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(overdueAtOnce)
	met := map[string][]string{}
	for _, s := range list {
		failed := ""
		for _, on := range s.ended {
			switch o, known := outcomes[on]; {
			case !known:
				failed = fmt.Sprintf("the job %s, which it depends on, is not kept any more", on)
			case o.Open:
			case !o.OK:
				failed = fmt.Sprintf("the job %s, which it depends on, did not end with the exit code 0", on)
			default:
				met[s.ID] = append(met[s.ID], on)
			}
		}
		if failed != "" {
			delete(met, s.ID)
			g.Go(func() error { return d.endQueued(ctx, s.Entry, jobs.DependencyFailed, failed) })
		}
	}
	d.free(met)
	return g.Wait() // then all are looked at again
}

// free notes which jobs that others depend on have ended well, and puts those before the matcher that wait for no more. Their queue TTL counts
// from now: they could not run before.
func (d *Dispatcher) free(met map[string][]string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for n, id := range slices.Sorted(maps.Keys(met)) {
		d.breathe(n)
		e := d.blocked[id]
		if e == nil {
			continue
		}
		left := slices.DeleteFunc(d.unmet[id], func(on string) bool { return slices.Contains(met[id], on) })
		if d.unmet[id] = left; len(left) > 0 {
			continue
		}
		d.unblock(e)
		ttl := e.ExpiresAt.Sub(later(e.AcceptedAt, e.NotBefore))
		e.ExpiresAt = later(now, e.NotBefore).Add(ttl)
		d.queue.Push(item(e))
	}
	d.match()
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// known tells which of a tenant's jobs the ledger has.
func (d *Dispatcher) known(ctx context.Context, tenant string, ids []string) (map[string]bool, error) {
	if len(ids) == 0 {
		return nil, nil //nolint:nilnil // of none, none
	}
	ids = slices.Clone(ids)
	slices.Sort(ids)
	outcomes, err := d.cfg.Store.Outcomes(ctx, tenant, slices.Compact(ids))
	if err != nil {
		return nil, d.broken(ctx, "look up dependencies", err)
	}
	known := make(map[string]bool, len(outcomes))
	for id := range outcomes {
		known[id] = true
	}
	return known, nil
}

// dependencies refuses a spec that depends on what is not there: nobody could tell later whether it ever was.
func dependencies(s *jobs.Spec, known func(id string) bool) error {
	var faults []jobs.Fault
	for i, on := range s.DependsOn {
		if !known(on) {
			faults = append(faults, jobs.Fault{Path: fmt.Sprintf("depends_on[%d]", i), Message: "no job " + on})
		}
	}
	if len(faults) > 0 {
		return invalid(faults...)
	}
	return nil
}
