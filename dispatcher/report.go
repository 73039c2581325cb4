package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// Report takes an attempt's result. It counts only if the attempt is still the job's current one; otherwise it is fenced and dropped.
// When it returns without an error the worker may forget the attempt.
func (d *Dispatcher) Report(ctx context.Context, r jobs.Report) (jobs.ReportReply, error) {
	if err := d.ready(ctx); err != nil {
		return jobs.ReportReply{}, err
	}
	d.mu.Lock()
	e := d.entries[r.Job]
	current := e != nil && e.State != jobs.StateQueued && e.Attempt == r.Attempt && e.Epoch == r.Epoch
	var entry ledger.Entry
	if current {
		entry = *e
	}
	d.mu.Unlock()
	if !current {
		d.metrics.fenced.WithLabelValues("report").Inc()
		return jobs.ReportReply{Fenced: true}, nil
	}
	done, err := d.settle(ctx, entry, r.Result, r.Events)
	if err != nil {
		return jobs.ReportReply{}, d.broken(ctx, "finish attempt", err)
	}
	if !done {
		d.metrics.fenced.WithLabelValues("report").Inc()
		d.doubt(r.Job)
	}
	return jobs.ReportReply{Fenced: !done}, nil
}

// settle decides what an attempt's result means for its job: its end, or another attempt. events is the last Seq of the attempt.
func (d *Dispatcher) settle(ctx context.Context, e ledger.Entry, r jobs.Result, events int64) (bool, error) {
	if r.Ending.Class() == "" { // a worker's that is newer, or broken: a result that nobody can read is none
		r.Ending, r.Reason = jobs.WorkerLost, fmt.Sprintf("the worker reported the unknown ending %.40q", r.Ending)
	}
	r.Class = r.Ending.Class()
	r.Attempt = e.Attempt
	if r.EndedAt.Before(e.LeasedAt) { // unknown, or of a clock that is wrong: the ledger keeps the job by it
		r.EndedAt = time.Now().UTC()
	}
	switch {
	case r.Class != jobs.ClassInfra:
		return d.finish(ctx, e, jobs.StateEnded, r, events)
	case d.cancelRequested(e.ID):
		r.Ending, r.Class, r.Reason = jobs.Canceled, jobs.ClassPolicy, "canceled"
		return d.finish(ctx, e, jobs.StateEnded, r, events)
	case e.InfraLeft <= 0:
		return d.finish(ctx, e, jobs.StateDead, r, events)
	}
	return d.requeue(ctx, e, r, events)
}

func (d *Dispatcher) cancelRequested(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.entries[id]
	return e != nil && e.Cancel
}

func (d *Dispatcher) finish(ctx context.Context, e ledger.Entry, state jobs.State, r jobs.Result, events int64) (bool, error) {
	ok, err := d.cfg.Store.Finish(ctx, jobs.Held{Job: e.ID, Attempt: e.Attempt, Epoch: e.Epoch}, state, r, d.finalEvent(e, r, events+1))
	if ok {
		d.ended(e.ID, r)
	}
	return ok, err
}

// finalEvent is the last event of a job.
func (d *Dispatcher) finalEvent(e ledger.Entry, r jobs.Result, seq int64) jobs.Event {
	return jobs.Event{Type: jobs.EventResult, Job: e.ID, Tenant: e.Tenant, Attempt: e.Attempt, Seq: seq, Time: time.Now().UTC(), Final: true, Result: &r}
}

// ended forgets a job that has ended, and has its final event published.
func (d *Dispatcher) ended(id string, r jobs.Result) {
	d.mu.Lock()
	delete(d.entries, id)
	d.queue.Remove(id)
	d.mu.Unlock()
	d.metrics.finished.WithLabelValues(string(r.Ending)).Inc()
	d.nudge()
}

// nudge wakes the outbox.
func (d *Dispatcher) nudge() {
	select {
	case d.outbox <- struct{}{}:
	default:
	}
}

// maxRetryPause bounds the pause between attempts.
const maxRetryPause = 30 * time.Second

// requeue gives a job another attempt, after a pause that doubles with each that our own failures have cost.
func (d *Dispatcher) requeue(ctx context.Context, e ledger.Entry, r jobs.Result, events int64) (bool, error) {
	pause := min(d.cfg.RetryBase<<min(e.Attempt-1, 10), maxRetryPause)
	pause += rand.N(pause/4 + 1) // jitter: not all that one failure ended come back at once
	notBefore := time.Now().Add(pause).UTC().Truncate(time.Microsecond)
	reason := "attempt ended as " + string(r.Ending)
	if r.Reason != "" {
		reason += ": " + r.Reason
	}
	event := jobs.Event{
		Type: jobs.EventState, Job: e.ID, Tenant: e.Tenant, Attempt: e.Attempt, Seq: events + 1, Time: time.Now().UTC(), State: jobs.StateQueued, Reason: reason,
	}
	ok, err := d.cfg.Store.Requeue(ctx, jobs.Held{Job: e.ID, Attempt: e.Attempt, Epoch: e.Epoch}, notBefore, event)
	if err != nil || !ok {
		return ok, err
	}
	zerolog.Ctx(ctx).Info().Str("job", e.ID).Int("attempt", e.Attempt).Str("ending", string(r.Ending)).Str("worker", e.Worker).Msg("attempt will be tried again")
	d.metrics.retries.WithLabelValues(string(r.Ending)).Inc()
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := d.entries[e.ID]; now != nil {
		now.State, now.NotBefore = jobs.StateQueued, notBefore
		now.InfraLeft--
		if !now.Cancel { // else it was canceled since we looked, and reconcile ends it
			d.queue.PushFront(item(now))
			d.match()
		}
	}
	d.nudge()
	return true, nil
}

// lose ends an attempt whose worker has lost it.
func (d *Dispatcher) lose(ctx context.Context, e ledger.Entry, why string) {
	seq, err := d.lastSeq(ctx, e.Tenant, e.ID, e.Attempt)
	if err == nil {
		r := jobs.Result{Ending: jobs.WorkerLost, Reason: why, Worker: e.Worker}
		var done bool
		if done, err = d.settle(ctx, e, r, seq); done {
			d.metrics.leasesExpired.Inc()
		} else if err == nil {
			d.doubt(e.ID)
		}
	}
	if err != nil && ctx.Err() == nil {
		zerolog.Ctx(ctx).Error().Err(err).Str("job", e.ID).Msg("take back lost attempt") // reconcile tries again
	}
}

// endQueued ends a job that waits. Where that fails reconcile tries again.
func (d *Dispatcher) endQueued(ctx context.Context, e ledger.Entry, ending jobs.Ending, reason string) {
	r := jobs.Result{Ending: ending, Class: ending.Class(), Reason: reason, Attempt: e.Attempt, EndedAt: time.Now().UTC()}
	var err error
	if e.Attempt > 0 { // the event that gave it back to the queue may not be out yet, and the final one comes after it
		err = d.flushOutbox(ctx)
	}
	var seq int64
	if err == nil {
		seq, err = d.lastSeq(ctx, e.Tenant, e.ID, e.Attempt)
	}
	var ok bool
	if err == nil {
		ok, err = d.cfg.Store.EndQueued(ctx, e.ID, e.Attempt, jobs.StateEnded, r, d.finalEvent(e, r, seq+1))
	}
	switch {
	case err != nil:
		if ctx.Err() == nil {
			zerolog.Ctx(ctx).Error().Err(err).Str("job", e.ID).Msg("end queued job")
		}
	case ok:
		d.ended(e.ID, r)
	default:
		d.doubt(e.ID)
	}
}

// Cancel asks for a job's end and gives where it stood. A queued job ends at once; a running one when its worker hears of it, with the
// next heartbeat at the latest; one that has ended stays as it is.
func (d *Dispatcher) Cancel(ctx context.Context, tenant, id string) (jobs.State, error) {
	if err := jobs.ValidTenant(tenant); err != nil {
		return "", err
	}
	if err := d.ready(ctx); err != nil {
		return "", err
	}
	j, err := d.cfg.Store.RequestCancel(ctx, tenant, id)
	if errors.Is(err, ledger.ErrNotFound) {
		return "", notFound(id)
	}
	if err != nil {
		return "", d.broken(ctx, "cancel job", err)
	}
	if e, queued := d.noteCancel(id); queued {
		d.endQueued(ctx, e, jobs.Canceled, "canceled before it ran")
	}
	return j.State, nil
}

// noteCancel marks a job in memory, takes it from the matcher where it waits, and gives it.
func (d *Dispatcher) noteCancel(id string) (ledger.Entry, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.entries[id]
	if e == nil {
		return ledger.Entry{}, false
	}
	e.Cancel = true
	d.queue.Remove(id)
	return *e, e.State == jobs.StateQueued
}
