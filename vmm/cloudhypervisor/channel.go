package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
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
	spend  int   // how many of the VMM's ports to spend before the first connection
	given  int64 // how many the VMM has given, or may have

	ports atomic.Int64 // how many have been used, up to that of the latest connection, or of the one that is being made
}

// firstPort is what the VMM gives to its side of the first connection; those after it follow (muxer.rs, allocate_local_port).
const firstPort = 1 << 30

// lingering is how many connections of one machine its guest may still have: there is one at a time.
const lingering = 4

// toSpend gives how many ports a clone's VMM has to spend, of a machine that had used so many: its guest may not be through with the latest
// connections, though they are over on the host's side, and the VMM takes its late word of one for a word of the clone's on the same
// port, and ends that. Kernels that keep a connection until its program closes it pass over the new one instead.
func toSpend(ports int64) int {
	if ports < 0 || ports > lingering {
		return 0
	}
	return int(ports)
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
	for ; c.spend > 0 && c.spendOne(ctx) == nil; c.spend-- { // what is wrong with the socket, the next one tells
		c.given++
	}
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

// spendOne connects with a port on which no guest's agent listens. The VMM takes what is to be connected in the order in which it came.
func (c *channel) spendOne(ctx context.Context) error {
	conn, err := c.dir.dial(ctx, vsockSocket)
	if err != nil {
		return err
	}
	_, err = io.WriteString(conn, "CONNECT 1\n")
	return errors.Join(err, conn.Close())
}

func (c *channel) try(ctx context.Context) (net.Conn, error) {
	conn, err := c.dir.dial(ctx, vsockSocket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	c.given++ // the guest knows of the connection before we do, and may be kept in between
	c.ports.Store(c.given)
	port, err := shake(conn)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	c.given = max(port-firstPort+1, 0)
	c.ports.Store(c.given)
	return conn, nil
}

// shake says whom to connect with and reads the answer, byte by byte: what follows it is the guest's. It gives the port of the VMM's side.
func shake(conn net.Conn) (port int64, err error) {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", vmm.GuestPort); err != nil {
		return 0, &refusedError{err.Error()}
	}
	var line []byte
	for b := make([]byte, 1); len(line) < 32; line = append(line, b[0]) {
		if _, err := conn.Read(b); errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, err
		} else if err != nil {
			return 0, &refusedError{string(line)}
		}
		if b[0] == '\n' {
			break
		}
	}
	if n, err := fmt.Sscanf(string(line), "OK %d", &port); n != 1 || err != nil {
		return 0, &refusedError{string(line)}
	}
	return port, nil
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
