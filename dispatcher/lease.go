package dispatcher

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/match"
	"github.com/paddockvm/paddock/jobs"
)

// poll is a worker's request for leases while it waits for an answer.
type poll struct {
	worker  string
	slots   int
	free    jobs.Resources
	session int64
	until   time.Time            // when the worker stops listening
	matched chan []*ledger.Entry // capacity 1: the match answers a poll once
}

// maxWait bounds how long a request for leases may stand.
const maxWait = time.Minute

// listens is for how long a worker is taken to listen for an answer after the time that it asked to wait for: a second less than it does.
const listens = 4 * time.Second

// warmWait is how long a job waits for a worker with a ready machine of its image that is busy: half of what making one takes, about.
const warmWait = 50 * time.Millisecond

// templateWait is how long a job waits for a worker that has the template of its machine and is busy, while others would have to build it: half of
// what that takes where it is quickest, about. A guest boots, runs its warm-up and is let settle for 0.3 s, and its memory is written and hashed:
// about a second with KVM, four to six where it is emulated.
const templateWait = 500 * time.Millisecond

// matching is what the matcher goes by.
func matching(q *Quotas) match.Config {
	return match.Config{Share: q.share, WarmWait: func(string) time.Duration { return warmWait }, TemplateWait: templateWait}
}

// Lease gives a worker attempts, waiting for them as long as it asks. An attempt is given only after the ledger has it.
func (d *Dispatcher) Lease(ctx context.Context, r jobs.LeaseRequest) (jobs.LeaseReply, error) {
	asked := time.Now()
	if err := d.readyNow(ctx); err != nil {
		return jobs.LeaseReply{}, err
	}
	p, err := d.begin(r)
	if err != nil {
		return jobs.LeaseReply{}, err
	}
	waits := min(time.Duration(r.WaitMS)*time.Millisecond, maxWait)
	p.until = asked.Add(waits + listens)
	wait := time.NewTimer(waits)
	defer wait.Stop()
	var got []*ledger.Entry
	select {
	case got = <-p.matched:
	case <-wait.C:
	case <-ctx.Done():
	}
	if got == nil {
		got = d.withdraw(p)
	}
	if len(got) == 0 {
		return jobs.LeaseReply{}, nil
	}
	return d.grant(context.WithoutCancel(ctx), p, got) // matched: they must reach the ledger, or the queue again
}

// begin puts a worker's request before the matcher.
func (d *Dispatcher) begin(r jobs.LeaseRequest) (*poll, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.workers[r.Worker]
	if w == nil || w.lost || w.waiting || w.session != r.Session {
		return nil, &jobs.Error{Code: jobs.CodeForbidden, Message: "no such session: send a heartbeat first", RetryAfterMS: 100}
	}
	w.warm = r.Warm // the matcher reduces it by what it gives
	p := &poll{worker: r.Worker, slots: r.Slots, free: r.Free, session: r.Session, matched: make(chan []*ledger.Entry, 1)}
	d.supersede(r.Worker)
	d.polls = append(d.polls, p)
	d.dismiss()
	d.match()
	return p, nil
}

// supersede answers a worker's poll with nothing when it asks anew: it has given that up, with its connection or in its life before, and what
// it got would be lost on its way. d.mu is held.
func (d *Dispatcher) supersede(worker string) {
	d.polls = slices.DeleteFunc(d.polls, func(p *poll) bool {
		if p.worker == worker {
			p.matched <- []*ledger.Entry{}
		}
		return p.worker == worker
	})
}

// dismiss answers the polls of workers that take no more, with nothing: what they got nobody would run. d.mu is held.
func (d *Dispatcher) dismiss() {
	d.polls = slices.DeleteFunc(d.polls, func(p *poll) bool {
		w := d.workers[p.worker]
		gone := w == nil || w.lost || w.draining || w.session != p.session
		if gone {
			p.matched <- []*ledger.Entry{}
		}
		return gone
	})
}

// match answers the polls that wait with what is queued; d.mu is held.
func (d *Dispatcher) match() {
	if len(d.polls) == 0 || d.queue.Len() == 0 {
		return
	}
	workers := make([]match.Worker, len(d.polls))
	for i, p := range d.polls {
		w := d.workers[p.worker]
		workers[i] = w.view() // as it is now: a heartbeat may have come since it asked
		if workers[i].Free = p.free; d.takes(w) {
			workers[i].Slots = p.slots
		}
	}
	out, next := d.queue.Match(time.Now(), workers, d.fleet)
	got := make([][]*ledger.Entry, len(d.polls))
	for _, a := range out {
		switch e := d.entries[a.ID]; {
		case e == nil:
			d.queue.Release(a.ID)
		case e.State != jobs.StateQueued:
			d.place(e)
		default:
			got[a.Worker] = append(got[a.Worker], e)
		}
	}
	waiting := d.polls[:0:0]
	for i, p := range d.polls {
		if len(got[i]) == 0 {
			waiting = append(waiting, p)
			continue
		}
		p.matched <- got[i]
	}
	d.polls = waiting
	if !next.IsZero() {
		d.wakeAt(next)
	}
}

// wakeAt matches again when a job that waits out its back-off may go; d.mu is held.
func (d *Dispatcher) wakeAt(t time.Time) {
	if d.wake != nil {
		d.wake.Stop()
	}
	d.wake = time.AfterFunc(time.Until(t), func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.match()
	})
}

// withdraw takes a poll back that waits no more; what was matched to it meanwhile is given.
func (d *Dispatcher) withdraw(p *poll) []*ledger.Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.polls, p); i >= 0 {
		d.polls = slices.Delete(d.polls, i, i+1)
	}
	select {
	case got := <-p.matched:
		return got
	default:
		return nil
	}
}

// stopPolls ends the timer when the dispatcher does; polls end with their callers.
func (d *Dispatcher) stopPolls() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.wake != nil {
		d.wake.Stop()
	}
}

// grant writes matched attempts into the ledger and gives those that it took.
func (d *Dispatcher) grant(ctx context.Context, p *poll, got []*ledger.Entry) (jobs.LeaseReply, error) {
	if got = d.putBack(ctx, got); len(got) == 0 {
		return jobs.LeaseReply{}, nil
	}
	now := time.Now()
	leases := d.number(p, got, now)
	specs, err := d.cfg.Store.Lease(ctx, leases)
	if err != nil {
		for _, l := range leases {
			d.doubt(l.Job)
		}
		return jobs.LeaseReply{}, d.broken(ctx, "lease jobs", err)
	}
	var reply jobs.LeaseReply
	list := d.leased(p, got, leases, specs)
	if time.Now().After(p.until) {
		d.takeBack(ctx, list)
		return reply, nil
	}
	for _, e := range list {
		l := jobs.Lease{
			Held: jobs.Held{Job: e.ID, Attempt: e.Attempt, Epoch: e.Epoch}, Tenant: e.Tenant, Image: e.Image,
			QueuedMS: float64(now.Sub(e.AcceptedAt).Microseconds()) / 1000, AcceptedAt: e.AcceptedAt.UTC(),
		}
		if err := json.Unmarshal(e.spec, &l.Spec); err != nil { // where it cannot be given back either, it comes back when its worker does not name it
			zerolog.Ctx(ctx).Error().Err(err).Str("job", e.ID).Msg("read leased job")
			d.evict(ctx, e.Entry, "its spec in the ledger cannot be read")
			continue
		}
		d.metrics.queueWait.Observe(now.Sub(e.AcceptedAt).Seconds())
		reply.Leases = append(reply.Leases, l)
	}
	return reply, nil
}

// takeBack gives attempts to others of which their worker will not hear.
func (d *Dispatcher) takeBack(ctx context.Context, list []granted) {
	var g errgroup.Group
	g.SetLimit(overdueAtOnce)
	for _, e := range list {
		g.Go(func() error {
			d.evict(ctx, e.Entry, "its worker had stopped waiting for it")
			return nil
		})
	}
	_ = g.Wait() // where it cannot be given back, it comes back when its worker does not name it
}

// number gives each attempt its number and a fencing epoch larger than all before.
func (d *Dispatcher) number(p *poll, got []*ledger.Entry, now time.Time) []ledger.Lease {
	d.mu.Lock()
	defer d.mu.Unlock()
	leases := make([]ledger.Lease, len(got))
	for i, e := range got {
		d.epoch++
		leases[i] = ledger.Lease{Held: jobs.Held{Job: e.ID, Attempt: e.Attempt + 1, Epoch: d.epoch}, Worker: p.worker, Session: p.session, At: now}
	}
	return leases
}

// putBack gives those of matched jobs of whose earlier attempts all is out, so that viewers see attempts in their order, and puts the others back.
func (d *Dispatcher) putBack(ctx context.Context, got []*ledger.Entry) []*ledger.Entry {
	var again []string
	d.mu.Lock()
	for _, e := range got {
		if e.Attempt > 0 {
			again = append(again, e.ID)
		}
	}
	d.mu.Unlock()
	left := d.notOut(ctx, again)
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.DeleteFunc(got, func(e *ledger.Entry) bool {
		if left[e.ID] && d.entries[e.ID] == e && !e.Cancel { // else whoever canceled it while it was matched ends it
			if e.State == jobs.StateQueued {
				e.NotBefore = time.Now().Add(outboxRetry)
			}
			d.place(e)
		}
		return left[e.ID]
	})
}

// granted is an attempt that the ledger has, with the job's spec.
type granted struct {
	ledger.Entry
	spec []byte
}

// leased takes what the ledger has committed into memory, and gives copies of it. What it did not commit has no spec.
func (d *Dispatcher) leased(p *poll, got []*ledger.Entry, leases []ledger.Lease, specs [][]byte) (list []granted) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for i, e := range got {
		if specs[i] == nil {
			if d.entries[e.ID] == e && !e.Cancel { // else whoever canceled it while it was matched ends it
				d.doubts[e.ID] = true
			}
			continue
		}
		d.become(e, jobs.StateLeased)
		e.Attempt, e.Epoch, e.Worker, e.Session, e.LeasedAt = leases[i].Attempt, leases[i].Epoch, p.worker, p.session, leases[i].At
		if now.After(p.until) {
			e.LeasedAt = now // its worker has not named it, and could not: it is not lost, see takeBack
		}
		list = append(list, granted{*e, specs[i]})
	}
	return list
}
