package asynqin

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/hibiken/asynq"

	"github.com/paddockvm/paddock/jobs"
)

// Types of tasks.
const (
	typeRun  = "sandbox:run" // the payload is a spec
	typeRoot = "sandbox:"    // followed by a language: the payload is the source
)

// admitWithin bounds one try to admit a job; it is not cut short by the task's end, so that it is known what there is to cancel.
const admitWithin = 10 * time.Second

// attempt is one pickup of a task, shared by its handler and by who deals with its end: it travels in the task's context.
type attempt struct {
	turn chan struct{} // one token: the handler's while it runs
	job  string        // guarded by turn: the job that the task has become
}

type attemptKey struct{}

func withAttempt(ctx context.Context) context.Context {
	return context.WithValue(ctx, attemptKey{}, &attempt{turn: make(chan struct{}, 1)})
}

// taskOf gives what asynq's context says of its task.
func taskOf(ctx context.Context) (a *attempt, t task) {
	a, _ = ctx.Value(attemptKey{}).(*attempt)
	t.id, _ = asynq.GetTaskID(ctx)
	t.queue, _ = asynq.GetQueueName(ctx)
	t.retried, _ = asynq.GetRetryCount(ctx)
	return a, t
}

// process brings a task's job to its end; taskCtx is the task's, ctx ends with the bridge. What it returns decides what asynq does: nil
// completes the task, SkipRetry archives it, and another error is retried.
func (b *bridge) process(ctx, taskCtx context.Context, at *asynq.Task) error {
	b.handlers.RLock()
	defer b.handlers.RUnlock()
	a, t := taskOf(taskCtx)
	a.turn <- struct{}{}
	defer func() { <-a.turn }()
	if taskCtx.Err() != nil {
		return taskCtx.Err() // it had ended before this began: settle has been here
	}
	b.metrics.active.Inc()
	defer b.metrics.active.Dec()
	defer b.lives(taskName{t.queue, t.id})()

	spec, warnings, err := b.spec(at, t.queue)
	if err != nil {
		return b.refuse(taskCtx, t, warnings, err)
	}
	job, err := b.bring(ctx, taskCtx, a, t, spec)
	if taskCtx.Err() != nil {
		return taskCtx.Err() // settle goes on, unless it is the bridge that ends
	}
	if err != nil {
		return b.refuse(taskCtx, t, warnings, err)
	}
	if err := b.put(taskCtx, t, endOf(job, warnings)); err != nil {
		return taskCtx.Err()
	}
	return b.verdict(job)
}

// lives notes that a task has a handler, until over is called.
func (b *bridge) lives(t taskName) (over func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.living[t] = true
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.living, t)
	}
}

// verdict is what asynq is told of a job's end. An error names the job: asynq keeps it with the task, where it tells that this job's end
// has been recorded, and that whatever makes the task run again wants another one.
func (b *bridge) verdict(job jobs.Job) error {
	r := job.Result
	if r.Success() {
		b.metrics.tasks.WithLabelValues("success").Inc()
		return nil
	}
	b.metrics.tasks.WithLabelValues(string(r.Class)).Inc()
	err := fmt.Errorf("%s%s: %s", names(job.ID), job.State, summary(r))
	if job.State == jobs.StateDead || r.Class == jobs.ClassInfra {
		return err
	}
	return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
}

// names begins the error of a task whose job's end asynq has recorded.
func names(job string) string { return "job " + job + " " }

// refuse ends a task that cannot become a job, or whose job cannot be followed.
func (b *bridge) refuse(ctx context.Context, t task, warnings []string, err error) error {
	e := jobs.ErrorOf(err)
	if e.Code == jobs.CodeInternal {
		b.log.Error().Err(err).Str("task", t.id).Msg("task failed")
		return errors.New(e.Message) // retried: it may be mended by then
	}
	b.metrics.tasks.WithLabelValues("refused").Inc()
	if err := b.put(ctx, t, refusal(e, warnings)); err != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%s: %w: %w", e.Code, e, asynq.SkipRetry)
}

// spec reads a task's payload.
func (b *bridge) spec(at *asynq.Task, from string) (*jobs.Spec, []string, error) {
	var spec *jobs.Spec
	var warnings []string
	var err error
	switch language, ok := strings.CutPrefix(at.Type(), typeRoot); {
	case at.Type() == typeRun:
		spec, warnings, err = jobs.Decode(at.Payload(), jobs.Lenient)
	case ok:
		spec = &jobs.Spec{Language: language, Source: string(at.Payload())}
		err = spec.Validate()
	default:
		err = &jobs.Error{Code: jobs.CodeInvalid, Message: fmt.Sprintf("a task of the type %.80q: want %s, or %s and one of %s",
			at.Type(), typeRun, typeRoot, strings.Join(jobs.Languages(), ", "))}
	}
	if err != nil {
		return nil, warnings, err
	}
	if spec.Priority == nil {
		for _, q := range b.queues {
			if q.name == from {
				spec.Priority = &q.priority
			}
		}
	}
	return spec, warnings, nil
}

// bring finds out which job the task is, or begins one, and waits for its end.
func (b *bridge) bring(ctx, taskCtx context.Context, a *attempt, t task, spec *jobs.Spec) (jobs.Job, error) {
	m, known, err := b.claim(taskCtx, t, spec.ID)
	if err != nil {
		return jobs.Job{}, err
	}
	if known {
		b.metrics.reattached.Inc()
	}
	job, err := b.follow(ctx, taskCtx, a, t, &m, spec, known)
	if err == nil && m.Retried != t.retried && job.Result.Ending == jobs.Canceled {
		// The task's time had run out, which canceled that job, and asynq retries it: this is the retry.
		if m, err = b.claimAnew(taskCtx, t, m); err == nil {
			job, err = b.follow(ctx, taskCtx, a, t, &m, spec, false)
		}
	}
	return job, err
}

// follow waits for the end of the job that the task is mapped to, having admitted it where that is to be done. What may succeed later is
// tried again for as long as the task lasts: the task waits as an active one, and its tenant's others behind it.
func (b *bridge) follow(ctx, taskCtx context.Context, a *attempt, t task, m *mapping, spec *jobs.Spec, known bool) (job jobs.Job, err error) {
	a.job = m.Job
	admitted := false
	for pause := time.Duration(0); ; {
		if known || admitted {
			job, err = b.cfg.Brain.Await(taskCtx, b.tenant, m.Job)
		} else if job, err = b.admit(ctx, taskCtx, *m, *spec); err == nil {
			admitted = true
			if job.ID != m.Job { // its idempotency key had brought in that one before
				a.job = job.ID
				*m, err = b.remap(taskCtx, t, *m, job.ID)
			}
			if err == nil {
				continue
			}
		}
		if err == nil && (!job.State.Terminal() || job.Result == nil) {
			return job, fmt.Errorf("job %s is %s without a result", job.ID, job.State)
		}
		if err == nil || taskCtx.Err() != nil {
			return job, err
		}
		e, ok := errors.AsType[*jobs.Error](err)
		switch {
		case ok && known && e.Code == jobs.CodeNotFound:
			known = false // the bridge had died before it was admitted
			continue
		case !ok || e.RetryAfterMS == 0:
			return job, err
		}
		pause = min(max(time.Duration(e.RetryAfterMS)*time.Millisecond, 2*pause, 100*time.Millisecond), 10*time.Second)
		if err := sleep(taskCtx, pause/2+rand.N(pause)); err != nil {
			return job, err
		}
	}
}

// admit admits the job of a mapping. The first run of a task is the job that the producer may have named; a later one cannot be.
func (b *bridge) admit(ctx, taskCtx context.Context, m mapping, spec jobs.Spec) (jobs.Job, error) {
	spec.ID = m.Job
	if m.Run > 1 {
		spec.IdempotencyKey = ""
	}
	if taskCtx.Err() != nil {
		return jobs.Job{}, taskCtx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, admitWithin)
	defer cancel()
	job, _, err := b.cfg.Brain.Admit(ctx, b.tenant, &spec)
	if err != nil && ctx.Err() != nil {
		return job, &jobs.Error{Code: jobs.CodeUnavailable, Message: fmt.Sprintf("no answer within %s", admitWithin), RetryAfterMS: 1000}
	}
	return job, err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
