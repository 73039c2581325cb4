package bustest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/jobs"
)

// Brain is a bus.Brain that behaves: it takes what is valid, knows a key again, and tells tenants apart. It runs nothing.
type Brain struct {
	mu     sync.Mutex
	jobs   []*jobs.Job
	bodies map[string]string    // hashes, by job
	keys   map[string]*jobs.Job // by tenant and key
	// Before may hold up or refuse an operation. The ones below answer workers; nil answers with nothing.
	Before   func(ctx context.Context, op string) error
	OnLease  func(ctx context.Context, r jobs.LeaseRequest) (jobs.LeaseReply, error)
	OnBeat   func(ctx context.Context, b jobs.Beat) (jobs.BeatReply, error)
	OnReport func(ctx context.Context, r jobs.Report) (jobs.ReportReply, error)
}

var _ bus.Brain = (*Brain)(nil)

func (b *Brain) before(ctx context.Context, op string) error {
	if b.Before == nil {
		return nil
	}
	return b.Before(ctx, op)
}

// Admit implements bus.Brain.
func (b *Brain) Admit(ctx context.Context, tenant string, spec *jobs.Spec) (jobs.Job, bool, error) {
	if err := b.before(ctx, "admit"); err != nil {
		return jobs.Job{}, false, err
	}
	if err := jobs.ValidTenant(tenant); err != nil {
		return jobs.Job{}, false, err
	}
	if err := spec.Validate(); err != nil {
		return jobs.Job{}, false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	known := b.keys[tenant+" "+spec.IdempotencyKey]
	if spec.IdempotencyKey == "" {
		known = b.find(tenant, spec.ID)
	}
	switch {
	case known != nil && b.bodies[known.ID] == spec.Hash():
		return *known, true, nil
	case known != nil:
		return jobs.Job{}, false, &jobs.Error{Code: jobs.CodeConflict, Message: "another body"}
	}
	j := &jobs.Job{ID: spec.ID, Tenant: tenant, State: jobs.StateQueued, AcceptedAt: time.Now().UTC(), Spec: spec}
	if j.ID == "" {
		j.ID = jobs.NewID()
	}
	b.jobs = append(b.jobs, j)
	if b.keys == nil {
		b.keys, b.bodies = map[string]*jobs.Job{}, map[string]string{}
	}
	b.bodies[j.ID] = spec.Hash()
	if spec.IdempotencyKey != "" {
		b.keys[tenant+" "+spec.IdempotencyKey] = j
	}
	return *j, false, nil
}

func (b *Brain) find(tenant, id string) *jobs.Job {
	for _, j := range b.jobs {
		if j.ID == id && j.Tenant == tenant {
			return j
		}
	}
	return nil
}

// Get implements bus.Brain.
func (b *Brain) Get(ctx context.Context, tenant, id string) (jobs.Job, error) {
	if err := b.before(ctx, "get"); err != nil {
		return jobs.Job{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if j := b.find(tenant, id); j != nil {
		return *j, nil
	}
	return jobs.Job{}, &jobs.Error{Code: jobs.CodeNotFound, Message: fmt.Sprintf("no job %q", id)}
}

// List implements bus.Brain.
func (b *Brain) List(ctx context.Context, tenant string, q jobs.ListRequest) (jobs.ListReply, error) {
	if err := b.before(ctx, "list"); err != nil {
		return jobs.ListReply{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	all := []jobs.Job{}
	for _, j := range b.jobs {
		if j.Tenant == tenant && (q.Before == "" || j.ID < q.Before) && (len(q.States) == 0 || slices.Contains(q.States, j.State)) {
			all = append(all, *j)
			all[len(all)-1].Spec = nil
		}
	}
	slices.SortFunc(all, func(x, y jobs.Job) int { return strings.Compare(y.ID, x.ID) })
	r := jobs.ListReply{Jobs: all}
	if q.Limit > 0 && len(all) > q.Limit {
		r.Jobs, r.Next = all[:q.Limit], all[q.Limit-1].ID
	}
	return r, nil
}

// Cancel implements bus.Brain: what waits ends at once.
func (b *Brain) Cancel(ctx context.Context, tenant, id string) (jobs.State, error) {
	j, err := b.Get(ctx, tenant, id)
	if err == nil && !j.State.Terminal() {
		b.End(id, jobs.Result{Ending: jobs.Canceled, Class: jobs.ClassPolicy}, time.Now().UTC())
	}
	return j.State, err
}

// End writes a job's end into its record.
func (b *Brain) End(id string, r jobs.Result, at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, j := range b.jobs {
		if j.ID == id {
			j.State, j.Result, j.EndedAt, j.Attempt = jobs.StateEnded, &r, at, r.Attempt
		}
	}
}

// Add puts a job into the records, and gives its id.
func (b *Brain) Add(tenant string) string {
	j, _, err := b.Admit(context.Background(), tenant, &jobs.Spec{Language: "python", Source: "1"})
	if err != nil {
		panic(err) // it is valid
	}
	return j.ID
}

// Jobs are the records, oldest first.
func (b *Brain) Jobs() (l []jobs.Job) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, j := range b.jobs {
		l = append(l, *j)
	}
	return l
}

// Lease implements bus.Brain.
func (b *Brain) Lease(ctx context.Context, r jobs.LeaseRequest) (jobs.LeaseReply, error) {
	if b.OnLease == nil {
		return jobs.LeaseReply{}, nil
	}
	return b.OnLease(ctx, r)
}

// Beat implements bus.Brain.
func (b *Brain) Beat(ctx context.Context, r jobs.Beat) (jobs.BeatReply, error) {
	if b.OnBeat == nil {
		return jobs.BeatReply{}, nil
	}
	return b.OnBeat(ctx, r)
}

// Report implements bus.Brain.
func (b *Brain) Report(ctx context.Context, r jobs.Report) (jobs.ReportReply, error) {
	if b.OnReport == nil {
		return jobs.ReportReply{}, nil
	}
	return b.OnReport(ctx, r)
}
