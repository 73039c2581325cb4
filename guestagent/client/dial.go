package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// Dial connects to a TCP port on the guest's loopback. ctx bounds the dialling only. Where nothing listens, or too many connections are open,
// the error is a *wire.Error of the kind ErrRefused or ErrBusy. The connection can be closed for writing alone (CloseWrite), and ends
// with the Client's; what its other end sends is a guest's.
func (c *Client) Dial(ctx context.Context, port int) (net.Conn, error) {
	s, err := c.open(wire.Request{Op: wire.OpDial, Dial: &wire.Dial{Port: port}})
	if err != nil {
		return nil, err
	}
	ch, b, reply, err := s.Recv(ctx)
	if err == nil && (ch != wire.ChanMessage || wire.DialEvent(b) != wire.DialOpen) {
		err = fmt.Errorf("dial: %w: %.40q where the connection's beginning belongs", ErrLost, b)
	} else if err != nil {
		if _, err = result(ctx, wire.OpDial, reply, err); err == nil {
			err = fmt.Errorf("dial: %w: a connection over before it began", ErrLost)
		}
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return &conn{s: s, port: port, closed: make(chan struct{}), reading: newDeadline(), writing: newDeadline()}, nil
}

// conn is a connection to a port in the guest.
type conn struct {
	s      *wire.Stream
	port   int
	once   sync.Once
	closed chan struct{}

	reading, writing *deadline

	rmu  sync.Mutex
	rest []byte // received and not read
	rerr error  // how reading ended

	wmu   sync.Mutex
	ended bool // CloseWrite was called
}

var _ net.Conn = (*conn)(nil)

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	if len(b) == 0 {
		return 0, nil
	}
	for len(c.rest) == 0 {
		if c.rerr != nil {
			return 0, c.rerr
		}
		err := c.reading.do(func(ctx context.Context) error { return c.receive(ctx) })
		if err != nil {
			return 0, c.failed("read", err)
		}
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// receive takes what comes next: bytes, or the end, for good.
func (c *conn) receive(ctx context.Context) error {
	ch, b, reply, err := c.s.Recv(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return err
	case err != nil:
		// A guest that breaks the connection off says so in its reply, and one that is over says nothing.
		if _, err = result(ctx, wire.OpDial, reply, err); err == nil {
			err = io.EOF
		}
		c.rerr = err
	case ch == wire.ChanData:
		c.rest = b
	case ch == wire.ChanMessage && wire.DialEvent(b) == wire.DialEnd:
		c.rerr = io.EOF
	default:
		c.rerr = fmt.Errorf("dial: %w: data on channel %d", ErrLost, ch)
	}
	return nil
}

// Write implements net.Conn. It waits while the guest takes nothing.
func (c *conn) Write(b []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	written := 0
	for written < len(b) {
		if c.ended {
			return written, c.failed("write", os.ErrClosed)
		}
		err := c.writing.do(func(ctx context.Context) error {
			n, err := c.s.SendSome(ctx, wire.ChanData, b[written:])
			written += n
			return err
		})
		if err != nil {
			return written, c.failed("write", err)
		}
	}
	return written, nil
}

// CloseWrite ends what is sent to the guest; reading goes on.
func (c *conn) CloseWrite() error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.ended {
		return nil
	}
	c.ended = true
	return c.s.End()
}

// Close breaks the connection off where it is not over. It is idempotent.
func (c *conn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.reading.end()
		c.writing.end()
		c.s.Close()
	})
	return nil
}

// failed gives an error as the net package would.
func (c *conn) failed(op string, err error) error {
	select {
	case <-c.closed:
		err = net.ErrClosed
	default:
	}
	return &net.OpError{Op: op, Net: "guest", Addr: c.RemoteAddr(), Err: err}
}

// LocalAddr and RemoteAddr name the ends.
func (c *conn) LocalAddr() net.Addr  { return guestAddr("host") }
func (c *conn) RemoteAddr() net.Addr { return guestAddr("127.0.0.1:" + strconv.Itoa(c.port)) }

// guestAddr is an address inside a guest.
type guestAddr string

func (guestAddr) Network() string  { return "guest" }
func (a guestAddr) String() string { return string(a) }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error { return c.reading.set(t) }

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error { return c.writing.set(t) }

// deadline is until when one direction's operations may last; it may be changed while one is under way.
type deadline struct {
	mu     sync.Mutex
	ctx    context.Context //nolint:containedctx // it is the deadline
	cancel context.CancelCauseFunc
	ended  bool
}

// errChanged is why an operation under way begins anew.
var errChanged = errors.New("deadline changed")

func newDeadline() *deadline {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &deadline{ctx: ctx, cancel: cancel}
}

func (d *deadline) set(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return net.ErrClosed
	}
	before := d.cancel
	ctx, cancel := context.WithCancelCause(context.Background())
	d.ctx, d.cancel = ctx, cancel
	if !t.IsZero() {
		limited, stop := context.WithDeadlineCause(ctx, t, os.ErrDeadlineExceeded)
		d.ctx, d.cancel = limited, func(cause error) { cancel(cause); stop() }
	}
	before(errChanged)
	return nil
}

// end interrupts what is under way, and all that comes.
func (d *deadline) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = true
	d.cancel(net.ErrClosed)
}

// do runs an operation within the deadline.
func (d *deadline) do(f func(context.Context) error) error {
	for {
		d.mu.Lock()
		ctx := d.ctx
		d.mu.Unlock()
		if err := context.Cause(ctx); err != nil && !errors.Is(err, errChanged) {
			return err
		}
		err := f(ctx)
		if err == nil || !errors.Is(err, errChanged) {
			return err
		}
	}
}
