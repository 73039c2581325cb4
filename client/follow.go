package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/jobs"
)

// Position is a place in a job's events: the last that was seen. The zero value is the beginning.
type Position struct {
	Attempt int
	Seq     int64
}

// before tells whether the event follows the position: a later one of the same attempt, or one of a later attempt. The final event
// always does: whoever follows is told of the end, once more if need be.
func (p Position) before(e *jobs.Event) bool {
	return e.Attempt > p.Attempt || e.Attempt == p.Attempt && (e.Seq > p.Seq || e.Final)
}

// Follow gives a job's events after a position, those that have been and those that come, each once and in order, until the final one,
// which is given always: where it is not kept any more it is made from the job's record. It ends with an error where the job is not
// known, where ctx ends, or where the client is closed; while the servers are away it waits. Events of an attempt that is over are left
// out when they come late, from a worker that does not know it yet.
func (c *Client) Follow(ctx context.Context, id string, after Position) iter.Seq2[jobs.Event, error] {
	return func(yield func(jobs.Event, error) bool) {
		j, err := c.Get(ctx, id)
		if err != nil {
			yield(jobs.Event{}, err)
			return
		}
		f := follower{c: c, id: j.ID, after: after, yield: yield, quiet: quiet}
		if j.State.Terminal() {
			f.quiet = quietAfterEnd
		}
		for {
			again, err := f.follow(ctx)
			if err != nil {
				yield(jobs.Event{}, err)
			}
			if !again {
				return
			}
			pause(ctx, followAgain)
		}
	}
}

// follower is one Follow.
type follower struct {
	c     *Client
	id    string
	after Position
	seen  uint64 // the last message's place in the stream
	yield func(jobs.Event, error) bool
	quiet time.Duration
}

const (
	// quiet is after how long without an event the job's record is looked at: it may have ended without leaving events.
	quiet = 10 * time.Second
	// quietAfterEnd is the same where the job had ended before, and its events would be here at once.
	quietAfterEnd = time.Second
	// sureToBeOut is how long after its end a job's final event may still be on its way, unless the servers are away.
	sureToBeOut = 20 * time.Second
	// consumerKept is how long the server keeps the consumer of a follower that has vanished.
	consumerKept = 30 * time.Second
	// followAgain is the pause before another consumer is asked for.
	followAgain = 200 * time.Millisecond
	// heartbeat is how often the server says that it has nothing to say; two that are missing mean that the consumer is gone.
	heartbeat = 5 * time.Second
	// makeWithin bounds making a consumer.
	makeWithin = 5 * time.Second
	// deleteWithin bounds telling the server that nobody follows any more.
	deleteWithin = 2 * time.Second
)

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// follow reads events until the last; it gives true where it should be called again: the consumer was lost on the way, or an event on
// its way here. (jetstream.OrderedConsumer does as much, and does not listen to ctx while it tries.)
func (f *follower) follow(ctx context.Context) (again bool, _ error) {
	connected, done := f.connected(ctx)
	defer done()
	consumer, err := f.consumer(ctx)
	if err != nil {
		return f.lost(ctx, err)
	}
	defer f.forget(ctx, consumer)
	events, err := consumer.Messages(jetstream.PullMaxMessages(256), jetstream.PullHeartbeat(heartbeat))
	if err != nil {
		return f.lost(ctx, err)
	}
	defer events.Stop()
	for n := uint64(1); ; n++ {
		m, over, err := f.next(connected, events)
		switch {
		case err != nil:
			return f.lost(ctx, err)
		case over != nil:
			f.yield(*over, nil)
			return false, nil
		}
		meta, err := m.Metadata()
		if err != nil {
			return false, fmt.Errorf("follow %s: %w", f.id, err)
		}
		if meta.Sequence.Consumer != n {
			return true, nil // one is missing
		}
		f.seen = meta.Sequence.Stream
		var e jobs.Event
		if err := json.Unmarshal(m.Data(), &e); err != nil {
			return false, fmt.Errorf("follow %s: %w", f.id, err)
		}
		if !f.after.before(&e) {
			continue
		}
		f.after = Position{e.Attempt, e.Seq}
		if !f.yield(e, nil) || e.Final {
			return false, nil
		}
	}
}

// connected gives a context that ends with the connection as it is now: a consumer may not outlive its server, and would be missed late.
func (f *follower) connected(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	lost := f.c.nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	go func() { // ends with ctx
		defer f.c.nc.RemoveStatusListener(lost)
		select {
		case <-lost:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// consumer makes one that gives what has not been seen.
func (f *follower) consumer(ctx context.Context) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, makeWithin)
	defer cancel()
	cfg := jetstream.ConsumerConfig{
		FilterSubject: jobs.EventSubject(f.c.tenant, f.id), AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1, InactiveThreshold: consumerKept,
	}
	if f.seen > 0 {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, f.seen+1
	}
	return f.c.js.CreateConsumer(ctx, jobs.StreamEvents, cfg)
}

// next waits for the next message. Where none comes and the job is found to be over, it gives the event that says so.
func (f *follower) next(ctx context.Context, events jetstream.MessagesContext) (jetstream.Msg, *jobs.Event, error) {
	for {
		waiting, cancel := context.WithTimeout(ctx, f.quiet)
		m, err := events.Next(jetstream.NextContext(waiting))
		cancel()
		if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, nats.ErrTimeout) {
			return m, nil, err
		}
		if over := f.overWithoutEvent(ctx); over != nil {
			return nil, over, nil
		}
	}
}

// lost tells whether to go on after an error: not for a caller that has had enough, nor on a connection that is closed for good.
func (f *follower) lost(ctx context.Context, err error) (again bool, _ error) {
	switch {
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	case f.c.nc.IsClosed():
		return false, fmt.Errorf("follow %s: %w", f.id, nats.ErrConnectionClosed)
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, nats.ErrPermissionViolation):
		return false, fmt.Errorf("follow %s: %w", f.id, err)
	}
	return true, nil
}

// forget removes the consumer: a server's bound on them is soon reached by jobs that take no longer than a second.
func (f *follower) forget(ctx context.Context, consumer jetstream.Consumer) {
	info := consumer.CachedInfo()
	if info == nil || !f.c.nc.IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteWithin)
	defer cancel()
	_ = f.c.js.DeleteConsumer(ctx, jobs.StreamEvents, info.Name) // it goes by itself later
}

// overWithoutEvent makes the final event of a job whose events are gone, from its record.
func (f *follower) overWithoutEvent(ctx context.Context) *jobs.Event {
	j, err := f.c.Get(ctx, f.id)
	if err != nil || !j.State.Terminal() || time.Since(j.EndedAt) < sureToBeOut {
		return nil // asked again in a moment
	}
	seq := f.after.Seq + 1
	if j.Attempt != f.after.Attempt {
		seq = 1
	}
	return &jobs.Event{
		Type: jobs.EventResult, Job: j.ID, Tenant: j.Tenant, Attempt: j.Attempt, Seq: seq, Time: j.EndedAt, Final: true, Result: j.Result,
	}
}
