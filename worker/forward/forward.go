// Package forward lets ports of this host lead to ports of a guest, through whatever dials the guest: a network, or the guest's agent
// where there is none. Ports are a guest's, each with a port of the host's; a Proxy leads to all of them by one port, for HTTP. It imports
// the standard library only.
//
// A process copies, where a kernel could rewrite addresses: a listener holds its port against everybody on the host, and no route or
// firewall has to let anybody in.
package forward

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
)

const (
	most          = 32  // ports of one guest
	connections   = 512 // through all of them at once
	guestAnswers  = 10 * time.Second
	acceptRecover = 50 * time.Millisecond
)

var (
	// ErrClosed says that the ports are closed.
	ErrClosed = errors.New("forward: closed")
	// ErrBusy says that as many connections as there may be are open; what dials a guest may say so, too.
	ErrBusy = errors.New("too many connections are open")
)

// Ports are those of the host that lead to one guest. Close them when the guest ends.
type Ports struct {
	listen func() (net.Listener, error)
	dial   func(ctx context.Context, port uint16) (net.Conn, error)
	life   context.Context //nolint:containedctx // from New to Close: what dials for it ends with it
	end    context.CancelFunc
	ended  sync.WaitGroup

	mu     sync.Mutex
	closed bool
	open   map[uint16]net.Listener
	conns  map[net.Conn]bool
}

// New opens nothing yet. listen gives a TCP listener on a free port of the host; dial connects to one of the guest's: its error is
// syscall.ECONNREFUSED where nothing listens there.
func New(listen func() (net.Listener, error), dial func(ctx context.Context, port uint16) (net.Conn, error)) *Ports {
	p := &Ports{listen: listen, dial: dial, open: map[uint16]net.Listener{}, conns: map[net.Conn]bool{}}
	p.life, p.end = context.WithCancel(context.Background())
	return p
}

// Open gives the address on the host that leads to a port of the guest until Close. A port has one: asked again, it is the same. Nothing
// need listen in the guest yet; while nothing does, connections are reset.
func (p *Ports) Open(port uint16) (netip.AddrPort, error) {
	at, err := p.forward(port)
	if err != nil {
		return at, fmt.Errorf("forward to port %d: %w", port, err)
	}
	return at, nil
}

func (p *Ports) forward(port uint16) (netip.AddrPort, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch l := p.open[port]; {
	case port == 0:
		return netip.AddrPort{}, errors.New("there is no port 0")
	case p.closed:
		return netip.AddrPort{}, ErrClosed
	case l != nil:
		return address(l), nil
	case len(p.open) == most:
		return netip.AddrPort{}, fmt.Errorf("%d ports are forwarded already", most)
	}
	l, err := p.listen()
	if err != nil {
		return netip.AddrPort{}, err
	}
	p.open[port] = l
	p.ended.Go(func() { p.accept(l, port) })
	return address(l), nil
}

func address(l net.Listener) netip.AddrPort {
	at := l.Addr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// All are the ports that lead to the guest, by the guest's.
func (p *Ports) All() map[uint16]netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := make(map[uint16]netip.AddrPort, len(p.open))
	for port, l := range p.open {
		m[port] = address(l)
	}
	return m
}

// Close ends all ports and all connections through them, and returns when they have ended. It is idempotent.
func (p *Ports) Close() error {
	p.end()
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

func (p *Ports) accept(l net.Listener, port uint16) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // too many open files: connections that end make room
			select {
			case <-time.After(acceptRecover):
			case <-p.life.Done():
			}
			continue
		}
		if !p.keep(c) {
			_ = c.Close()
			continue
		}
		p.ended.Go(func() {
			defer p.drop(c)
			p.pipe(c, port)
		})
	}
}

// keep has Close end a connection; false where there are too many, or it is late.
func (p *Ports) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.take(c) == nil
}

// take is keep, and says why not; p.mu is held.
func (p *Ports) take(c net.Conn) error {
	switch {
	case p.closed:
		return ErrClosed
	case len(p.conns) >= 2*connections:
		return ErrBusy
	}
	p.conns[c] = true
	return nil
}

// hold is keep for who goes on with the connection elsewhere: Close waits until release has been called, once.
func (p *Ports) hold(c net.Conn) (release func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.take(c); err != nil {
		return nil, err
	}
	p.ended.Add(1)
	return func() {
		p.mu.Lock()
		delete(p.conns, c)
		p.mu.Unlock()
		p.ended.Done()
	}, nil
}

func (p *Ports) drop(c net.Conn) {
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	_ = c.Close() // whoever is at its other end sees it end
}

// pipe copies both ways between a connection and the guest until both have said their last.
func (p *Ports) pipe(c net.Conn, port uint16) {
	ctx, cancel := context.WithTimeout(p.life, guestAnswers)
	g, err := p.dial(ctx, port)
	cancel()
	if err != nil {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // refused, as the guest does
		}
		return
	}
	if !p.keep(g) {
		_ = g.Close()
		return
	}
	defer p.drop(g)
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
		if t, ok := to.(interface{ CloseWrite() error }); ok {
			err = t.CloseWrite()
		}
	}
	if err != nil {
		_, _ = to.Close(), from.Close()
	}
}
