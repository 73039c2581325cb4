package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	mdvsock "github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
)

// vsock is the way by AF_VSOCK (vsock(7)) to a vhost-vsock device.
type vsock struct {
	*lease
	// restored says that no connection has been made since the machine's state was loaded.
	restored bool
}

func (v *vsock) close() { v.give() }

// connect waits until the guest's agent listens.
func (v *vsock) connect(ctx context.Context) (net.Conn, error) {
	conn, err := v.knock(ctx)
	if err != nil {
		return nil, err
	}
	if !v.restored {
		return conn, nil
	}
	v.restored = false
	return newEarly(conn, v.knock), nil
}

// knock connects when the guest lets it. A guest whose agent does not listen refuses by ECONNRESET; one that is not up yet, or stands
// still, says nothing, which the kernel takes for ETIMEDOUT after two seconds; neither can be waited for.
func (v *vsock) knock(ctx context.Context) (net.Conn, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		conn, err := mdvsock.DialContext(ctx, uint32(v.cid), vmm.GuestPort, nil)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.ETIMEDOUT) {
			return nil, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// early is the first connection after a restore. QEMU then tells the guest that its transport was reset (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET in
// the virtio specification, 5.10.6.7), at which the guest's kernel breaks off all connections: one that was made a moment before it noticed
// too. So until the guest has said something, a connection that is reset is made once more, and what was said on it is said again: the guest
// has not taken it for anything.
type early struct {
	redial func(context.Context) (net.Conn, error)
	alive  context.Context //nolint:containedctx // until Close
	end    context.CancelFunc

	mu               sync.Mutex
	conn             net.Conn
	said             []byte
	settled          bool // the guest has said something, or the connection was made anew
	reading, writing time.Time
}

func newEarly(conn net.Conn, redial func(context.Context) (net.Conn, error)) *early {
	alive, end := context.WithCancel(context.Background())
	return &early{redial: redial, conn: conn, alive: alive, end: end}
}

// redialWithin bounds the second attempt: the guest listens, as it did a moment ago.
const redialWithin = 5 * time.Second

// maxSaid is how much may be said before the guest has answered; a greeting is far less.
const maxSaid = 64 << 10

func (e *early) current() (net.Conn, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.conn, e.settled
}

// Read implements net.Conn.
func (e *early) Read(b []byte) (int, error) {
	for {
		conn, settled := e.current()
		n, err := conn.Read(b)
		if settled {
			return n, err
		}
		if n > 0 {
			e.settle()
			return n, err
		}
		if err := e.again(conn, err); err != nil {
			return 0, err
		}
	}
}

// Write implements net.Conn.
func (e *early) Write(b []byte) (int, error) {
	conn, settled := e.note(b)
	n, err := conn.Write(b)
	if err == nil || settled {
		return n, err
	}
	if err := e.again(conn, err); err != nil {
		return n, err
	}
	return len(b), nil // with all that was said
}

// note keeps what is said.
func (e *early) note(b []byte) (net.Conn, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.settled {
		e.said = append(e.said, b...)
		if len(e.said) > maxSaid {
			e.settled, e.said = true, nil
		}
	}
	return e.conn, e.settled
}

func (e *early) settle() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.settled, e.said = true, nil
}

// again makes a connection anew that broke off by err, unless somebody else has.
func (e *early) again(broken net.Conn, err error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.conn != broken:
		return nil
	case e.settled || e.alive.Err() != nil, !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, io.EOF):
		return err
	}
	ctx, cancel := context.WithTimeout(e.alive, redialWithin)
	defer cancel()
	conn, dialErr := e.redial(ctx)
	if dialErr != nil {
		return fmt.Errorf("%w, and again: %w", err, dialErr)
	}
	_ = e.conn.Close()
	e.conn, e.settled = conn, true
	said := e.said
	e.said = nil
	if err := errors.Join(conn.SetReadDeadline(e.reading), conn.SetWriteDeadline(e.writing)); err != nil {
		return err
	}
	_, err = conn.Write(said)
	return err
}

// Close implements net.Conn.
func (e *early) Close() error {
	e.end() // who makes it anew holds the mutex
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.conn.Close()
}

// SetDeadline implements net.Conn.
func (e *early) SetDeadline(t time.Time) error {
	return errors.Join(e.SetReadDeadline(t), e.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (e *early) SetReadDeadline(t time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reading = t
	return e.conn.SetReadDeadline(t)
}

// SetWriteDeadline implements net.Conn.
func (e *early) SetWriteDeadline(t time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.writing = t
	return e.conn.SetWriteDeadline(t)
}

// LocalAddr implements net.Conn.
func (e *early) LocalAddr() net.Addr { conn, _ := e.current(); return conn.LocalAddr() }

// RemoteAddr implements net.Conn.
func (e *early) RemoteAddr() net.Addr { conn, _ := e.current(); return conn.RemoteAddr() }
