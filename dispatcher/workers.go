package dispatcher

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher/match"
	"github.com/paddockvm/paddock/jobs"
)

// worker is what is known of a worker: by its last heartbeat, and by this process's own clock.
type worker struct {
	name     string
	session  int64
	seen     time.Time // when it was last heard of; moved on while nobody could be
	beatAt   time.Time // of its last heartbeat
	beat     jobs.Beat
	holds    map[string]bool // jobs of which the last heartbeat named the current attempt
	draining bool
	lost     bool
	waiting  bool                      // known from the ledger only; has not beaten since this dispatcher began
	warm     map[string]int            // its ready machines, as it was last told less what was given since
	sizes    map[string]jobs.Resources // of the images that its heartbeat offers; nil until they are asked for
	kept     []byte                    // what it offers, as the ledger has it
}

// forgetAfter is how long a lost worker's images and capacity still count as offered, whoever leads: it may only be away for a while.
const forgetAfter = time.Hour

// reportWithin is how long an attempt may be leased without its worker naming it in a heartbeat: the lease was lost on its way.
const reportWithin = 10 * time.Second

// takenFor is how long after its last heartbeat, two and a bit of them, a worker's name is its own: another process that registers
// under it would take its attempts, and it take them back, and so on.
const takenFor = 5 * time.Second

// Beat takes a worker's heartbeat. A worker without a session of its own gets one, and reconcile takes back what an earlier session of
// its name had, and what this heartbeat should have named: a worker that waited for that would hold itself lost. It gets none, and an
// error with the attempts that it shall end, while another process of its name lives.
func (d *Dispatcher) Beat(ctx context.Context, b jobs.Beat) (jobs.BeatReply, error) {
	if err := d.readyNow(ctx); err != nil {
		if r, ok := d.heard(b); ok {
			return r, nil
		}
		return jobs.BeatReply{}, err
	}
	if err := jobs.ValidTenant(b.Worker); err != nil { // the same rule: one token
		return jobs.BeatReply{}, invalid(jobs.Fault{Path: "worker", Message: "must be 1 to 63 letters, digits, _ or -"})
	}
	session, taken := d.sessionOf(b)
	if taken {
		return jobs.BeatReply{Drop: b.Running}, &jobs.Error{
			Code: jobs.CodeUnavailable, RetryAfterMS: takenFor.Milliseconds(),
			Message: fmt.Sprintf("another process is the worker %q and alive: end it, or give this one a name of its own with --name", b.Worker),
		}
	}
	if session == 0 {
		d.comes(b.Worker)
		var err error
		if session, err = d.cfg.Store.Register(ctx, b.Worker, time.Now().UTC()); err != nil {
			return jobs.BeatReply{}, d.broken(ctx, "register worker", err)
		}
		zerolog.Ctx(ctx).Info().Str("worker", b.Worker).Int64("session", session).Str("driver", b.Driver).Strs("degraded", b.Degraded).Msg("worker registered")
	}
	return d.beaten(b, session), nil
}

// heard answers a worker while this dispatcher cannot act: what it has stays its own.
func (d *Dispatcher) heard(b jobs.Beat) (jobs.BeatReply, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.workers[b.Worker]
	if t := d.tenure.Load(); t == nil || t.until.IsZero() || d.leads() { // deposed, or it can act
		return jobs.BeatReply{}, false
	}
	if w == nil || w.lost || w.waiting || w.session != b.Session {
		return jobs.BeatReply{}, false
	}
	w.seen = time.Now()
	return jobs.BeatReply{Session: b.Session, TTLMS: d.cfg.LeaseTTL.Milliseconds(), Contract: jobs.Contract}, true
}

// runningAtOnce bounds how many attempts the ledger is told of at once: others write between.
const runningAtOnce = 256

// noteRunning tells the ledger which attempts run, of which heartbeats have told. Those are answered before: a worker shall not take itself for lost
// while a disk stands still.
func (d *Dispatcher) noteRunning(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.newRunning:
		}
		d.mu.Lock()
		all := slices.Collect(maps.Values(d.running))
		clear(d.running)
		d.mu.Unlock()
		for some := range slices.Chunk(all, runningAtOnce) {
			if err := d.cfg.Store.Running(ctx, some, time.Now().UTC()); err == nil {
				d.started(some)
			} else if ctx.Err() == nil {
				zerolog.Ctx(ctx).Error().Err(err).Msg("note running attempts") // the next heartbeats tell of them again
			}
		}
	}
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

// sessionOf gives the session that a heartbeat is of, 0 where its worker is to get one; taken says that it must not yet.
func (d *Dispatcher) sessionOf(b jobs.Beat) (session int64, taken bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.workers[b.Worker]
	switch {
	case w == nil || w.lost:
		return 0, false
	case b.Session != 0 && w.session == b.Session:
		return w.session, false
	}
	alive := !w.waiting && time.Since(w.seen) < takenFor && (!w.draining || d.busy(w))
	return 0, alive && w.beat.Instance != b.Instance
}

// busy tells whether a worker has attempts; d.mu is held.
func (d *Dispatcher) busy(w *worker) bool {
	for _, e := range d.held {
		if e.Worker == w.name && e.Session == w.session {
			return true
		}
	}
	return false
}

// beaten notes a heartbeat and answers it.
func (d *Dispatcher) beaten(b jobs.Beat, session int64) jobs.BeatReply {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.workers[b.Worker]
	if w == nil {
		w = &worker{name: b.Worker}
		d.workers[b.Worker] = w
	}
	r := jobs.BeatReply{Session: session, TTLMS: d.cfg.LeaseTTL.Milliseconds(), Contract: jobs.Contract}
	if session < w.session { // another of its name registered while this one was on its way: it hears of it with its next
		r.Drop = b.Running
		return r
	}
	r.Drain = d.flags[b.Worker].Cordoned
	delete(d.expected, b.Worker)
	warm := b.Warm
	if b.Contract < 2 { // it tells of them with its requests only
		warm = w.warm
	}
	moved := w.draining != b.Draining || !maps.EqualFunc(w.beat.Templates, b.Templates, slices.Equal)
	*w = worker{name: b.Worker, session: session, seen: time.Now(), beatAt: time.Now(), beat: b, draining: b.Draining, holds: map[string]bool{}, warm: warm, kept: w.kept}
	d.offersMoved(w)
	d.dismiss()
	if moved {
		d.match() // what waits for one that it was, or is now
	}
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
			d.running[h.Job] = h
			d.newRunning.set()
		}
	}
	return r
}

// fleet gives the workers that are alive; d.mu is held.
func (d *Dispatcher) fleet() []match.Worker {
	fleet := make([]match.Worker, 0, len(d.workers))
	for _, w := range d.workers {
		if !w.lost && !w.waiting {
			v := w.view()
			v.Draining = !d.takes(w)
			fleet = append(fleet, v)
		}
	}
	return fleet
}

// view is a worker as the matcher sees it, without what it has free.
func (w *worker) view() match.Worker {
	return match.Worker{
		Name: w.name, Pool: w.beat.Pool, Labels: w.beat.Labels, Capacity: w.beat.Capacity, Warm: w.warm, Templates: w.beat.Templates, Images: w.images(),
		Networks: w.beat.Networks,
	}
}

// images are those that the worker offers.
func (w *worker) images() map[string]jobs.Resources {
	if w.sizes == nil {
		w.sizes = make(map[string]jobs.Resources, len(w.beat.Images))
		for _, i := range w.beat.Images {
			w.sizes[i.Name] = i.Resources
		}
	}
	return w.sizes
}
