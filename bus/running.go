package bus

import (
	"context"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

// runningPending is how many requests of one kind to one running job may wait.
const runningPending = 8

// serveRunning takes requests to a running job on a subject. Each is answered, one after the other, until stop, which returns when the last
// has been answered. ctx ends them sooner.
func (b *Bus) serveRunning(ctx context.Context, subject string, answer func(ctx context.Context, body []byte) any) (stop func(), err error) {
	requests := make(chan *nats.Msg, runningPending)
	sub, err := b.nc.ChanSubscribe(subject, requests)
	if err != nil {
		return nil, unavailable("take requests on "+subject, err)
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
				if b.strange(m) {
					continue
				}
				b.reply(m, answer(ctx, m.Data))
			}
		}
	})
	return func() {
		_ = sub.Unsubscribe() // the connection's end does it too
		close(stopped)
		serving.Wait()
	}, nil
}

// ServeSnapshots takes requests for snapshots of a running job's machine, which take makes.
func (b *Bus) ServeSnapshots(ctx context.Context, tenant, job string, take func(context.Context, jobs.SnapshotRequest) (jobs.Snapshot, error)) (stop func(), err error) {
	return b.serveRunning(ctx, jobs.SnapshotSubject(tenant, job), func(ctx context.Context, body []byte) any {
		var q jobs.SnapshotRequest
		var r jobs.SnapshotReply
		var err error
		if r.Warnings, err = jobs.DecodeRequest(body, &q); err == nil {
			var s jobs.Snapshot
			if s, err = take(ctx, q); err == nil {
				r.Snapshot = &s
			}
		}
		r.Error = b.errorOf(err)
		return &r
	})
}

// ServeResizes takes requests for another size of a running job's machine, which resize gives it.
func (b *Bus) ServeResizes(ctx context.Context, tenant, job string, resize func(context.Context, jobs.ResizeRequest) (jobs.Resources, error)) (stop func(), err error) {
	return b.serveRunning(ctx, jobs.ResizeSubject(tenant, job), func(ctx context.Context, body []byte) any {
		var q jobs.ResizeRequest
		var r jobs.ResizeReply
		var err error
		if r.Warnings, err = jobs.DecodeRequest(body, &q); err == nil {
			var now jobs.Resources
			if now, err = resize(ctx, q); err == nil {
				r.Resources = &now
			}
		}
		r.Error = b.errorOf(err)
		return &r
	})
}
