package dispatcher

import (
	"context"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

const (
	// maxOverdue bounds what one round of reconcile ends: a lost worker is noticed in time, however many jobs run out at once.
	maxOverdue = 256
	// overdueAtOnce of them are ended at once, so that the ledger commits them together.
	overdueAtOnce = 64
	// retryTTL is how long a job may wait for another attempt, from when that may begin. Its queue TTL is for the first one: a short one
	// would have our own failures end jobs.
	retryTTL = 24 * time.Hour
)

// overdue is a job that nobody reports: an attempt that its worker has lost, or a queued job that is to end.
type overdue struct {
	ledger.Entry
	ending jobs.Ending
	why    string
}

// evicted is no ending of a job: its attempt is given to others.
const evicted jobs.Ending = "evicted"

// reconcile looks after what nobody reports: workers that have gone, jobs that have waited too long.
func (d *Dispatcher) reconcile(ctx context.Context) error {
	tick := time.NewTicker(min(time.Second, d.cfg.LeaseTTL/4))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		d.followClock(ctx)
		if !d.hears() {
			continue
		}
		if err := d.resolve(ctx); err != nil && ctx.Err() == nil {
			zerolog.Ctx(ctx).Error().Err(err).Msg("read the ledger again") // the next tick tries again
		}
		var g errgroup.Group
		g.SetLimit(overdueAtOnce)
		for _, o := range d.due(time.Now()) {
			g.Go(func() error {
				switch o.ending {
				case jobs.WorkerLost:
					d.lose(ctx, o.Entry, o.why)
				case evicted:
					d.evict(ctx, o.Entry, "its worker was drained")
				default:
					_ = d.endQueued(ctx, o.Entry, o.ending, o.why) // it is found due again
				}
				return nil
			})
		}
		_ = g.Wait() // each has handled its own
	}
}

// hears tells whether this dispatcher could have heard of workers, and could do something about those that it has not heard of. Where not,
// the time does not count against them.
func (d *Dispatcher) hears() bool {
	if d.leads() && (d.cfg.Connected == nil || d.cfg.Connected()) {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.workers {
		if !w.lost {
			w.seen = time.Now()
		}
	}
	return false
}

// due finds what is to end: the attempts that their workers have lost first, then queued jobs; a part of them where they are many.
func (d *Dispatcher) due(now time.Time) []overdue {
	d.mu.Lock()
	list := d.dueAttempts(now)
	look := !d.endsFrom.IsZero() && now.After(d.endsFrom)
	d.mu.Unlock()
	if look {
		list = append(list, d.dueQueued(now)...)
	}
	return list[:min(len(list), maxOverdue)]
}

// dueAttempts finds attempts that their workers have lost, or that are to go elsewhere; d.mu is held.
func (d *Dispatcher) dueAttempts(now time.Time) (lost []overdue) {
	gone := false
	for _, w := range d.workers {
		silent := now.Sub(w.seen)
		if !w.lost && silent > d.cfg.LeaseTTL+d.cfg.Grace {
			w.lost, gone = true, true
		}
		if silent > forgetAfter {
			delete(d.workers, w.name)
		}
	}
	d.dismiss()
	if gone {
		d.match() // what was held up for it
	}
	for _, e := range d.held {
		if why := d.lostBy(e); why != "" {
			lost = append(lost, overdue{*e, jobs.WorkerLost, why})
		} else if d.overstays(e, now) {
			lost = append(lost, overstay(e))
		}
	}
	return lost
}

// lookedAtOnce is how many jobs are looked at before others have their turn: a part of a millisecond.
const lookedAtOnce = 1000

// dueQueued finds queued jobs that are to end, maxOverdue of them at most. It looks at all that are queued, which may be a million, and
// finds out when that is worth while again. Jobs that come and go meanwhile note themselves when they end.
func (d *Dispatcher) dueQueued(now time.Time) (due []overdue) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.endsFrom = time.Time{}
	n := 0
	for id, e := range d.entries {
		if n++; n%lookedAtOnce == 0 {
			d.mu.Unlock()
			d.mu.Lock()
			if d.entries[id] != e {
				continue // it has ended since
			}
		}
		d.noteEnd(e, now) // those that are found, too: who ends them may fail
		if at, ends := d.endsAt(e); !ends || !now.After(at) || len(due) == maxOverdue {
			continue
		}
		switch {
		case e.Cancel:
			due = append(due, overdue{*e, jobs.Canceled, "canceled before it ran"})
		case e.Attempt == 0:
			due = append(due, overdue{*e, jobs.Expired, "waited longer than its queue TTL"})
		default:
			due = append(due, overdue{*e, jobs.Expired, "waited for another attempt for too long"})
		}
	}
	return due
}

// endsAt gives after which time a job is to end where it is still queued; d.mu is held.
func (d *Dispatcher) endsAt(e *ledger.Entry) (at time.Time, ends bool) {
	switch {
	case e.State != jobs.StateQueued:
		return at, false
	case e.Cancel:
		return e.AcceptedAt, true
	case d.blocked[e.ID] != nil: // what it waits for ends, sooner or later
		return at, false
	case e.Attempt == 0:
		return e.ExpiresAt, true
	}
	return e.NotBefore.Add(retryTTL), true
}

// noteEnd has reconcile look at queued jobs when this one is to end, as it looks now; d.mu is held.
func (d *Dispatcher) noteEnd(e *ledger.Entry, now time.Time) {
	at, ends := d.endsAt(e)
	if !ends {
		return
	}
	at = now.Add(at.Sub(now)) // with a monotonic reading, like the others
	if d.endsFrom.IsZero() || at.Before(d.endsFrom) {
		d.endsFrom = at
	}
}

// overstay says what becomes of an attempt whose worker was drained and has had its time: others are given it, but for one that might act
// there too and is not to be tried again, for its machine goes on where its worker hears of nobody.
func overstay(e *ledger.Entry) overdue {
	if e.Network != "" && e.InfraLeft == 0 {
		return overdue{*e, jobs.WorkerLost, "its worker was drained"}
	}
	return overdue{Entry: *e, ending: evicted}
}

// lostBy says how an attempt's worker has lost it; empty where it has not. d.mu is held.
func (d *Dispatcher) lostBy(e *ledger.Entry) string {
	w := d.workers[e.Worker]
	switch {
	case w == nil || w.lost:
		return "the worker has not been heard of for longer than its lease"
	case w.session != e.Session:
		return "the worker was started anew"
	case !w.waiting && !w.holds[e.ID] && d.leasedFor(e, w.beatAt) > reportWithin:
		return "the lease was lost on its way to the worker"
	}
	return ""
}

// leasedFor is how long an attempt has been leased at a time, as far as this dispatcher can know: one that was leased in the future was so by a
// clock that was ahead.
func (d *Dispatcher) leasedFor(e *ledger.Entry, at time.Time) time.Duration {
	if e.LeasedAt.Sub(at) > d.cfg.LeaseTTL+d.cfg.Grace {
		return at.Sub(d.began)
	}
	return at.Sub(e.LeasedAt)
}

const (
	// forgetEvery and forgetBatch: between batches of that size the ledger commits what others wait for.
	forgetEvery = time.Minute
	forgetBatch = 500
)

// forget deletes what ended long ago from the ledger, and forgets who has gone, until ctx ends.
func (d *Dispatcher) forget(ctx context.Context) error {
	tick := time.NewTicker(forgetEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		d.settleAccounts()
		for n := forgetBatch; n == forgetBatch && ctx.Err() == nil; {
			var err error
			if n, err = d.cfg.Store.Forget(ctx, time.Now().Add(-d.cfg.KeepEnded), forgetBatch); err != nil && ctx.Err() == nil {
				zerolog.Ctx(ctx).Error().Err(err).Msg("delete old jobs") // the next tick tries again
			}
		}
	}
}
