// Package port gives tests ports to listen on later.
//
// It imports the standard library.
package port

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// first is the lowest port that is given.
const first = 10_000

// block is how many ports a process takes for itself at once.
const block = 100

// mine are the ports of this process's blocks that were not given yet.
var (
	mu   sync.Mutex
	mine []int
)

// Free gives a TCP port of 127.0.0.1 on which nobody listens, outside of those that the kernel takes for connections (ip(7),
// ip_local_port_range): one of those, as listening on port 0 gives them, may be a connection's when somebody listens on it at last, or
// again. It is given once, and to no other process that gets its ports here as long as this one lives.
func Free() (int, error) {
	mu.Lock()
	defer mu.Unlock()
	for {
		if len(mine) == 0 {
			var err error
			if mine, err = take(); err != nil {
				return 0, err
			}
		}
		p := mine[0]
		mine = mine[1:]
		if l, err := net.Listen("tcp", Addr(p)); err == nil {
			return p, l.Close()
		}
	}
}

// take gives the ports of a block that no process has.
func take() ([]int, error) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return nil, err
	}
	low, err := strconv.Atoi(strings.Fields(string(b))[0])
	if err != nil {
		return nil, fmt.Errorf("the kernel's ports are %q: %w", b, err)
	}
	blocks := (low - first) / block
	for i := range blocks { // from somewhere else in each process: somebody may still ask for what another had
		p := first + (os.Getpid()*397+i)%blocks*block
		ok, err := lock(fmt.Sprint("@paddock-test-ports-", p))
		if err != nil {
			return nil, err
		}
		if ok {
			ports := make([]int, block)
			for i := range ports {
				ports[i] = p + i
			}
			return ports, nil
		}
	}
	return nil, fmt.Errorf("every port between %d and the kernel's, which begin at %d, is taken", first, low)
}

// lock takes a name for the rest of the process's life: that of an abstract socket, of which there is one and which nobody has to remove (unix(7)).
func lock(name string) (bool, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, os.NewSyscallError("socket", err)
	}
	switch err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: name}); err {
	case nil:
		return true, nil
	case syscall.EADDRINUSE:
		return false, syscall.Close(fd)
	default:
		_ = syscall.Close(fd)
		return false, os.NewSyscallError("bind", err)
	}
}

// Addr is a port's address.
func Addr(p int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p)) }
