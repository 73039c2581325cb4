package forward

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Range is what ports of the host are given out of. Others may use ports in it, too: those are passed over. It is safe for concurrent use.
type Range struct {
	Addr        netip.Addr
	First, Last uint16

	next atomic.Uint32 // where the search for a free one goes on
}

// ErrNoPort says that all ports of a Range are in use.
var ErrNoPort = errors.New("no port of the host is free")

// ParseRange reads "127.0.0.1:30000-32767".
func ParseRange(s string) (*Range, error) {
	fault := fmt.Errorf("%q: want ADDRESS:FIRST-LAST, as in 127.0.0.1:30000-32767", s)
	host, ports, err := net.SplitHostPort(s)
	if err != nil {
		return nil, fault
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return nil, fault
	}
	from, to, _ := strings.Cut(ports, "-")
	first, err1 := strconv.ParseUint(from, 10, 16)
	last, err2 := strconv.ParseUint(to, 10, 16)
	if err1 != nil || err2 != nil || first < 1 || last < first {
		return nil, fault
	}
	return &Range{Addr: addr, First: uint16(first), Last: uint16(last)}, nil
}

// Listen takes the next port that is free: that nobody listens there is all that has to be agreed about.
func (r *Range) Listen() (net.Listener, error) {
	n := uint32(r.Last-r.First) + 1
	for range n {
		port := r.First + uint16((r.next.Add(1)-1)%n)
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(r.Addr, port)))
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, err
		}
	}
	return nil, ErrNoPort
}
