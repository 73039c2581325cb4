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
// ends, when drain is closed, or when live does: the worker has lost its ground. A request that stands when drain is closed is left to be
// answered, which the dispatcher does when it hears of the drain: what it gave before that is not lost on its way.
func (w *Worker) leases(ctx, live context.Context, drain <-chan struct{}) iter.Seq[[]jobs.Lease] {
	ctx, stop := context.WithCancel(ctx)
	return func(yield func([]jobs.Lease) bool) {
		defer stop()
		defer context.AfterFunc(live, stop)()
		for backoff := leaseBackoff; ctx.Err() == nil && !closed(drain); {
			free, freed := w.cap.free()
			if free.VCPUs < 1 || free.MemoryMiB < 1 || !w.session.mayLease() || w.pools.short.Load() {
				pause(ctx, time.Second, freed, drain) // a session may come back by itself, and memory
				continue
			}
			reply, err := w.askLease(ctx, free)
			if err != nil {
				if ctx.Err() == nil && backoff == leaseBackoff {
					zerolog.Ctx(ctx).Warn().Err(err).Msg("lease request, until it is answered")
				}
				pause(ctx, backoff, nil, drain)
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
		l.Spec.Headroom = headroom(l.Spec.Resources, l.Spec.Headroom)
		w.cap.take(l.Spec.Resources)
	}
	return reply.Leases, nil
}

// pause waits, at most so long, for the first of what may come.
func pause(ctx context.Context, d time.Duration, freed, drain <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-freed:
	case <-drain:
	case <-t.C:
	}
}

func sleep(ctx context.Context, d time.Duration) { pause(ctx, d, nil, nil) }
