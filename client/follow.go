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

// before tells whether the event follows the position: the next of the same attempt, or one of a later attempt.
func (p Position) before(e *jobs.Event) bool {
	return e.Attempt > p.Attempt || e.Attempt == p.Attempt && e.Seq > p.Seq
}

// Follow gives a job's events after a position, those that have been and those that come, each once and in order, until the last. It
// ends with an error where the job is not known or the events are not kept any more. Events of an attempt that is over are left out
// when they come late, from a worker that does not know it yet.
func (c *Client) Follow(ctx context.Context, id string, after Position) iter.Seq2[jobs.Event, error] {
	return func(yield func(jobs.Event, error) bool) {
		for {
			again, err := c.follow(ctx, id, &after, yield)
			if err != nil {
				yield(jobs.Event{}, err)
			}
			if !again {
				return
			}
		}
	}
}

// quiet is after how long without an event the job's record is looked at: it may have ended without leaving events.
const quiet = 10 * time.Second

// follow reads events until the last; it gives true where it should be called again: the stream was lost on the way.
func (c *Client) follow(ctx context.Context, id string, after *Position, yield func(jobs.Event, error) bool) (again bool, _ error) {
	if _, err := c.Get(ctx, id); err != nil {
		return false, err
	}
	consumer, err := c.js.OrderedConsumer(ctx, jobs.StreamEvents, jetstream.OrderedConsumerConfig{FilterSubjects: []string{jobs.EventSubject(c.tenant, id)}})
	if err != nil {
		return false, fmt.Errorf("follow %s: %w", id, err)
	}
	events, err := consumer.Messages(jetstream.PullMaxMessages(256))
	if err != nil {
		return false, fmt.Errorf("follow %s: %w", id, err)
	}
	defer events.Stop()
	for {
		waiting, cancel := context.WithTimeout(ctx, quiet)
		m, err := events.Next(jetstream.NextContext(waiting))
		cancel()
		switch {
		case ctx.Err() != nil:
			return false, context.Cause(ctx)
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
			if over := c.overWithoutEvent(ctx, id, *after); over != nil {
				yield(*over, nil)
				return false, nil
			}
			continue
		case errors.Is(err, jetstream.ErrMsgIteratorClosed):
			return true, nil
		case err != nil:
			continue // a missed heartbeat: the consumer is being made anew
		}
		var e jobs.Event
		if err := json.Unmarshal(m.Data(), &e); err != nil {
			return false, fmt.Errorf("follow %s: %w", id, err)
		}
		if !after.before(&e) {
			continue
		}
		*after = Position{e.Attempt, e.Seq}
		if !yield(e, nil) || e.Final {
			return false, nil
		}
	}
}

// overWithoutEvent makes the final event of a job whose events are gone, from its record.
func (c *Client) overWithoutEvent(ctx context.Context, id string, after Position) *jobs.Event {
	j, err := c.Get(ctx, id)
	if err != nil || !j.State.Terminal() || time.Since(j.EndedAt) < 2*quiet {
		return nil // asked again in a moment
	}
	return &jobs.Event{
		Type: jobs.EventResult, Job: j.ID, Tenant: j.Tenant, Attempt: j.Attempt, Seq: after.Seq + 1, Time: j.EndedAt, Final: true, Result: j.Result,
	}
}

// Wait waits for a job's end and gives its result.
func (c *Client) Wait(ctx context.Context, id string) (jobs.Result, error) {
	ended := make(chan *nats.Msg, 256)
	sub, err := c.nc.ChanSubscribe(jobs.EventSubject(c.tenant, id), ended)
	if err != nil {
		return jobs.Result{}, err
	}
	defer sub.Unsubscribe()  //nolint:errcheck // the connection's end does it too
	look := time.NewTimer(0) // it may have ended before
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return jobs.Result{}, context.Cause(ctx)
		case m := <-ended:
			var e jobs.Event
			if err := json.Unmarshal(m.Data, &e); err == nil && e.Final && e.Result != nil {
				return *e.Result, nil
			}
		case <-look.C: // and messages that nobody keeps for us can be lost
			j, err := c.Get(ctx, id)
			if err != nil {
				if e, ok := errors.AsType[*jobs.Error](err); ok && e.Code == jobs.CodeNotFound {
					return jobs.Result{}, err
				}
			} else if j.State.Terminal() && j.Result != nil {
				return *j.Result, nil
			}
			look.Reset(2 * time.Second)
		}
	}
}
