package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

const (
	// lookEvery is how often a waiter looks at the job's record: messages that nobody keeps for it can be lost.
	lookEvery = 2 * time.Second
	// lookWithin bounds one look, whose answer can be lost too.
	lookWithin = 10 * time.Second
)

// Wait waits for a job's end and gives its result. It ends with an error where the job is not known, where ctx ends, or where the
// client is closed; while the servers are away it waits.
func (c *Client) Wait(ctx context.Context, id string) (jobs.Result, error) {
	if err := named(id); err != nil {
		return jobs.Result{}, err
	}
	events := make(chan *nats.Msg, 256)
	sub, err := c.nc.ChanSubscribe(jobs.EventSubject(c.tenant, id), events)
	if err != nil {
		return jobs.Result{}, err
	}
	defer sub.Unsubscribe() //nolint:errcheck // the connection's end does it too
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	look := time.NewTimer(0) // it may have ended before
	defer look.Stop()
	looked := make(chan func() (*jobs.Result, error), 1)
	for {
		select {
		case <-ctx.Done():
			return jobs.Result{}, context.Cause(ctx)
		case m, ok := <-events:
			if !ok {
				return jobs.Result{}, nats.ErrConnectionClosed
			}
			if r := finalResult(m.Data); r != nil {
				return *r, nil
			}
		case <-look.C: // while events are heard: an answer may take its time
			go func() {
				r, err := c.ended(ctx, id)
				looked <- func() (*jobs.Result, error) { return r, err }
			}()
		case answer := <-looked:
			r, err := answer()
			if r != nil || err != nil {
				return deref(r), err
			}
			look.Reset(lookEvery)
		}
	}
}

// finalResult gives the result that a final event carries. Of output, which may come in floods, it reads no more than it must.
func finalResult(data []byte) *jobs.Result {
	if !bytes.Contains(data, []byte(`"final"`)) {
		return nil
	}
	var e jobs.Event
	if json.Unmarshal(data, &e) != nil || !e.Final {
		return nil
	}
	return e.Result
}

// ended looks at the job's record: its result, nothing yet, or why looking again is of no use.
func (c *Client) ended(ctx context.Context, id string) (*jobs.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	j, err := c.Get(ctx, id)
	e, answered := errors.AsType[*jobs.Error](err)
	switch {
	case err == nil && j.State.Terminal():
		return j.Result, nil
	case answered && e.RetryAfterMS == 0 && e.Code != jobs.CodeInternal, c.nc.IsClosed():
		return nil, err
	}
	return nil, nil // not yet
}

func deref(r *jobs.Result) jobs.Result {
	if r == nil {
		return jobs.Result{}
	}
	return *r
}
