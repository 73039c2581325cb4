package asynqin_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/paddockvm/paddock/dispatcher/asynqin"
	"github.com/paddockvm/paddock/jobs"
)

// brain is an asynqin.Brain that behaves: it admits as the dispatcher does, and "runs" a job's source, which is a list of words:
// "sleep 50ms", "exit 3", "print text", "infra" (every attempt fails), "hold" (until it is released or canceled), "large",
// "words" (that are none).
type brain struct {
	mu     sync.Mutex
	jobs   map[string]*running
	keys   map[string]*running // by tenant and idempotency key
	order  []string
	refuse func(tenant string, spec *jobs.Spec) error // may refuse what would be admitted
}

// running is a job.
type running struct {
	job     jobs.Job
	hash    string
	release chan struct{} // closed: go on
	cancel  chan struct{} // closed: canceled
	ended   chan struct{}
}

var _ asynqin.Brain = (*brain)(nil)

func newBrain() *brain { return &brain{jobs: map[string]*running{}, keys: map[string]*running{}} }

func (b *brain) Admit(_ context.Context, tenant string, spec *jobs.Spec) (jobs.Job, bool, error) {
	if err := errors.Join(jobs.ValidTenant(tenant), spec.Validate()); err != nil {
		e, _ := errors.AsType[*jobs.Error](err)
		return jobs.Job{}, false, e
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	known := b.jobs[spec.ID]
	if spec.IdempotencyKey != "" && b.keys[tenant+" "+spec.IdempotencyKey] != nil {
		known = b.keys[tenant+" "+spec.IdempotencyKey]
	}
	if known != nil && (known.hash != spec.Hash() || known.job.Tenant != tenant) {
		return jobs.Job{}, false, &jobs.Error{Code: jobs.CodeConflict, Message: "another body"}
	}
	if known != nil {
		return known.job, true, nil
	}
	if b.refuse != nil {
		if err := b.refuse(tenant, spec); err != nil {
			return jobs.Job{}, false, err
		}
	}
	id := spec.ID
	if id == "" {
		id = jobs.NewID()
	}
	r := &running{
		job:  jobs.Job{ID: id, Tenant: tenant, State: jobs.StateQueued, AcceptedAt: time.Now().UTC(), Spec: spec},
		hash: spec.Hash(), release: make(chan struct{}), cancel: make(chan struct{}), ended: make(chan struct{}),
	}
	b.jobs[id] = r
	b.order = append(b.order, id)
	if spec.IdempotencyKey != "" {
		b.keys[tenant+" "+spec.IdempotencyKey] = r
	}
	job := r.job
	go b.run(r)
	return job, false, nil
}

func (b *brain) Await(ctx context.Context, tenant, id string) (jobs.Job, error) {
	r, err := b.find(tenant, id)
	if err != nil {
		return jobs.Job{}, err
	}
	select {
	case <-r.ended:
	case <-ctx.Done():
		return jobs.Job{}, context.Cause(ctx)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return r.job, nil
}

func (b *brain) Cancel(_ context.Context, tenant, id string) (jobs.State, error) {
	r, err := b.find(tenant, id)
	if err != nil {
		return "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !r.job.CancelRequested {
		r.job.CancelRequested = true
		close(r.cancel)
	}
	return r.job.State, nil
}

func (b *brain) find(tenant, id string) (*running, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r := b.jobs[id]; r != nil && r.job.Tenant == tenant {
		return r, nil
	}
	return nil, &jobs.Error{Code: jobs.CodeNotFound, Message: fmt.Sprintf("no job %q", id)}
}

// run runs a job's source, for as long as that takes.
func (b *brain) run(r *running) {
	b.set(r, func(j *jobs.Job) { j.State, j.Attempt = jobs.StateRunning, 1 })
	code, out := 0, ""
	res := jobs.Result{Ending: jobs.Exited, Attempt: 1, Worker: "w"}
	for word := range strings.SplitSeq(r.job.Spec.Source, "; ") {
		verb, arg, _ := strings.Cut(word, " ")
		switch verb {
		case "exit":
			code, _ = strconv.Atoi(arg)
		case "print":
			out += arg + "\n"
		case "infra":
			res.Ending = jobs.WorkerLost
		case "expire":
			res.Ending = jobs.Expired
		case "large":
			res.Artifacts = []jobs.ArtifactResult{{Path: "a", Size: 60 << 10, Content: jobs.ContentOf([]byte(strings.Repeat("a", 60<<10)))}}
			for i := range 8 {
				text := strings.Repeat("é", jobs.MaxResultOutput/2)
				res.Steps = append(res.Steps, jobs.StepResult{Name: fmt.Sprint(i), Ending: jobs.Exited, ExitCode: new(int),
					Stdout: jobs.Output{Content: jobs.ContentOf([]byte(text)), Bytes: int64(len(text))}})
			}
		case "words":
			res.Signal, res.Limit, res.Template = strings.Repeat("s", 50<<10), strings.Repeat("<", 50<<10), strings.Repeat("t", 50<<10)
		case "sleep", "hold":
			d, err := time.ParseDuration(arg)
			if err != nil {
				d = time.Hour
			}
			t := time.NewTimer(d)
			select {
			case <-t.C:
			case <-r.release:
			case <-r.cancel:
				res.Ending = jobs.Canceled
			}
			t.Stop()
		}
		if res.Ending != jobs.Exited {
			break
		}
	}
	if res.Class = res.Ending.Class(); res.Class == jobs.ClassUser {
		res.ExitCode = &code
		res.Steps = append(res.Steps, jobs.StepResult{Name: "0", Ending: jobs.Exited, ExitCode: &code, Stdout: jobs.Output{Content: jobs.ContentOf([]byte(out)), Bytes: int64(len(out))}})
	}
	b.set(r, func(j *jobs.Job) {
		j.State, j.EndedAt, j.Result = jobs.StateEnded, time.Now().UTC(), &res
		if res.Class == jobs.ClassInfra {
			j.State = jobs.StateDead
		}
	})
	close(r.ended)
}

func (b *brain) set(r *running, f func(*jobs.Job)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&r.job)
}

// all are the jobs that were ever admitted, in order.
func (b *brain) all() (l []jobs.Job) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range b.order {
		l = append(l, b.jobs[id].job)
	}
	return l
}

// letGo releases every job that is held.
func (b *brain) letGo() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.jobs {
		select {
		case <-r.release:
		default:
			close(r.release)
		}
	}
}
