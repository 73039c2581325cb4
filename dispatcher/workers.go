package dispatcher

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/match"
	"github.com/paddockvm/paddock/jobs"
)

// worker is what is known of a worker: by its last heartbeat, and by this process's own clock.
type worker struct {
	name     string
	session  int64
	seen     time.Time
	beat     jobs.Beat
	holds    map[string]bool // jobs of which the last heartbeat named the current attempt
	draining bool
	lost     bool
	waiting  bool // known from the ledger only; has not beaten since this dispatcher began
}

// forgetAfter is how long a lost worker's images and capacity still count as offered: it may only be away for a while.
const forgetAfter = time.Hour

// reportWithin is how long an attempt may be leased without its worker naming it in a heartbeat: the lease was lost on its way.
const reportWithin = 10 * time.Second

// offers gives the images and the largest capacity of all workers that are known; nil where none is. d.mu is held.
func (d *Dispatcher) offers() (images map[string]jobs.OfferedImage, largest jobs.Resources) {
	for _, w := range d.workers {
		if w.waiting {
			continue
		}
		for _, i := range w.beat.Images {
			if images == nil {
				images = map[string]jobs.OfferedImage{}
			}
			images[i.Name] = i
		}
		largest.VCPUs = max(largest.VCPUs, w.beat.Capacity.VCPUs)
		largest.MemoryMiB = max(largest.MemoryMiB, w.beat.Capacity.MemoryMiB)
	}
	return images, largest
}

// Beat takes a worker's heartbeat. A worker without a session of its own gets one, and reconcile takes back what an earlier session of
// its name had, and what this heartbeat should have named: a worker that waited for that would hold itself lost.
func (d *Dispatcher) Beat(ctx context.Context, b jobs.Beat) (jobs.BeatReply, error) {
	if err := d.ready(ctx); err != nil {
		return jobs.BeatReply{}, err
	}
	if err := jobs.ValidTenant(b.Worker); err != nil { // the same rule: one token
		return jobs.BeatReply{}, invalid(jobs.Fault{Path: "worker", Message: "must be 1 to 63 letters, digits, _ or -"})
	}
	session, known := d.sessionOf(b)
	if !known {
		var err error
		if session, err = d.cfg.Store.Register(ctx, b.Worker); err != nil {
			return jobs.BeatReply{}, d.broken(ctx, "register worker", err)
		}
		zerolog.Ctx(ctx).Info().Str("worker", b.Worker).Int64("session", session).Str("driver", b.Driver).Strs("degraded", b.Degraded).Msg("worker registered")
	}
	reply, started := d.beaten(b, session)
	if len(started) > 0 {
		if err := d.cfg.Store.Running(ctx, started); err != nil {
			zerolog.Ctx(ctx).Error().Err(err).Msg("note running attempts") // the next heartbeat tries again
			return reply, nil
		}
		d.started(started)
	}
	return reply, nil
}

// started takes into memory that attempts run.
func (d *Dispatcher) started(running []jobs.Held) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range running {
		if e := d.entries[h.Job]; e != nil && e.State == jobs.StateLeased && e.Epoch == h.Epoch {
			e.State = jobs.StateRunning
		}
	}
}

func (d *Dispatcher) sessionOf(b jobs.Beat) (int64, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.workers[b.Worker]
	if w == nil || w.lost || b.Session == 0 || w.session != b.Session {
		return 0, false
	}
	return w.session, true
}

// beaten notes a heartbeat and answers it; started are the attempts of which the ledger does not know yet that they run.
func (d *Dispatcher) beaten(b jobs.Beat, session int64) (r jobs.BeatReply, started []jobs.Held) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.workers[b.Worker]
	if w == nil {
		w = &worker{name: b.Worker}
		d.workers[b.Worker] = w
	}
	r = jobs.BeatReply{Session: session, TTLMS: d.cfg.LeaseTTL.Milliseconds()}
	if session < w.session { // another of its name registered while this one was on its way: it hears of it with its next
		r.Drop = b.Running
		return r, nil
	}
	*w = worker{name: b.Worker, session: session, seen: time.Now(), beat: b, draining: b.Draining, holds: map[string]bool{}}
	for _, h := range b.Running {
		e := d.entries[h.Job]
		if e == nil || e.State == jobs.StateQueued || e.Attempt != h.Attempt || e.Epoch != h.Epoch || e.Session != session {
			r.Drop = append(r.Drop, h)
			continue
		}
		w.holds[h.Job] = true
		if e.Cancel {
			r.Cancel = append(r.Cancel, h)
		}
		if h.Running && e.State == jobs.StateLeased {
			started = append(started, h)
		}
	}
	return r, started
}

// others tells whether a worker besides the named one is alive and large enough for an item, and has its image; d.mu is held.
func (d *Dispatcher) others(besides string, i match.Item) bool {
	for _, w := range d.workers {
		if w.name == besides || w.lost || w.waiting || w.draining {
			continue
		}
		idle := match.Worker{Slots: 1, Free: w.beat.Capacity, Images: w.images()}
		if idle.Fits(i) {
			return true
		}
	}
	return false
}

// images are those that the worker offers.
func (w *worker) images() map[string]jobs.Resources {
	m := make(map[string]jobs.Resources, len(w.beat.Images))
	for _, i := range w.beat.Images {
		m[i.Name] = i.Resources
	}
	return m
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
		due := d.due(time.Now())
		for _, l := range due.lost {
			d.lose(ctx, l.Entry, l.why)
		}
		for _, e := range due.canceled {
			d.endQueued(ctx, e, jobs.Canceled, "canceled before it ran")
		}
		for _, e := range due.expired {
			d.endQueued(ctx, e, jobs.Expired, "waited longer than its queue TTL")
		}
	}
}

// overdue is what reconcile has to do.
type overdue struct {
	lost              []lostAttempt
	canceled, expired []ledger.Entry // queued jobs
}

type lostAttempt struct {
	ledger.Entry
	why string
}

// due finds the attempts that their workers have lost, and the queued jobs that are to end.
func (d *Dispatcher) due(now time.Time) (r overdue) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.workers {
		silent := now.Sub(w.seen)
		w.lost = w.lost || silent > d.cfg.LeaseTTL+d.cfg.Grace
		if silent > forgetAfter {
			delete(d.workers, w.name)
		}
	}
	for _, e := range d.entries {
		switch {
		case e.State != jobs.StateQueued:
			if why := d.lostBy(e); why != "" {
				r.lost = append(r.lost, lostAttempt{*e, why})
			}
		case e.Cancel:
			r.canceled = append(r.canceled, *e)
		case e.Attempt == 0 && now.After(e.ExpiresAt):
			r.expired = append(r.expired, *e)
		}
	}
	return r
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
