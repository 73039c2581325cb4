package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

// Position is a place in a job's events: the last that was seen. The zero value is the beginning.
type Position struct {
	Attempt int
	Seq     int64
}

// Follow gives a job's events after a position, those that have been and those that come, each once and in order, until the final one,
// which is given always: where it is not kept any more it is made from the job's record. Where others are not kept any more, an event of
// the type lost stands in their place. It ends with an error where the job is not known, where nobody answers when it begins, where ctx
// ends, or where the client is closed; while the servers are away later on it waits. Events of an attempt that is over are left out when
// they come late, from a worker that does not know it yet. A caller that takes its time gets every event all the same, and holds up
// nobody: what it is behind with stays in the stream.
func (c *Client) Follow(ctx context.Context, id string, after Position) iter.Seq2[jobs.Event, error] {
	return func(yield func(jobs.Event, error) bool) {
		f := &follower{c: c, id: id, after: jobs.Position{Attempt: after.Attempt, Seq: after.Seq}, yield: yield, live: newLive()}
		if err := f.follow(ctx); err != nil {
			yield(jobs.Event{}, err)
		}
	}
}

// follower is one Follow: it subscribes first, reads what has been from the stream, and goes on with what has come meanwhile and what
// comes. Whenever something is missing in that, it reads from the stream again.
type follower struct {
	c      *Client
	id     string
	after  jobs.Position
	yield  func(jobs.Event, error) bool
	live   *live
	status chan nats.Status
	asked  bool // a dispatcher has answered
	over   bool // the final event has been given, or the caller has had enough
	sure   bool // what was published before the subscription is stored, and has been read
	closed int  // the attempt that has ended: what its worker still writes, who does not know it, is passed over
	quiet  time.Duration

	held     *jobs.Event // has come before what comes before it; heldAt and patience are of the last such
	heldAt   jobs.Position
	patience time.Duration
}

const (
	// quietFirst is how long nothing may come after a reading before there is another: an event may have been published before anybody
	// listened, and stored after the reading. Each time it is twice as long, up to quietMost, as it is once something has come with
	// nothing missing before it: a job may end without leaving events, and a message can be lost on its way.
	quietFirst = 500 * time.Millisecond
	quietMost  = 10 * time.Second
	// replayWithin bounds one request for what has been; it is repeated, unless it was the first.
	replayWithin = 15 * time.Second
	// followAgain is the pause before another.
	followAgain = 200 * time.Millisecond
)

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (f *follower) follow(ctx context.Context) error {
	if err := named(f.id); err != nil {
		return err
	}
	f.status = f.c.nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.CLOSED)
	defer f.c.nc.RemoveStatusListener(f.status)
	sub, err := f.c.nc.Subscribe(jobs.EventSubject(f.c.tenant, f.id), f.live.add)
	if err != nil {
		return fmt.Errorf("follow %s: %w", f.id, err)
	}
	defer sub.Unsubscribe() //nolint:errcheck // the connection's end does it too
	f.quiet = quietFirst
	for {
		if err := f.catchUp(ctx); err != nil || f.over {
			return err
		}
		if err := f.listen(ctx); err != nil || f.over {
			return err
		}
	}
}

// catchUp gives what the stream has, up to its end as it is now, or as far as somebody answers.
func (f *follower) catchUp(ctx context.Context) error {
	for {
		f.live.reset()
		reply, err := f.replay(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case f.c.nc.IsClosed():
			return fmt.Errorf("follow %s: %w", f.id, nats.ErrConnectionClosed)
		case err != nil && !f.asked && !errors.Is(err, errLost):
			return err // nobody is there
		case err == nil && reply.Error != nil && reply.Error.RetryAfterMS == 0 && reply.Error.Code != jobs.CodeInternal:
			return reply.Error
		case err != nil || reply.Error != nil: // what comes meanwhile need not wait
			f.quiet = quietFirst
			pause(ctx, followAgain)
			return nil //nolint:nilerr // it is asked again
		}
		f.asked = true
		for i := range reply.Events {
			if f.give(&reply.Events[i]); f.over {
				return nil
			}
		}
		f.after = reply.Next
		if !reply.More {
			// What came before the subscription may be stored only now. The first that comes after it shows that: then it is read once more, lest
			// an event of another attempt be missed, and one be given that is late. Where there have been none none is late.
			f.sure = f.sure || f.after.Attempt == 0
			return nil
		}
	}
}

// replay asks once.
func (f *follower) replay(ctx context.Context) (jobs.ReplayReply, error) {
	return f.c.replay(ctx, jobs.ReplayRequest{Job: f.id, After: f.after})
}

func (c *Client) replay(ctx context.Context, q jobs.ReplayRequest) (jobs.ReplayReply, error) {
	answer, err := c.askRaw(ctx, replayWithin, jobs.ReplaySubject(c.tenant), q)
	if err != nil {
		return jobs.ReplayReply{}, err
	}
	var reply jobs.ReplayReply
	if json.Unmarshal(answer, &reply) != nil {
		reply, err = replayed(answer)
	}
	if err != nil || reply.Error == nil && reply.Events == nil {
		err = strange(jobs.ReplaySubject(c.tenant))
	}
	return reply, err
}

// replayed reads a reply with something among its events that is none: the dispatcher passes on what a worker has published, and that is anything.
// Nobody is told of it.
func replayed(answer []byte) (jobs.ReplayReply, error) {
	var r struct {
		jobs.ReplayReply
		Events []json.RawMessage `json:"events"`
	}
	if err := json.Unmarshal(answer, &r); err != nil {
		return r.ReplayReply, err
	}
	if r.Events != nil {
		r.ReplayReply.Events = []jobs.Event{}
	}
	for _, data := range r.Events {
		var e jobs.Event
		if json.Unmarshal(data, &e) == nil {
			r.ReplayReply.Events = append(r.ReplayReply.Events, e)
		}
	}
	return r.ReplayReply, nil
}

// Replay gives events that have been, of a job or of a batch, as many as one answer holds. Follow is for all of a job's.
func (c *Client) Replay(ctx context.Context, q jobs.ReplayRequest) (jobs.ReplayReply, error) {
	reply, err := c.replay(ctx, q)
	if err == nil && reply.Error != nil {
		err = reply.Error
	}
	return reply, err
}

// listen gives what comes as long as nothing is missing in it; where something may be, it returns.
func (f *follower) listen(ctx context.Context) error {
	quiet := time.NewTimer(f.quiet)
	defer quiet.Stop()
	for {
		for {
			e, whole := f.next()
			if e == nil && !whole {
				return nil
			}
			if e == nil {
				break
			}
			if !e.Final && (!f.after.Before(e.Attempt, e.Seq) || f.closed > 0 && e.Attempt <= f.closed) {
				continue // seen, or late
			}
			if !f.follows(e) || !f.sure || guessed(e) {
				f.sure = true
				return f.hold(ctx, e)
			}
			f.quiet = quietMost
			if f.give(e); f.over {
				return nil
			}
			f.after.Attempt, f.after.Seq = e.Attempt, e.Seq
		}
		quiet.Reset(f.quiet)
		select {
		case <-f.live.came:
		case <-f.status:
			if f.c.nc.IsClosed() {
				return fmt.Errorf("follow %s: %w", f.id, nats.ErrConnectionClosed)
			}
			f.sure = false // it has subscribed anew
			return nil
		case <-quiet.C:
			f.quiet = min(2*f.quiet, quietMost)
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// next gives the next event that has come, nil where there is none; whole is false where some could not be kept.
// What is none is passed over: whoever runs the job can publish anything.
func (f *follower) next() (e *jobs.Event, whole bool) {
	if e, f.held = f.held, nil; e != nil {
		return e, true
	}
	for {
		data, whole := f.live.next()
		if data == nil {
			return nil, whole
		}
		e := new(jobs.Event)
		if json.Unmarshal(data, e) == nil {
			return e, whole
		}
	}
}

// follows tells whether nothing is missing before an event that has not been seen. Where another attempt begins only the stream knows.
func (f *follower) follows(e *jobs.Event) bool {
	return f.after.Next(e.Attempt, e.Seq) || e.Final && e.Attempt == f.after.Attempt && e.Seq <= f.after.Seq
}

const (
	// heldFirst is the pause before the stream is read once more for what it should have: where an event is here already, it is stored in
	// a moment. Each time it is twice as long, up to heldMost.
	heldFirst = 10 * time.Millisecond
	heldMost  = time.Second
)

// hold keeps an event until what comes before it has been read from the stream.
func (f *follower) hold(ctx context.Context, e *jobs.Event) error {
	f.held = e
	if at := (jobs.Position{Attempt: e.Attempt, Seq: e.Seq}); at != f.heldAt {
		f.heldAt, f.patience = at, heldFirst
		return nil
	}
	pause(ctx, f.patience)
	f.patience = min(2*f.patience, heldMost)
	return nil
}

// guessed tells a final event whose place a dispatcher has guessed, because the attempt's worker may still have been writing: the stream may
// have refused it, and then has another one.
func guessed(e *jobs.Event) bool {
	if !e.Final || e.Attempt == 0 || e.Result == nil {
		return false
	}
	switch e.Result.Ending {
	case jobs.WorkerLost, jobs.Canceled, jobs.Expired:
		return true
	}
	return false
}

// give hands an event to the caller.
func (f *follower) give(e *jobs.Event) {
	if e.Type == jobs.EventState && e.State == jobs.StateQueued {
		f.closed = e.Attempt
	}
	f.over = !f.yield(*e, nil) || e.Final
}
