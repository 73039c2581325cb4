package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/jobs"
)

// submitting is how a command brings jobs in.
type submitting struct {
	// within is how long it comes again where it is told to.
	within time.Duration
	say    func(format string, args ...any)
	// stop, closed, ends that with errLeft; nil: nobody does.
	stop <-chan struct{}
}

// addSubmitting adds its flag.
func addSubmitting(c *cobra.Command) *submitting {
	s := &submitting{say: say}
	c.Flags().DurationVar(&s.within, "submit-within", 15*time.Second, "how long to submit again where Paddock says to: no dispatcher answers just now, or the queue is full")
	return s
}

// key is the idempotency key of what is submitted, as often as that may be: its own, or one that nobody else has.
func (s *submitting) key(own string) string {
	if own != "" || s.within <= 0 {
		return own
	}
	return "paddock-" + jobs.NewID()
}

// submitted submits what has a key until it is taken, or refused for good, or the time is over.
func submitted[T any](ctx context.Context, s *submitting, submit func(ctx context.Context) (T, error)) (T, error) {
	end := time.Now().Add(s.within)
	for told := false; ; told = true {
		r, err := submit(ctx)
		e, ok := errors.AsType[*jobs.Error](err)
		if !ok || e.RetryAfterMS <= 0 {
			return r, err
		}
		after := time.Duration(e.RetryAfterMS) * time.Millisecond
		if time.Now().Add(after).After(end) {
			return r, err
		}
		if !told {
			s.say("%v; trying again for %s", err, s.within)
		}
		select {
		case <-time.After(after):
		case <-s.stop:
			return r, errLeft
		case <-ctx.Done():
			return r, err
		}
	}
}
