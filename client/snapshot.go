package client

import (
	"context"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// snapshotWithin bounds a snapshot, as askWithin does what is quick: a large disk is copied, and files are read to be hashed.
const snapshotWithin = 10 * time.Minute

// Snapshot has the state of a running job's machine kept, while the job runs on, and gives what was kept. Jobs run in it by its Image.
func (c *Client) Snapshot(ctx context.Context, id string, r jobs.SnapshotRequest) (jobs.Snapshot, error) {
	if err := named(id); err != nil {
		return jobs.Snapshot{}, err
	}
	subject := jobs.SnapshotSubject(c.tenant, id)
	reply, err := askFor[jobs.SnapshotReply](ctx, c, snapshotWithin, subject, r)
	switch {
	case err != nil:
		return jobs.Snapshot{}, unheard(err, "nobody makes a snapshot of the job: it does not run, or its worker keeps none")
	case reply.Error != nil:
		return jobs.Snapshot{}, reply.Error
	case reply.Snapshot == nil:
		return jobs.Snapshot{}, strange(subject)
	}
	return *reply.Snapshot, nil
}
