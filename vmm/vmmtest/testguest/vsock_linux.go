package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// agentPort is where agents listen in a machine with a vsock device.
const agentPort = 1024

// vsock is all connections that the host makes, one after the other, as one stream that does not end: the latest ends the one before.
type vsock struct {
	mu   sync.Mutex
	next *sync.Cond
	conn *os.File
	n    int // how many there have been
}

// vsockIsThere tells whether the machine has a vsock device: only then has it an address of its own.
func vsockIsThere() bool {
	f, err := os.Open("/dev/vsock")
	if err != nil {
		return false
	}
	defer f.Close()
	cid, err := unix.IoctlGetUint32(int(f.Fd()), unix.IOCTL_VM_SOCKETS_GET_LOCAL_CID)
	return err == nil && cid != unix.VMADDR_CID_ANY
}

// openVsock listens.
func openVsock() (*vsock, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: agentPort}); err != nil {
		return nil, err
	}
	if err := unix.Listen(fd, 16); err != nil {
		return nil, err
	}
	v := &vsock{}
	v.next = sync.NewCond(&v.mu)
	go v.accept(fd)
	return v, nil
}

func (v *vsock) accept(listener int) {
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err != nil {
			continue // it was given up meanwhile
		}
		v.mu.Lock()
		if v.conn != nil {
			v.conn.Close()
		}
		v.conn, v.n = os.NewFile(uintptr(fd), "vsock"), v.n+1
		v.next.Broadcast()
		v.mu.Unlock()
	}
}

// current waits for a connection after the last-th.
func (v *vsock) current(last int) (*os.File, int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for v.n <= last {
		v.next.Wait()
	}
	return v.conn, v.n
}

// Read passes over the ends of connections.
func (v *vsock) Read(b []byte) (int, error) {
	for last := 0; ; {
		conn, n := v.current(last)
		if got, err := conn.Read(b); got > 0 || err == nil {
			return got, nil
		}
		last = n
	}
}

func (v *vsock) Write(b []byte) (int, error) {
	conn, _ := v.current(0)
	return conn.Write(b)
}

var _ io.ReadWriter = (*vsock)(nil)

// vsockDial tries to connect to each port of an address, "2 1 22 1024", and names this machine's own address and what it reached.
func vsockDial(arg string) string {
	f, err := os.Open("/dev/vsock")
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	own, err := unix.IoctlGetUint32(int(f.Fd()), unix.IOCTL_VM_SOCKETS_GET_LOCAL_CID)
	if err != nil {
		return err.Error()
	}
	reached := fmt.Sprintf("own %d:", own)
	var numbers []uint32
	for _, word := range strings.Fields(arg) {
		n, err := strconv.ParseUint(word, 10, 32)
		if err != nil {
			return err.Error()
		}
		numbers = append(numbers, uint32(n))
	}
	for _, port := range numbers[1:] {
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err.Error()
		}
		if unix.Connect(fd, &unix.SockaddrVM{CID: numbers[0], Port: port}) == nil {
			reached += fmt.Sprintf(" %d", port)
		}
		_ = unix.Close(fd)
	}
	return reached
}
