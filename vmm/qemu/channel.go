package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// channel is the way to the guest's agent: QEMU accepts on a listening unix socket, one connection at a time, and joins it with
// the guest's virtio-serial port. The socket has no name: it is reached through a descriptor of its inode, so nobody else can
// dial it, and nothing is left of it when this process or QEMU is killed.
type channel struct {
	inode   *os.File // O_PATH
	closing chan struct{}
	once    sync.Once

	// held guards what is below; a channel and not a mutex because it is held while connecting. The inode's descriptor must not
	// be closed meanwhile: its number could already be another machine's.
	held   chan struct{}
	conn   net.Conn
	closed bool
}

// newChannel gives the channel and the listening socket, which is for QEMU. For a moment the socket has the name path.
func newChannel(path string) (c *channel, listener *os.File, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("guest channel: %w", err)
	}
	listener = os.NewFile(uintptr(fd), path)
	defer func() {
		if err != nil {
			listener.Close()
		}
	}()
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("guest channel: %w", err)
	}
	defer dir.Close()
	// Addressed by way of the directory's descriptor: a socket's address is 108 bytes at most, a path may be longer.
	name := procFD(dir) + "/" + filepath.Base(path)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		return nil, nil, fmt.Errorf("guest channel: bind %s: %w", path, err)
	}
	defer os.Remove(path)
	// Connections wait here while QEMU notices the end of the one before, also those that were given up meanwhile.
	if err := unix.Listen(fd, 16); err != nil {
		return nil, nil, fmt.Errorf("guest channel: %w", err)
	}
	inode, err := os.OpenFile(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("guest channel: %w", err)
	}
	return &channel{inode: inode, closing: make(chan struct{}), held: make(chan struct{}, 1)}, listener, nil
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
		c.conn.Close()
		c.conn = nil
	}
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial guest: %w", err)
	}
	c.conn = conn
	return conn, nil
}

// connect waits while QEMU is behind with accepting: a socket's full queue says EAGAIN and cannot be waited for.
func (c *channel) connect(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		conn, err := d.DialContext(ctx, "unix", procFD(c.inode))
		if !errors.Is(err, unix.EAGAIN) {
			return conn, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-c.closing:
			return nil, net.ErrClosed
		}
	}
}

// hangUp ends the connection there is.
func (c *channel) hangUp() {
	c.held <- struct{}{}
	defer func() { <-c.held }()
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// close ends the connection and the channel. It is idempotent.
func (c *channel) close() {
	c.once.Do(func() { close(c.closing) })
	c.hangUp()
	c.held <- struct{}{}
	defer func() { <-c.held }()
	if !c.closed {
		c.closed = true
		c.inode.Close()
	}
}

// procFD is a path to an open file of this process (proc(5)).
func procFD(f *os.File) string { return procFDNumber(int(f.Fd())) }

func procFDNumber(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
