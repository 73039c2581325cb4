package client

import (
	"context"
	"errors"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// snapshotWithin bounds a snapshot where ctx does not: a large disk is copied, and files are read to be hashed.
const snapshotWithin = 10 * time.Minute

// Snapshot has the state of a running job's machine kept, while the job runs on, and gives what was kept. Jobs run in it by its Image.
func (c *Client) Snapshot(ctx context.Context, id string, r jobs.SnapshotRequest) (jobs.Snapshot, error) {
	if err := named(id); err != nil {
		return jobs.Snapshot{}, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, snapshotWithin)
		defer cancel()
	}
	subject := jobs.SnapshotSubject(c.tenant, id)
	reply, err := ask[jobs.SnapshotReply](ctx, c, subject, r)
	if e, ok := errors.AsType[*jobs.Error](err); ok && e.Code == jobs.CodeUnavailable {
		return jobs.Snapshot{}, &jobs.Error{Code: jobs.CodeUnavailable, Message: "nobody makes a snapshot of the job: it does not run, or its worker keeps none", RetryAfterMS: e.RetryAfterMS}
	}
	switch {
	case err != nil:
		return jobs.Snapshot{}, err
	case reply.Error != nil:
		return jobs.Snapshot{}, reply.Error
	case reply.Snapshot == nil:
		return jobs.Snapshot{}, strange(subject)
	}
	return *reply.Snapshot, nil
}
