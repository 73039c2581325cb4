package hostproc

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// line is one byte stream that can be dialled again and again, as a machine's serial port can: a dial ends the connection before, and
// hanging up does not end the stream.
type line struct {
	stream net.Conn

	mu     sync.Mutex
	conn   *conn
	closed bool
}

func (l *line) dial() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, net.ErrClosed
	}
	if l.conn != nil {
		_ = l.conn.Close()
	}
	if err := l.stream.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	l.conn = &conn{Conn: l.stream, done: make(chan struct{})}
	return l.conn, nil
}

// close ends the stream and whatever waits on it. It is idempotent.
func (l *line) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	return l.stream.Close()
}

// conn is one dial of a line.
type conn struct {
	net.Conn
	using sync.WaitGroup // calls on the stream

	mu     sync.Mutex
	closed bool
	done   chan struct{}
}

var _ net.Conn = (*conn)(nil)

func (c *conn) Read(b []byte) (int, error)  { return c.use(c.Conn.Read, b) }
func (c *conn) Write(b []byte) (int, error) { return c.use(c.Conn.Write, b) }

func (c *conn) use(call func([]byte) (int, error), b []byte) (int, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return 0, net.ErrClosed
	}
	c.using.Add(1)
	c.mu.Unlock()
	defer c.using.Done()
	n, err := call(b)
	select {
	case <-c.done:
		if errors.Is(err, os.ErrDeadlineExceeded) { // Close's
			err = net.ErrClosed
		}
	default:
	}
	return n, err
}

func (c *conn) SetDeadline(t time.Time) error      { return c.set(c.Conn.SetDeadline, t) }
func (c *conn) SetReadDeadline(t time.Time) error  { return c.set(c.Conn.SetReadDeadline, t) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.set(c.Conn.SetWriteDeadline, t) }

func (c *conn) set(call func(time.Time) error, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	return call(t)
}

// Close hangs up: calls that wait return, and have returned when Close does. The stream stays for the next dial.
func (c *conn) Close() error {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		close(c.done)
		_ = c.Conn.SetDeadline(time.Unix(1, 0)) // fails where the stream has ended, and calls with it
	}
	c.mu.Unlock()
	c.using.Wait()
	return nil
}
