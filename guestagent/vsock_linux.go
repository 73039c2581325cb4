package guestagent

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// VsockPort is where the agent listens in a machine with a vsock device (vsock(7)).
const VsockPort = 1024

// vsockIsThere tells whether the machine has a vsock device whose driver is loaded: only then has it an address of its own.
func vsockIsThere() bool {
	f, err := os.Open("/dev/vsock")
	if err != nil {
		return false
	}
	defer f.Close()
	cid, err := unix.IoctlGetUint32(int(f.Fd()), unix.IOCTL_VM_SOCKETS_GET_LOCAL_CID)
	return err == nil && cid != unix.VMADDR_CID_ANY
}

// serveVsock answers the host, whose latest connection ends the one before. The listener outlives a snapshot: its address is any, so the
// clone's own address, which the kernel learns after the restore, needs no new one.
func serveVsock(a *agent) error {
	l, err := listenVsock()
	if err != nil {
		return fmt.Errorf("listen on vsock: %w", err)
	}
	defer l.Close()
	var serving sync.WaitGroup
	var last *os.File
	for {
		conn, err := acceptHost(l)
		if err != nil {
			return fmt.Errorf("accept on vsock: %w", err)
		}
		if last != nil {
			_ = last.Close()
			serving.Wait()
		}
		last = conn
		serving.Go(func() {
			_ = wire.Guest(conn, a.serve) // it ends when the host leaves
			_ = conn.Close()
		})
	}
}

func listenVsock() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	err = unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: VsockPort})
	if err == nil {
		err = unix.Listen(fd, 16)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "vsock listener"), nil
}

// acceptHost waits for a connection, asleep, and passes over all that are not the host's: programs in the machine are no host.
func acceptHost(l *os.File) (*os.File, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	for {
		fd, from := -1, unix.Sockaddr(nil)
		if readErr := raw.Read(func(listener uintptr) bool {
			fd, from, err = unix.Accept4(int(listener), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return !errors.Is(err, unix.EAGAIN)
		}); readErr != nil {
			return nil, readErr
		}
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if vm, ok := from.(*unix.SockaddrVM); ok && vm.CID == unix.VMADDR_CID_HOST {
			return os.NewFile(uintptr(fd), "vsock"), nil
		}
		_ = unix.Close(fd)
	}
}
