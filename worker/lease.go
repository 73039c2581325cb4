package worker

import (
	"context"
	"iter"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/jobs"
)

const (
	leaseWait    = 5 * time.Second // how long a request for leases stands: one to a dispatcher that died is noticed as late as that
	leaseBackoff = 200 * time.Millisecond
	maxBackoff   = 5 * time.Second
)

// leases asks for attempts while there is room and yields what comes, with the resources of each already taken. It ends when ctx
// ends, when drain is closed, or when live does: the worker has lost its ground.
func (w *Worker) leases(ctx, live context.Context, drain <-chan struct{}) iter.Seq[[]jobs.Lease] {
	ctx, stop := context.WithCancel(ctx)
	context.AfterFunc(live, stop)
	return func(yield func([]jobs.Lease) bool) {
		defer stop()
		go func() { // ends with ctx, which the return cancels
			select {
			case <-drain:
				stop()
			case <-ctx.Done():
			}
		}()
		for backoff := leaseBackoff; ctx.Err() == nil; {
			free, freed := w.cap.free()
			if free.VCPUs < 1 || free.MemoryMiB < 1 || !w.session.mayLease() {
				w.waitForRoom(ctx, freed)
				continue
			}
			reply, err := w.askLease(ctx, free)
			if err != nil {
				if ctx.Err() == nil {
					zerolog.Ctx(ctx).Warn().Err(err).Dur("backoff", backoff).Msg("lease request")
				}
				sleep(ctx, backoff)
				backoff = min(2*backoff, maxBackoff)
				continue
			}
			backoff = leaseBackoff
			if len(reply) > 0 && !yield(reply) {
				return
			}
		}
	}
}

// askLease is one request. What it brings is sized and taken here, so that the next request does not offer it again.
func (w *Worker) askLease(ctx context.Context, free jobs.Resources) ([]jobs.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseWait+5*time.Second)
	defer cancel()
	reply, err := w.cfg.Dispatcher.Lease(ctx, jobs.LeaseRequest{
		Worker: w.cfg.Name, Session: w.session.id(), Slots: free.VCPUs, Free: free, Warm: w.pools.warm(), WaitMS: leaseWait.Milliseconds(),
	})
	if err != nil {
		return nil, err
	}
	if reply.Error != nil {
		return nil, reply.Error
	}
	for i := range reply.Leases {
		l := &reply.Leases[i]
		l.Spec.Resources = w.pools.size(l.Image, l.Spec.Resources)
		w.cap.take(l.Spec.Resources)
	}
	return reply.Leases, nil
}

// waitForRoom waits for an attempt to end, or for a moment: a session may come back by itself.
func (w *Worker) waitForRoom(ctx context.Context, freed <-chan struct{}) {
	t := time.NewTimer(time.Second)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-freed:
	case <-t.C:
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
