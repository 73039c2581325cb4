package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
)

// channel is the way to the guest's agent: a unix socket in the machine's directory, behind which the VMM joins each connection with one
// of the guest's vsock (virtio-devices/src/vsock/unix/muxer.rs).
type channel struct {
	dir     *directory
	closing chan struct{}
	once    sync.Once

	held   chan struct{} // guards what is below; a channel and not a mutex because it is held while connecting
	conn   net.Conn
	closed bool
}

func newChannel(dir *directory) *channel {
	return &channel{dir: dir, closing: make(chan struct{}), held: make(chan struct{}, 1)}
}

// dial connects, and ends the connection before.
func (c *channel) dial(ctx context.Context) (net.Conn, error) {
	select {
	case c.held <- struct{}{}:
		defer func() { <-c.held }()
	case <-ctx.Done():
		return nil, fmt.Errorf("dial guest: %w", context.Cause(ctx))
	}
	if c.closed {
		return nil, fmt.Errorf("dial guest: %w", net.ErrClosed)
	}
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial guest: %w", err)
	}
	c.conn = conn
	return conn, nil
}

// connect waits until the guest listens: before, the VMM hangs up at once or, while the guest has no driver for it, after two seconds.
func (c *channel) connect(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // ends with connect
		select {
		case <-c.closing:
			cancel(net.ErrClosed)
		case <-ctx.Done():
		}
	}()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		conn, err := c.try(ctx)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if _, refused := errors.AsType[*refusedError](err); !refused && !errors.Is(err, unix.EAGAIN) {
			return nil, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// refusedError is what a dial is answered while nobody listens.
type refusedError struct{ answer string }

func (e *refusedError) Error() string {
	return fmt.Sprintf("nobody listens on the guest's port %d: answer %q", vmm.GuestPort, e.answer)
}

func (c *channel) try(ctx context.Context) (net.Conn, error) {
	conn, err := c.dir.dial(ctx, vsockSocket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = shake(conn)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// shake says whom to connect with and reads the answer, byte by byte: what follows it is the guest's.
func shake(conn net.Conn) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", vmm.GuestPort); err != nil {
		return &refusedError{err.Error()}
	}
	var line []byte
	for b := make([]byte, 1); len(line) < 32; line = append(line, b[0]) {
		if _, err := conn.Read(b); errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		} else if err != nil {
			return &refusedError{string(line)}
		}
		if b[0] == '\n' {
			break
		}
	}
	if !strings.HasPrefix(string(line), "OK ") {
		return &refusedError{string(line)}
	}
	return nil
}

// hangUp ends the connection there is.
func (c *channel) hangUp() {
	c.held <- struct{}{}
	defer func() { <-c.held }()
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// close ends the connection and the channel. It is idempotent.
func (c *channel) close() {
	c.once.Do(func() { close(c.closing) })
	c.hangUp()
	c.held <- struct{}{}
	defer func() { <-c.held }()
	c.closed = true
}
