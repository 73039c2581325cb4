package dispatcher

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

const (
	outboxBatch = 256
	outboxRetry = 500 * time.Millisecond
)

// drainOutbox publishes the events that transitions have committed, in their order, until ctx ends. An event is forgotten only after
// the broker has it; one that is published twice is dropped there.
func (d *Dispatcher) drainOutbox(ctx context.Context) error {
	for {
		n, err := d.publishOutbox(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // stopping; what was not published is in the ledger
		}
		pause := time.Hour // until nudged
		if err != nil {
			zerolog.Ctx(ctx).Warn().Err(err).Msg("publish outbox")
			pause = outboxRetry
		} else if n == outboxBatch {
			continue
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-d.outbox:
		case <-t.C:
		}
		t.Stop()
	}
}

func (d *Dispatcher) publishOutbox(ctx context.Context) (int, error) {
	batch, err := d.cfg.Store.Outbox(ctx, outboxBatch)
	if err != nil || len(batch) == 0 {
		return 0, err
	}
	events, ids := make([]jobs.Event, len(batch)), make([]int64, len(batch))
	for i, o := range batch {
		events[i], ids[i] = o.Event, o.ID
	}
	if err := d.cfg.Events.Publish(ctx, events...); err != nil {
		return 0, err
	}
	for _, o := range batch {
		if o.Dead {
			if err := d.bury(ctx, o); err != nil {
				return 0, err
			}
		}
	}
	return len(batch), d.cfg.Store.Published(ctx, ids)
}

// bury puts a job that will not be tried again into the dead-letter queue.
func (d *Dispatcher) bury(ctx context.Context, o ledger.Outgoing) error {
	j, err := d.cfg.Store.Get(ctx, o.Event.Tenant, o.Event.Job)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	reason := ""
	if o.Event.Result != nil {
		reason = string(o.Event.Result.Ending) + ": " + o.Event.Result.Reason
	}
	return d.cfg.Events.DeadLetter(ctx, j, reason)
}
