package dispatcher

import (
	"context"
	"errors"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// Redrive brings a dead job in again: a new job of the same spec, without its times and keys. A dead job is redriven or dropped once.
func (d *Dispatcher) Redrive(ctx context.Context, tenant, id string) (jobs.Job, error) {
	dead, err := d.dead(ctx, tenant, id)
	if err != nil {
		return dead, err
	}
	spec := *dead.Spec
	spec.ID, spec.IdempotencyKey, spec.RunAt, spec.DependsOn = "", "", time.Time{}, nil
	if err := d.runnable(ctx, tenant, &spec); err != nil {
		return dead, err
	}
	a := admission(tenant, &spec, time.Now())
	a.Job.RedriveOf, a.Entry.RedriveOf = id, id
	p, err := d.enterQueue(tenant, 1, int64(a.Entry.Bytes))
	if err != nil {
		return dead, err
	}
	defer p.leave()
	_, ok, err := d.cfg.Store.Redrive(ctx, id, a) // its id is new, and it has no key
	if err != nil {
		d.doubt(a.Entry.ID)
		return dead, d.broken(ctx, "redrive job", err)
	}
	if !ok {
		return dead, notDead(id)
	}
	d.metrics.submitted.Inc()
	d.enqueue(a.Entry)
	return a.Job, nil
}

// DropDead takes a dead job from among those that wait for somebody to decide.
func (d *Dispatcher) DropDead(ctx context.Context, tenant, id string) (jobs.Job, error) {
	dead, err := d.dead(ctx, tenant, id)
	if err != nil {
		return dead, err
	}
	ok, err := d.cfg.Store.Drop(ctx, tenant, id)
	if err != nil {
		return dead, d.broken(ctx, "drop dead job", err)
	}
	if !ok {
		return dead, notDead(id)
	}
	return d.Get(ctx, tenant, id)
}

// dead gives a job that is dead, and whose fate is open.
func (d *Dispatcher) dead(ctx context.Context, tenant, id string) (jobs.Job, error) {
	if err := jobs.ValidTenant(tenant); err != nil {
		return jobs.Job{}, err
	}
	if err := d.ready(ctx); err != nil {
		return jobs.Job{}, err
	}
	j, err := d.find(ctx, tenant, id)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return j, notFound(id)
	case err != nil:
		return j, d.broken(ctx, "get job", err)
	case j.State != jobs.StateDead || j.RedrivenBy != "":
		return j, notDead(id)
	}
	return j, nil
}

func notDead(id string) *jobs.Error {
	return &jobs.Error{Code: jobs.CodeConflict, Message: "the job " + id + " is not dead, or was redriven or dropped already"}
}
