package hostnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ports are those of the host that lead to a slot's guest. A process of ours copies, where the kernel could rewrite addresses: a listener
// holds its port against everybody on the host, 127.0.0.1 needs no route_localnet, the guest sees its gateway only, and no rule has to let
// anybody in.
type ports struct {
	ended sync.WaitGroup

	mu     sync.Mutex
	closed bool
	open   map[uint16]net.Listener
	conns  map[net.Conn]bool
}

const (
	portsPerSlot  = 32
	connsPerSlot  = 512 // through all its ports
	guestAnswers  = 10 * time.Second
	acceptRecover = 50 * time.Millisecond
)

// ErrNoPort says that all of the host's ports for forwarding are in use.
var ErrNoPort = errors.New("no port of the host is free")

func newPorts() *ports { return &ports{open: map[uint16]net.Listener{}, conns: map[net.Conn]bool{}} }

// Forward gives a port of the host, TCP, that leads to the guest's until Close, whatever the policy. A guest's port has one: asked again,
// it is the same.
func (s *Slot) Forward(ctx context.Context, guest uint16) (netip.AddrPort, error) {
	if err := ctx.Err(); err != nil {
		return netip.AddrPort{}, fmt.Errorf("hostnet: forward to port %d: %w", guest, context.Cause(ctx))
	}
	at, err := s.forward(guest) //nolint:contextcheck // what it begins lives as long as the slot
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("hostnet: forward to port %d: %w", guest, err)
	}
	return at, nil
}

func (s *Slot) forward(guest uint16) (netip.AddrPort, error) {
	p := s.ports
	p.mu.Lock()
	defer p.mu.Unlock()
	switch l := p.open[guest]; {
	case guest == 0:
		return netip.AddrPort{}, errors.New("there is no port 0")
	case p.closed:
		return netip.AddrPort{}, ErrClosed
	case l != nil:
		return address(l), nil
	case len(p.open) == portsPerSlot:
		return netip.AddrPort{}, fmt.Errorf("%d ports are forwarded already", portsPerSlot)
	}
	l, err := s.host.listen()
	if err != nil {
		return netip.AddrPort{}, err
	}
	p.open[guest] = l
	p.ended.Go(func() { s.accept(l, guest) }) // until the slot closes
	return address(l), nil
}

func address(l net.Listener) netip.AddrPort {
	at := l.Addr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// Forwards are the ports that lead to the guest, by the guest's.
func (s *Slot) Forwards() map[uint16]netip.AddrPort {
	s.ports.mu.Lock()
	defer s.ports.mu.Unlock()
	m := make(map[uint16]netip.AddrPort, len(s.ports.open))
	for guest, l := range s.ports.open {
		m[guest] = address(l)
	}
	return m
}

// listen takes the next port that is free: that nobody listens there is all that has to be agreed about.
func (h *Host) listen() (net.Listener, error) {
	first, n := int(h.cfg.Ports[0]), int(h.cfg.Ports[1])-int(h.cfg.Ports[0])+1
	var l net.Listener
	err := within(int(h.ns.Fd()), func() error {
		for range n {
			h.mu.Lock()
			port := first + h.port%n
			h.port++
			h.mu.Unlock()
			var err error
			l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(h.cfg.PortsAddr, uint16(port))))
			if !errors.Is(err, unix.EADDRINUSE) {
				return err
			}
		}
		return ErrNoPort
	})
	return l, err
}

func (s *Slot) accept(l net.Listener, guest uint16) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // too many open files: connections that end make room
			select {
			case <-time.After(acceptRecover):
			case <-s.life.Done():
			}
			continue
		}
		if !s.ports.keep(c) {
			_ = c.Close()
			continue
		}
		s.ports.ended.Go(func() {
			defer s.ports.drop(c)
			s.pipe(c, guest)
		})
	}
}

// keep has close end a connection; not where there are too many, or it is late.
func (p *ports) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.conns) >= 2*connsPerSlot {
		return false
	}
	p.conns[c] = true
	return true
}

func (p *ports) drop(c net.Conn) {
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	_ = c.Close() // whoever is at its other end sees it end
}

// pipe copies both ways between a connection and the guest until both have said their last.
func (s *Slot) pipe(c net.Conn, port uint16) {
	ctx, cancel := context.WithTimeout(s.life, guestAnswers)
	g, err := dial(ctx, s.ns, "tcp", netip.AddrPortFrom(guestAddr(), port))
	cancel()
	if err != nil {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // refused, as the guest does
		}
		return
	}
	if !s.ports.keep(g) {
		_ = g.Close()
		return
	}
	defer s.ports.drop(g)
	back := make(chan struct{})
	go func() {
		defer close(back)
		copyEnd(c, g)
	}()
	copyEnd(g, c)
	<-back
}

// copyEnd copies what comes, and then says that no more will. Where either end is broken, so is the other.
func copyEnd(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if err == nil {
		if t, ok := to.(*net.TCPConn); ok {
			err = t.CloseWrite()
		}
	}
	if err != nil {
		_, _ = to.Close(), from.Close()
	}
}

// close ends all ports and connections.
func (p *ports) close() error {
	p.mu.Lock()
	p.closed = true
	open, conns := maps.Clone(p.open), maps.Clone(p.conns)
	clear(p.open)
	p.mu.Unlock()
	var err error
	for _, l := range open {
		err = errors.Join(err, l.Close())
	}
	for c := range conns {
		_ = c.Close() // may have ended by itself
	}
	p.ended.Wait()
	return err
}
