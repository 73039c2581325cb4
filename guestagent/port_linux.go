package guestagent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// PortName is the virtio-serial port that leads to the host.
const PortName = "org.paddock.agent.0"

// port is the guest's end of the virtio-serial port. The descriptor blocks: a read waits in the kernel while the host is there, and
// gives nothing at once while it is not.
type port struct {
	fd      int
	changed chan os.Signal // SIGIO: the host came or went
}

// openPort finds the port by its name; the device's number is not fixed.
func openPort() (*port, error) {
	for end := time.Now().Add(deviceWithin); ; time.Sleep(5 * time.Millisecond) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, file := range names {
			if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == PortName {
				return openPortDevice(filepath.Join("/dev", filepath.Base(filepath.Dir(file))))
			}
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("no virtio port named %s", PortName)
		}
	}
}

func openPortDevice(name string) (*port, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	p := &port{fd: fd, changed: make(chan os.Signal, 1)}
	signal.Notify(p.changed, syscall.SIGIO)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETOWN, os.Getpid()); err != nil {
		return nil, fmt.Errorf("own %s: %w", name, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_ASYNC); err != nil {
		return nil, fmt.Errorf("watch %s: %w", name, err)
	}
	return p, nil
}

// lookAgain bounds how long a host may stand at the door should a signal be lost.
const lookAgain = 250 * time.Millisecond

// waitForHost returns when the host is there. The kernel signals when it comes; nothing spins.
func (p *port) waitForHost() {
	for {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 0); err == nil && fds[0].Revents&unix.POLLHUP == 0 {
			return
		}
		t := time.NewTimer(lookAgain)
		select {
		case <-p.changed:
		case <-t.C:
		}
		t.Stop()
	}
}

// Read implements io.Reader; the host's absence is the end.
func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(p.fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// Write implements io.Writer.
func (p *port) Write(b []byte) (int, error) {
	written := 0
	for written < len(b) {
		n, err := unix.Write(p.fd, b[written:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}
