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
	draining bool
	lost     bool
	waiting  bool // known from the ledger only; has not beaten since this dispatcher began
}

// reportWithin is how long an attempt may be leased without its worker naming it in a heartbeat: the lease was lost on its way.
const reportWithin = 10 * time.Second

// offers gives the images and the largest capacity of all workers that are alive; nil where none was ever seen. d.mu is held.
func (d *Dispatcher) offers() (images map[string]jobs.Resources, largest jobs.Resources) {
	for _, w := range d.workers {
		if w.waiting {
			continue
		}
		for _, i := range w.beat.Images {
			if images == nil {
				images = map[string]jobs.Resources{}
			}
			images[i.Name] = i.Resources
		}
		largest.VCPUs = max(largest.VCPUs, w.beat.Capacity.VCPUs)
		largest.MemoryMiB = max(largest.MemoryMiB, w.beat.Capacity.MemoryMiB)
	}
	return images, largest
}

// Beat takes a worker's heartbeat. A worker without a session of its own gets one, and loses what an earlier session of its name had.
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
	reply, lost, running := d.beaten(b, session)
	if len(running) > 0 {
		if err := d.cfg.Store.Running(ctx, running); err != nil {
			zerolog.Ctx(ctx).Error().Err(err).Msg("note running attempts")
		}
	}
	for _, e := range lost {
		d.lose(ctx, e, "the worker was started anew")
	}
	return reply, nil
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

// beaten notes a heartbeat and answers it.
func (d *Dispatcher) beaten(b jobs.Beat, session int64) (r jobs.BeatReply, lost []ledger.Entry, running []jobs.Held) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.workers[b.Worker]
	if w == nil {
		w = &worker{name: b.Worker}
		d.workers[b.Worker] = w
	}
	w.session, w.seen, w.beat, w.draining, w.lost, w.waiting = session, time.Now(), b, b.Draining, false, false
	r = jobs.BeatReply{Session: session, TTLMS: d.cfg.LeaseTTL.Milliseconds()}
	holds := map[string]bool{}
	for _, h := range b.Running {
		e := d.entries[h.Job]
		if e == nil || e.State == jobs.StateQueued || e.Attempt != h.Attempt || e.Epoch != h.Epoch || e.Session != session {
			r.Drop = append(r.Drop, h)
			continue
		}
		holds[h.Job] = true
		if e.Cancel {
			r.Cancel = append(r.Cancel, h)
		}
		if h.Running && e.State == jobs.StateLeased {
			e.State = jobs.StateRunning
			running = append(running, h)
		}
	}
	for _, e := range d.entries {
		if e.Worker != b.Worker || e.State == jobs.StateQueued || holds[e.ID] {
			continue
		}
		if e.Session != session || time.Since(e.LeasedAt) > reportWithin {
			lost = append(lost, *e)
		}
	}
	return r, lost, running
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
		lost, expired := d.due(time.Now())
		for _, e := range lost {
			d.metrics.leasesExpired.Inc()
			d.lose(ctx, e, "the worker has not been heard of for longer than its lease")
		}
		for _, e := range expired {
			d.endQueued(ctx, e, jobs.Expired, "waited longer than its queue TTL")
		}
	}
}

// due finds the attempts of workers whose lease has run out, and the jobs whose queue TTL has.
func (d *Dispatcher) due(now time.Time) (lost, expired []ledger.Entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.workers {
		if !w.lost && now.Sub(w.seen) > d.cfg.LeaseTTL+d.cfg.Grace {
			w.lost = true
		}
	}
	for _, e := range d.entries {
		switch {
		case e.State == jobs.StateQueued:
			if e.Attempt == 0 && now.After(e.ExpiresAt) {
				expired = append(expired, *e)
			}
		case d.workers[e.Worker] == nil || d.workers[e.Worker].lost || d.workers[e.Worker].session != e.Session:
			lost = append(lost, *e)
		}
	}
	return lost, expired
}
