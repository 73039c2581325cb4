package bus

import (
	"context"
	"errors"
	"io"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

// stdinPending is how many chunks may wait; who sends one after the other's answer never has more than one.
const stdinPending = 64

// OpenStdin takes a job's input: when it has returned no chunk is lost any more. serve writes the chunks into w as they come, until
// ctx ends. Each is answered once w has taken it: that is the back-pressure. At the input's end w is closed.
func (b *Bus) OpenStdin(ctx context.Context, tenant, job string, w io.WriteCloser) (serve func(), err error) {
	chunks := make(chan *nats.Msg, stdinPending)
	sub, err := b.nc.ChanSubscribe(jobs.StdinSubject(tenant, job), chunks)
	if err != nil {
		return nil, unavailable("take stdin", err)
	}
	flush, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	if err := b.nc.FlushWithContext(flush); err != nil {
		return nil, errors.Join(unavailable("take stdin", err), sub.Unsubscribe())
	}
	return func() {
		defer sub.Unsubscribe() //nolint:errcheck // the connection's end does it too
		b.serveStdin(ctx, chunks, w)
	}, nil
}

func (b *Bus) serveStdin(ctx context.Context, chunks <-chan *nats.Msg, w io.WriteCloser) {
	closed := false
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-chunks:
			if b.strange(m) {
				continue
			}
			var c jobs.StdinChunk
			var r jobs.StdinReply
			var err error
			r.Warnings, err = jobs.DecodeRequest(m.Data, &c)
			r.Error = b.errorOf(err)
			if r.Error == nil && closed {
				r.Error = &jobs.Error{Code: jobs.CodeConflict, Message: "the input has ended"}
			}
			if r.Error == nil && c.Len() > 0 {
				if _, err := w.Write(c.Data()); err != nil {
					closed = true
					r.Error = &jobs.Error{Code: jobs.CodeConflict, Message: "the program takes no more input"}
				}
			}
			if r.Error == nil && c.EOF {
				closed = true
				_ = w.Close() // a pipe
			}
			b.reply(m, &r)
		}
	}
}
