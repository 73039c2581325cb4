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

// An event is forgotten only after the broker has it. Whether it has the events that were being published when this process's last life
// ended, or when the broker or the ledger did not answer, is asked before they are published again: the broker itself knows a repeat
// for minutes only, and a viewer must not see a second end. One batch at a time is published, the oldest first, so that only the
// outbox's head can be such.

// drainOutbox publishes the events that transitions have committed, in their order, until ctx ends.
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

// flushOutbox returns when all that transitions have committed until now is published.
func (d *Dispatcher) flushOutbox(ctx context.Context) error {
	for {
		if n, err := d.publishOutbox(ctx); err != nil || n < outboxBatch {
			return err
		}
	}
}

// publishOutbox publishes one batch and gives its length.
func (d *Dispatcher) publishOutbox(ctx context.Context) (int, error) {
	select {
	case d.publishing <- struct{}{}:
		defer func() { <-d.publishing }()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	batch, err := d.cfg.Store.Outbox(ctx, outboxBatch)
	if err != nil || len(batch) == 0 {
		return 0, err
	}
	events, ids := make([]jobs.Event, 0, len(batch)), make([]int64, len(batch))
	for i, o := range batch {
		ids[i] = o.ID
		there := false
		if d.unsure {
			if there, err = d.published(ctx, o.Event); err != nil {
				return 0, err
			}
		}
		if there {
			continue
		}
		events = append(events, o.Event)
		if o.Dead { // before its event is out, which then tells that this has been done
			if err := d.bury(ctx, o); err != nil {
				return 0, err
			}
		}
	}
	d.unsure = true
	if err := d.publish(ctx, events); err != nil {
		return 0, err
	}
	if err := d.cfg.Store.Published(ctx, ids); err != nil {
		return 0, err
	}
	d.unsure = false
	return len(batch), nil
}

// publish publishes events together, or one after the other where one of them is more than a message carries: that one is given up, for
// it would hold up everybody's for ever. Workers keep results far below.
func (d *Dispatcher) publish(ctx context.Context, events []jobs.Event) error {
	err := d.cfg.Events.Publish(ctx, events...)
	if !tooLarge(err) {
		return err
	}
	for _, e := range events {
		switch err := d.cfg.Events.Publish(ctx, e); {
		case tooLarge(err):
			zerolog.Ctx(ctx).Error().Err(err).Str("job", e.Job).Int("attempt", e.Attempt).Msg("event cannot be published; the ledger has it")
		case err != nil:
			return err
		}
	}
	return nil
}

func tooLarge(err error) bool {
	e, ok := errors.AsType[*jobs.Error](err)
	return ok && e.Code == jobs.CodeTooLarge
}

// published tells whether viewers can see an event already.
func (d *Dispatcher) published(ctx context.Context, e jobs.Event) (bool, error) {
	last, err := d.lastSeq(ctx, e.Tenant, e.Job, e.Attempt)
	return last >= e.Seq, err
}

// lastSeqWithin bounds each question to the broker: what it does not answer holds up one job, not everybody's.
const lastSeqWithin = 2 * time.Second

func (d *Dispatcher) lastSeq(ctx context.Context, tenant, job string, attempt int) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, lastSeqWithin)
	defer cancel()
	return d.cfg.Events.LastSeq(ctx, tenant, job, attempt)
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
