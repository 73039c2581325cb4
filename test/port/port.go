// Package port gives tests ports to listen on later.
//
// It imports the standard library.
package port

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
)

// given counts what Free has tried in this process, so that nobody is given the same twice.
var given atomic.Int64

// first is the lowest port that is given.
const first = 10_000

// Free gives a TCP port of 127.0.0.1 on which nobody listens, outside of those that the kernel takes for connections (ip(7),
// ip_local_port_range): one of those, as listening on port 0 gives them, may be a connection's when somebody listens on it at last, or
// again. Processes at the same time begin in different places.
func Free() (int, error) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return 0, err
	}
	low, err := strconv.Atoi(strings.Fields(string(b))[0])
	if err != nil {
		return 0, fmt.Errorf("the kernel's ports are %q: %w", b, err)
	}
	ports := int64(low - first)
	if ports <= 0 {
		return 0, fmt.Errorf("the kernel's ports begin at %d: none is left above %d", low, first)
	}
	for range ports {
		p := first + int((int64(os.Getpid())*397+given.Add(1))%ports)
		if l, err := net.Listen("tcp", Addr(p)); err == nil {
			return p, l.Close()
		}
	}
	return 0, errors.New("every port is taken")
}

// Addr is a port's address.
func Addr(p int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p)) }
