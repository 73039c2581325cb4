package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// dial connects from a network namespace. No thread waits in it: a socket stays where it was made.
func dial(ctx context.Context, ns *os.File, network string, to netip.AddrPort) (net.Conn, error) {
	kind := unix.SOCK_STREAM
	if network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	raw, err := ns.SyscallConn() // which keeps the namespace's descriptor open meanwhile
	if err != nil {
		return nil, err
	}
	var fd int
	var sockErr error
	err = raw.Control(func(n uintptr) {
		sockErr = within(int(n), func() (err error) {
			fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			return err
		})
	})
	if err = errors.Join(err, sockErr); err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), to.String())
	defer f.Close() // what is given is a copy of it
	if err := unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS {
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	if err := connected(ctx, f); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	return net.FileConn(f)
}

// connected waits until a socket is connected, or is not.
func connected(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })()
	var result error
	err = raw.Write(func(fd uintptr) bool {
		_, err := unix.Getpeername(int(fd))
		if err == nil {
			return true
		}
		n, soErr := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if soErr != nil {
			result = soErr
		} else if n != 0 {
			result = unix.Errno(n)
		}
		return result != nil
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	return result
}
