package worker

import (
	"context"
	"errors"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
)

// SnapshotKeeper is Images that can keep the state of running machines. Its errors that clients can do something about are *jobs.Error.
type SnapshotKeeper interface {
	// Snapshot keeps the state of a machine that was cloned from t, and lets it run on.
	Snapshot(ctx context.Context, m vmm.Machine, t vmm.Template, o jobs.SnapshotOrigin, r jobs.SnapshotRequest) (jobs.Snapshot, error)
}

// templateReleaser is Images that keep what a template depends on until it was released as often as it was given.
type templateReleaser interface{ Release(t vmm.Template) }

// SnapshotRequests takes requests for snapshots of a running job's machine: from ServeSnapshots' return until stop each is answered by
// keep, one after the other. stop returns when the last has been answered; ctx ends them sooner.
type SnapshotRequests interface {
	ServeSnapshots(ctx context.Context, tenant, job string, keep func(context.Context, jobs.SnapshotRequest) (jobs.Snapshot, error)) (stop func(), err error)
}

// serveSnapshots has snapshots of the machine made when the job's tenant asks, until stop: a snapshot that is being made is finished before
// the machine's end, unless the attempt is ended.
func (a *attempt) serveSnapshots(ctx context.Context, m *machine) (stop func()) {
	keeper, ok := a.w.cfg.Images.(SnapshotKeeper)
	if !ok || a.w.cfg.Snapshots == nil {
		return func() {}
	}
	o := jobs.SnapshotOrigin{Tenant: a.lease.Tenant, Job: a.lease.Job, Worker: a.w.cfg.Name}
	stop, err := a.w.cfg.Snapshots.ServeSnapshots(ctx, o.Tenant, o.Job, func(ctx context.Context, r jobs.SnapshotRequest) (jobs.Snapshot, error) {
		s, err := keeper.Snapshot(ctx, m.Machine, m.tmpl, o, r)
		if _, told := errors.AsType[*jobs.Error](err); err != nil && !told {
			zerolog.Ctx(ctx).Error().Err(err).Str("machine", m.ID()).Msg("cannot make a snapshot")
			err = &jobs.Error{Code: jobs.CodeInternal, Message: "the snapshot could not be made; the log of worker " + o.Worker + " says why"}
		}
		if err == nil {
			o.Last = s.ID
		}
		return s, err
	})
	if err != nil { // the job runs all the same
		zerolog.Ctx(ctx).Warn().Err(err).Msg("nobody can ask for snapshots of this job")
		return func() {}
	}
	return stop
}

// ownSnapshot refuses another tenant's snapshot. Admission does so too.
func (a *attempt) ownSnapshot() error {
	if t := jobs.SnapshotTenant(a.lease.Image); t != "" && t != a.lease.Tenant {
		return &failure{jobs.ImageFailed, errors.New("there is no such snapshot of this tenant")}
	}
	return nil
}
