package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// Report takes an attempt's result. It counts only if the attempt is still the job's current one; otherwise it is fenced and dropped.
// When it returns without an error the worker may forget the attempt.
func (d *Dispatcher) Report(ctx context.Context, r jobs.Report) (jobs.ReportReply, error) {
	if err := d.readyNow(ctx); err != nil {
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
		return d.fence(ctx, r), nil
	}
	seq := r.Events + 1
	if r.Events < 0 || r.Events >= maxEvents { // nobody's count: the broker knows which was the last
		seq = unnumbered
	}
	done, err := d.settle(ctx, entry, r.Result, seq)
	if err != nil {
		return jobs.ReportReply{}, d.broken(ctx, "finish attempt", err)
	}
	if !done {
		d.doubt(r.Job)
		return d.fence(ctx, r), nil
	}
	return jobs.ReportReply{}, nil
}

// maxEvents is how many events an attempt can have: the numbers to which JSON is exact in every language.
const maxEvents = 1 << 53

// fence drops a result that came too late. What it was is in the log, for who has to find out what an attempt did that was given up.
func (d *Dispatcher) fence(ctx context.Context, r jobs.Report) jobs.ReportReply {
	d.metrics.fenced.WithLabelValues("report").Inc()
	zerolog.Ctx(ctx).Info().Str("job", r.Job).Int("attempt", r.Attempt).Int64("epoch", r.Epoch).Str("worker", r.Worker).
		Str("ending", string(r.Result.Ending)).Time("ended_at", r.Result.EndedAt).Msg("a late result is dropped")
	return jobs.ReportReply{Fenced: true}
}

// settle decides what an attempt's result means for its job: its end, or another attempt. seq is that of the attempt's last
// event, or unnumbered.
func (d *Dispatcher) settle(ctx context.Context, e ledger.Entry, r jobs.Result, seq int64) (bool, error) {
	if what := unreadable(&r); what != "" { // a worker's that is newer, or broken: a result that nobody can read is none
		r.Ending, r.Reason = jobs.WorkerLost, "the worker reported "+what
		r.Steps, r.Artifacts = nil, nil
	}
	r.Class = r.Ending.Class()
	r.Attempt = e.Attempt
	if now := time.Now().UTC(); r.EndedAt.Before(e.LeasedAt) || r.EndedAt.After(now) { // unknown, or of a clock that is wrong: the ledger keeps the job by it
		r.EndedAt = now
	}
	canceled := d.cancelRequested(e.ID)
	switch {
	case r.Class == jobs.ClassPolicy, r.Class == jobs.ClassUser && canceled:
		return d.finish(ctx, e, jobs.StateEnded, r, seq)
	case canceled:
		r.Ending, r.Class, r.Reason = jobs.Canceled, jobs.ClassPolicy, "canceled"
		return d.finish(ctx, e, jobs.StateEnded, r, seq)
	}
	retry, err := d.retry(ctx, &e, &r)
	switch {
	case err != nil:
		return false, err
	case retry != nil:
		return d.requeue(ctx, e, r, seq, *retry)
	case r.Class == jobs.ClassInfra:
		return d.finish(ctx, e, jobs.StateDead, r, seq)
	}
	return d.finish(ctx, e, jobs.StateEnded, r, seq)
}

// unreadable tells what of a result is nothing that the contract knows; empty for nothing.
func unreadable(r *jobs.Result) string {
	endings := []jobs.Ending{r.Ending}
	for _, s := range r.Steps {
		endings = append(endings, s.Ending)
	}
	for _, e := range endings {
		if e.Class() == "" {
			return fmt.Sprintf("the unknown ending %.40q", e)
		}
	}
	for _, a := range r.Artifacts {
		if a.Object != nil && !jobs.IsDigest(a.Object.SHA256) {
			return fmt.Sprintf("an artifact with the digest %.40q", a.Object.SHA256)
		}
	}
	return ""
}

func (d *Dispatcher) cancelRequested(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.entries[id]
	return e != nil && e.Cancel
}

func (d *Dispatcher) finish(ctx context.Context, e ledger.Entry, state jobs.State, r jobs.Result, seq int64) (bool, error) {
	ok, err := d.cfg.Store.Finish(ctx, jobs.Held{Job: e.ID, Attempt: e.Attempt, Epoch: e.Epoch}, state, r, d.finalEvent(e, r, seq))
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
	d.gone(id)
	d.match() // what its tenant's caps held back may go
	d.mu.Unlock()
	d.metrics.finished.WithLabelValues(string(r.Ending)).Inc()
	d.nudge()
}

// nudge wakes the outbox.
func (d *Dispatcher) nudge() {
	d.outbox.set()
}

// requeue gives a job another attempt, after a pause that doubles with each.
func (d *Dispatcher) requeue(ctx context.Context, e ledger.Entry, r jobs.Result, seq int64, retry ledger.Retry) (bool, error) {
	reason := "attempt ended as " + string(r.Ending)
	if r.Reason != "" {
		reason += ": " + r.Reason
	}
	event := jobs.Event{
		Type: jobs.EventState, Job: e.ID, Tenant: e.Tenant, Attempt: e.Attempt, Seq: seq, Time: time.Now().UTC(), State: jobs.StateQueued, Reason: reason,
	}
	ok, err := d.cfg.Store.Requeue(ctx, jobs.Held{Job: e.ID, Attempt: e.Attempt, Epoch: e.Epoch}, retry, event)
	if err != nil || !ok {
		return ok, err
	}
	zerolog.Ctx(ctx).Info().Str("job", e.ID).Int("attempt", e.Attempt).Str("ending", string(r.Ending)).Str("worker", e.Worker).Str("reason", r.Reason).Msg("attempt will be tried again")
	d.metrics.retries.WithLabelValues(string(r.Ending)).Inc()
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := d.entries[e.ID]; now != nil && now.Epoch == e.Epoch && now.State != jobs.StateQueued { // else the ledger was read meanwhile
		d.become(now, jobs.StateQueued)
		now.NotBefore, now.InfraLeft, now.UserLeft, now.FailedOn = retry.NotBefore, retry.InfraLeft, retry.UserLeft, retry.FailedOn
		d.place(now) // one that was canceled since we looked reconcile ends
		d.match()
	}
	d.nudge()
	return true, nil
}

// lose ends an attempt whose worker has lost it.
func (d *Dispatcher) lose(ctx context.Context, e ledger.Entry, why string) {
	done, err := d.settle(ctx, e, jobs.Result{Ending: jobs.WorkerLost, Reason: why, Worker: e.Worker}, unnumbered)
	switch {
	case done:
		d.metrics.leasesExpired.Inc()
	case err == nil:
		d.doubt(e.ID)
	case ctx.Err() == nil:
		zerolog.Ctx(ctx).Error().Err(err).Str("job", e.ID).Msg("take back lost attempt") // reconcile tries again
	}
}

// endQueued ends a job that waits. Where that fails reconcile tries again, but for a job that is blocked, whose ender has to.
func (d *Dispatcher) endQueued(ctx context.Context, e ledger.Entry, ending jobs.Ending, reason string) error {
	r := jobs.Result{Ending: ending, Class: ending.Class(), Reason: reason, Attempt: e.Attempt, EndedAt: time.Now().UTC()}
	seq := int64(1)
	if e.Attempt > 0 { // it has events, of which the last may not be out yet, or not be the last
		seq = unnumbered
	}
	ok, err := d.cfg.Store.EndQueued(ctx, e.ID, e.Attempt, jobs.StateEnded, r, d.finalEvent(e, r, seq))
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
	return err
}

// Cancel asks for a job's end and gives where it stood. A queued job ends at once; a running one when its worker hears of it, with the
// next heartbeat at the latest; one that has ended stays as it is.
func (d *Dispatcher) Cancel(ctx context.Context, tenant, id string) (jobs.State, error) {
	if err := jobs.ValidTenant(tenant); err != nil {
		return "", err
	}
	if _, err := jobs.ParseID(id); err != nil {
		return "", notFound(id)
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
		_ = d.endQueued(ctx, e, jobs.Canceled, "canceled before it ran") // reconcile tries again
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
	d.aside(id)
	d.noteEnd(e, time.Now())
	return *e, e.State == jobs.StateQueued
}
