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
		if err := d.resolve(ctx); err != nil && ctx.Err() == nil {
			zerolog.Ctx(ctx).Error().Err(err).Msg("read the ledger again") // the next tick tries again
		}
		var g errgroup.Group
		g.SetLimit(overdueAtOnce)
		for _, o := range d.due(time.Now()) {
			g.Go(func() error {
				if o.ending == jobs.WorkerLost {
					d.lose(ctx, o.Entry, o.why)
				} else {
					d.endQueued(ctx, o.Entry, o.ending, o.why)
				}
				return nil
			})
		}
		_ = g.Wait() // each has handled its own
	}
}

// due finds what is to end: the attempts that their workers have lost first, then queued jobs; a part of them where they are many.
func (d *Dispatcher) due(now time.Time) []overdue {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.workers {
		silent := now.Sub(w.seen)
		w.lost = w.lost || silent > d.cfg.LeaseTTL+d.cfg.Grace
		if silent > forgetAfter {
			delete(d.workers, w.name)
		}
	}
	d.dismiss()
	var lost, queued []overdue
	for _, e := range d.entries {
		switch {
		case e.State != jobs.StateQueued:
			if why := d.lostBy(e); why != "" {
				lost = append(lost, overdue{*e, jobs.WorkerLost, why})
			}
		case len(queued) == maxOverdue:
		case e.Cancel:
			queued = append(queued, overdue{*e, jobs.Canceled, "canceled before it ran"})
		case e.Attempt == 0 && now.After(e.ExpiresAt):
			queued = append(queued, overdue{*e, jobs.Expired, "waited longer than its queue TTL"})
		case e.Attempt > 0 && now.After(e.NotBefore.Add(retryTTL)):
			queued = append(queued, overdue{*e, jobs.Expired, "waited for another attempt for too long"})
		}
	}
	lost = append(lost, queued...)
	return lost[:min(len(lost), maxOverdue)]
}

// lostBy says how an attempt's worker has lost it; empty where it has not. d.mu is held.
func (d *Dispatcher) lostBy(e *ledger.Entry) string {
	w := d.workers[e.Worker]
	switch {
	case w == nil || w.lost:
		return "the worker has not been heard of for longer than its lease"
	case w.session != e.Session:
		return "the worker was started anew"
	case !w.waiting && !w.holds[e.ID] && w.seen.Sub(e.LeasedAt) > reportWithin:
		return "the lease was lost on its way to the worker"
	}
	return ""
}

const (
	// forgetEvery and forgetBatch: between batches of that size the ledger commits what others wait for.
	forgetEvery = time.Minute
	forgetBatch = 500
)

// forget deletes what ended long ago from the ledger, until ctx ends.
func (d *Dispatcher) forget(ctx context.Context) error {
	tick := time.NewTicker(forgetEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for n := forgetBatch; n == forgetBatch && ctx.Err() == nil; {
			var err error
			if n, err = d.cfg.Store.Forget(ctx, time.Now().Add(-d.cfg.KeepEnded), forgetBatch); err != nil && ctx.Err() == nil {
				zerolog.Ctx(ctx).Error().Err(err).Msg("delete old jobs") // the next tick tries again
			}
		}
	}
}
