package objects

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// asking gives a context with no deadline, which ends with its parent all the same. Of one with a deadline nats.go takes that for how long it
// waits for each answer, also for one that was lost: an hour, where an object may take so long. Of one without it takes what its JetStream has
// for a default.
func asking(ctx context.Context) context.Context { return undated{ctx} }

type undated struct{ context.Context } //nolint:containedctx // it is one

// Deadline implements context.Context.
func (undated) Deadline() (t time.Time, is bool) { return t, false }

// open begins to read an object, which may take ctx's time; until there is something to read it may take an answer's.
func (s *JetStream) open(ctx context.Context, o jetstream.ObjectStore, name string) (jetstream.ObjectResult, error) {
	reading, giveUp := context.WithCancel(ctx)
	late := time.AfterFunc(s.js.Options().DefaultTimeout, giveUp)
	r, err := o.Get(reading, name)
	if !late.Stop() && err == nil {
		_ = r.Close() // it is not read
		err = context.Canceled
	}
	if err != nil {
		giveUp()
	}
	return r, err // whoever has read it ends ctx
}
