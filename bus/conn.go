package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

var (
	errBusClosed    = errors.New("bus closed")
	errDisconnected = errors.New("the connection was lost")
)

// conn is a connection whose requests end with it: an answer to what was asked before a reconnect never comes.
type conn struct {
	*nats.Conn

	mu   sync.Mutex
	gone chan struct{} // closed when the connection as it is now is lost
}

func newConn() *conn { return &conn{gone: make(chan struct{})} }

// lost ends what waits for an answer.
func (c *conn) lost() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.gone)
	c.gone = make(chan struct{})
}

// ask sends a request and waits for its answer until ctx ends or the connection is lost.
func (c *conn) ask(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	c.mu.Lock()
	gone := c.gone
	c.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // ends with ctx
		select {
		case <-gone:
			cancel(errDisconnected)
		case <-ctx.Done():
		}
	}()
	reply, err := c.RequestMsgWithContext(ctx, m)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return reply, err
}

// firstDial dials for nats.go, which knows no contexts. Until it is over, ctx bounds the dialing and what is said on the connection.
type firstDial struct {
	ctx  context.Context //nolint:containedctx // Connect's, whose call this is a part of
	over atomic.Bool
}

// Dial implements nats.CustomDialer.
func (d *firstDial) Dial(network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: nats.DefaultTimeout}
	if d.over.Load() {
		return dialer.DialContext(context.Background(), network, address)
	}
	c, err := dialer.DialContext(d.ctx, network, address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(d.ctx, func() {
		if !d.over.Load() {
			_ = c.Close()
		}
	})
	return c, nil
}

// headroom is what a message has besides its body: headers, and what an answer wraps around a spec.
const headroom = 8 << 10

// fits tells whether a body of n bytes can be sent.
func (c *conn) fits(n int) bool { return int64(n)+headroom <= c.MaxPayload() }

// encode is json.Marshal without the escapes that only HTML needs: program output is full of what they make six times as long.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// unavailable is what a caller gets while nobody answers.
func unavailable(what string, err error) *jobs.Error {
	return &jobs.Error{Code: jobs.CodeUnavailable, Message: what + ": " + err.Error(), RetryAfterMS: 1000}
}
