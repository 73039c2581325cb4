package bus

import (
	"context"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

// snapshotPending is how many requests for snapshots of one job may wait.
const snapshotPending = 8

// ServeSnapshots takes requests for snapshots of a running job's machine. Each is answered by make, one after the other, until stop, which
// returns when the last has been answered. ctx ends them sooner.
func (b *Bus) ServeSnapshots(ctx context.Context, tenant, job string, take func(context.Context, jobs.SnapshotRequest) (jobs.Snapshot, error)) (stop func(), err error) {
	requests := make(chan *nats.Msg, snapshotPending)
	sub, err := b.nc.ChanSubscribe(jobs.SnapshotSubject(tenant, job), requests)
	if err != nil {
		return nil, unavailable("take requests for snapshots", err)
	}
	stopped := make(chan struct{})
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			select {
			case <-stopped:
				return
			case <-ctx.Done():
				return
			case m := <-requests:
				b.reply(m, b.snapshot(ctx, m, take))
			}
		}
	})
	return func() {
		_ = sub.Unsubscribe() // the connection's end does it too
		close(stopped)
		serving.Wait()
	}, nil
}

func (b *Bus) snapshot(ctx context.Context, m *nats.Msg, take func(context.Context, jobs.SnapshotRequest) (jobs.Snapshot, error)) *jobs.SnapshotReply {
	var q jobs.SnapshotRequest
	var r jobs.SnapshotReply
	var err error
	if r.Warnings, err = jobs.DecodeRequest(m.Data, &q); err == nil {
		var s jobs.Snapshot
		if s, err = take(ctx, q); err == nil {
			r.Snapshot = &s
		}
	}
	r.Error = jobs.ErrorOf(err)
	return &r
}
