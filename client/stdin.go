package client

import (
	"context"
	"errors"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Stdin gives a writer into the input of a running job that was submitted with stdin_stream. A write returns when the program's pipe
// has taken it; Close ends the input. It may be used once the job's state event "running" has come. How long a program may leave its input
// unread is ctx's deadline to say; where it has none, 30 s.
func (c *Client) Stdin(ctx context.Context, id string) *Stdin { return &Stdin{c: c, ctx: ctx, id: id} }

// Stdin is a job's input.
type Stdin struct {
	c   *Client
	ctx context.Context //nolint:containedctx // of the writes, which io.Writer gives none
	id  string
}

// stdinChunk is how much of a write goes into one message.
const stdinChunk = 64 << 10

// Write implements io.Writer.
func (s *Stdin) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		k := min(len(b), stdinChunk)
		if err := s.send(jobs.StdinChunk{Content: jobs.ContentOf(b[:k])}); err != nil {
			return n, err
		}
		b, n = b[k:], n+k
	}
	return n, nil
}

// Close ends the input.
func (s *Stdin) Close() error { return s.send(jobs.StdinChunk{EOF: true}) }

func (s *Stdin) send(chunk jobs.StdinChunk) error {
	if err := named(s.id); err != nil {
		return err
	}
	// The worker listens from just before the job runs; a viewer that is quicker tries again.
	for wait := 10 * time.Millisecond; ; wait *= 2 {
		r, err := askFor[jobs.StdinReply](s.ctx, s.c, s.within(), jobs.StdinSubject(s.c.tenant, s.id), chunk)
		if errors.Is(err, errNobody) && wait < time.Second {
			if pause(s.ctx, wait); s.ctx.Err() != nil {
				return context.Cause(s.ctx)
			}
			continue
		}
		if err == nil && r.Error != nil {
			err = r.Error
		}
		return unheard(err, "the job takes no input: it does not run, or was submitted without stdin_stream")
	}
}

// within bounds one write, whose answer comes when the program reads.
func (s *Stdin) within() time.Duration {
	if by, ok := s.ctx.Deadline(); ok {
		return time.Until(by) + askWithin // ctx ends it first
	}
	return askWithin
}
