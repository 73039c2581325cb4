package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// serial is the way by a virtio-serial port: QEMU accepts on a listening unix socket, one connection at a time, and joins it with the
// guest's port. The socket has no name: it is reached through a descriptor of its inode, so nobody else can dial it, and nothing is left
// of it when this process or QEMU is killed.
type serial struct {
	inode *os.File // O_PATH
}

// newSerial gives the way and the listening socket, which is for QEMU. For a moment the socket has the name path.
func newSerial(path string) (s *serial, listener *os.File, err error) {
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
	return &serial{inode: inode}, listener, nil
}

// connect waits while QEMU is behind with accepting: a socket's full queue says EAGAIN and cannot be waited for.
func (s *serial) connect(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		conn, err := d.DialContext(ctx, "unix", procFD(s.inode))
		if !errors.Is(err, unix.EAGAIN) {
			return conn, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (s *serial) close() { s.inode.Close() }

// procFD is a path to an open file of this process (proc(5)).
func procFD(f *os.File) string { return procFDNumber(int(f.Fd())) }

func procFDNumber(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
