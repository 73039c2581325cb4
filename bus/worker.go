package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

// Beat sends a worker's heartbeat.
func (b *Bus) Beat(ctx context.Context, r jobs.Beat) (jobs.BeatReply, error) {
	reply, _, err := ask[jobs.BeatReply](ctx, b, b.fleet(jobs.HeartbeatSubject), r)
	return reply, err
}

// Report sends an attempt's result.
func (b *Bus) Report(ctx context.Context, r jobs.Report) (jobs.ReportReply, error) {
	reply, _, err := ask[jobs.ReportReply](ctx, b, b.fleet(jobs.ReportSubject), r)
	return reply, err
}

// askFailed tells what can be tried again from what cannot.
func askFailed(err error, size int) error {
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		return &jobs.Error{Code: jobs.CodeTooLarge, Message: fmt.Sprintf("%d bytes are more than the NATS server takes", size)}
	case errors.Is(err, nats.ErrNoResponders):
		return unavailable("no dispatcher answers", err)
	}
	return unavailable("ask the dispatcher", err)
}
