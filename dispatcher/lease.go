package dispatcher

import (
	"context"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/match"
	"github.com/paddockvm/paddock/jobs"
)

// poll is a worker's request for leases while it waits for an answer.
type poll struct {
	worker  match.Worker
	session int64
	matched chan []*ledger.Entry // capacity 1: the match answers a poll once
}

// maxWait bounds how long a request for leases may stand.
const maxWait = time.Minute

// Lease gives a worker attempts, waiting for them as long as it asks. An attempt is given only after the ledger has it.
func (d *Dispatcher) Lease(ctx context.Context, r jobs.LeaseRequest) (jobs.LeaseReply, error) {
	if err := d.ready(ctx); err != nil {
		return jobs.LeaseReply{}, err
	}
	p, err := d.begin(r)
	if err != nil {
		return jobs.LeaseReply{}, err
	}
	wait := time.NewTimer(min(time.Duration(r.WaitMS)*time.Millisecond, maxWait))
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
	p := &poll{
		worker:  match.Worker{Name: r.Worker, Slots: r.Slots, Free: r.Free, Warm: r.Warm, Images: w.images(), Networks: w.beat.Networks},
		session: r.Session, matched: make(chan []*ledger.Entry, 1),
	}
	d.polls = append(d.polls, p)
	d.dismiss()
	d.match()
	return p, nil
}

// dismiss answers the polls of workers that take no more, with nothing: what they got nobody would run. d.mu is held.
func (d *Dispatcher) dismiss() {
	d.polls = slices.DeleteFunc(d.polls, func(p *poll) bool {
		w := d.workers[p.worker.Name]
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
		workers[i] = p.worker
	}
	out, next := d.queue.Match(time.Now(), workers, d.others)
	got := make([][]*ledger.Entry, len(d.polls))
	for _, a := range out {
		if e := d.entries[a.Item.ID]; e != nil && e.State == jobs.StateQueued {
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
	now := time.Now().UTC()
	leases := d.number(p, got, now)
	ok, err := d.commitLeases(ctx, leases)
	if err != nil {
		for _, l := range leases {
			d.doubt(l.Job)
		}
		return jobs.LeaseReply{}, d.broken(ctx, "lease jobs", err)
	}
	granted := d.leased(p, got, leases, ok)
	var reply jobs.LeaseReply
	for _, e := range granted {
		j, err := d.cfg.Store.Get(ctx, e.Tenant, e.ID)
		if err != nil { // leased and not given: it comes back when its worker does not name it
			zerolog.Ctx(ctx).Error().Err(err).Str("job", e.ID).Msg("read leased job")
			continue
		}
		d.metrics.queueWait.Observe(now.Sub(e.AcceptedAt).Seconds())
		reply.Leases = append(reply.Leases, jobs.Lease{
			Held: jobs.Held{Job: e.ID, Attempt: e.Attempt, Epoch: e.Epoch}, Tenant: e.Tenant, Spec: *j.Spec, Image: e.Image,
			QueuedMS: float64(now.Sub(e.AcceptedAt).Microseconds()) / 1000, AcceptedAt: e.AcceptedAt,
		})
	}
	return reply, nil
}

// number gives each attempt its number and a fencing epoch larger than all before.
func (d *Dispatcher) number(p *poll, got []*ledger.Entry, now time.Time) []ledger.Lease {
	d.mu.Lock()
	defer d.mu.Unlock()
	leases := make([]ledger.Lease, len(got))
	for i, e := range got {
		d.epoch++
		leases[i] = ledger.Lease{Held: jobs.Held{Job: e.ID, Attempt: e.Attempt + 1, Epoch: d.epoch}, Worker: p.worker.Name, Session: p.session, At: now}
	}
	return leases
}

// commitLeases writes attempts into the ledger. What was told of a job's earlier attempts is out before another begins, so that viewers
// see attempts in their order, and LastSeq the last one's events.
func (d *Dispatcher) commitLeases(ctx context.Context, leases []ledger.Lease) ([]bool, error) {
	if slices.ContainsFunc(leases, func(l ledger.Lease) bool { return l.Attempt > 1 }) {
		if err := d.flushOutbox(ctx); err != nil {
			return nil, err
		}
	}
	return d.cfg.Store.Lease(ctx, leases)
}

// leased takes what the ledger has committed into memory, and gives copies of it.
func (d *Dispatcher) leased(p *poll, got []*ledger.Entry, leases []ledger.Lease, ok []bool) (granted []ledger.Entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, e := range got {
		if !ok[i] {
			if d.entries[e.ID] == e && !e.Cancel { // else whoever canceled it while it was matched ends it
				d.doubts[e.ID] = true
			}
			continue
		}
		e.State, e.Attempt, e.Epoch, e.Worker, e.Session, e.LeasedAt = jobs.StateLeased, leases[i].Attempt, leases[i].Epoch, p.worker.Name, p.session, leases[i].At
		granted = append(granted, *e)
	}
	return granted
}
