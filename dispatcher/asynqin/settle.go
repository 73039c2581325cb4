package asynqin

import (
	"context"
	"errors"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// settleWithin bounds the wait for the end of a job that is canceled: its program may have some seconds of grace.
const settleWithin = time.Minute

// settle deals with a task that was canceled, or whose time has run out: the job is canceled, and its result kept. asynq calls it, with
// what ended the task, before it takes the task back: until settle returns the task is active. ctx ends with the bridge; taskCtx has
// ended. A task whose lease was lost is another's, or will be this bridge's again: its job runs on.
func (b *bridge) settle(ctx, taskCtx context.Context, why error) {
	if taskCtx.Err() == nil || !errors.Is(why, context.Canceled) && !errors.Is(why, context.DeadlineExceeded) {
		return // it is what the handler returned
	}
	a, t := taskOf(taskCtx)
	select {
	case a.turn <- struct{}{}: // the handler has returned, or will find that it is too late
	case <-ctx.Done():
		return
	}
	defer func() { <-a.turn }()
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	if a.job == "" { // the time had run out before this bridge had it
		m, err := b.mapped(ctx, t)
		if err != nil || m.Retried != t.retried {
			return
		}
		a.job = m.Job
	}
	if a.job == "" {
		return // it never became one
	}
	job, err := b.cancel(ctx, a.job)
	if e, ok := errors.AsType[*jobs.Error](err); ok && e.Code == jobs.CodeNotFound {
		return // it was never admitted
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return // the bridge ends; the next pickup goes on
	}
	if err != nil {
		b.log.Warn().Err(err).Str("job", a.job).Str("task", t.id).Msg("job of an ended task not canceled")
		return
	}
	b.metrics.tasks.WithLabelValues("canceled").Inc()
	_ = b.put(ctx, t, endOf(job, nil)) // the bridge ends: the job's record has it
}

// cancel cancels a job and waits for its end.
func (b *bridge) cancel(ctx context.Context, id string) (jobs.Job, error) {
	for {
		_, err := b.cfg.Brain.Cancel(ctx, b.tenant, id)
		if err == nil {
			return b.cfg.Brain.Await(ctx, b.tenant, id)
		}
		e, ok := errors.AsType[*jobs.Error](err)
		if !ok || e.RetryAfterMS == 0 {
			return jobs.Job{}, err
		}
		if err := sleep(ctx, time.Duration(e.RetryAfterMS)*time.Millisecond); err != nil {
			return jobs.Job{}, err
		}
	}
}
