package forward_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/paddockvm/paddock/test/leak"
	"github.com/paddockvm/paddock/worker/forward"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

// guest listens on a port of its own, which is what the test's dial connects to, whatever the port's number in the guest.
type guest struct {
	net.Listener
	mu     sync.Mutex
	dialed []uint16
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &guest{Listener: l}
}

func (g *guest) dial(ctx context.Context, port uint16) (net.Conn, error) {
	g.mu.Lock()
	g.dialed = append(g.dialed, port)
	g.mu.Unlock()
	var d net.Dialer
	return d.DialContext(ctx, "tcp", g.Addr().String())
}

// echo answers every connection with what it said, once it has said all.
func (g *guest) echo(t *testing.T) {
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := g.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				b, err := io.ReadAll(c)
				if err == nil {
					_, _ = c.Write(b)
				}
			})
		}
	})
	t.Cleanup(func() { g.Close(); all.Wait() })
}

func newPorts(t *testing.T, r *forward.Range, g *guest) *forward.Ports {
	t.Helper()
	p := forward.New(r.Listen, g.dial)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// ours is an address of this host's loopback that nobody else listens on: those at 127.0.0.1 may be given to another test at any moment.
const ours = "127.28.0.1"

// loopback gives ports of this host. They are none that the kernel gives to connections that go out (ip_local_port_range, from 32768 on).
func loopback(t *testing.T, ports string) *forward.Range {
	t.Helper()
	r, err := forward.ParseRange(ours + ":" + ports)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func connect(t *testing.T, at netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestBytesGoBothWays(t *testing.T) {
	g := newGuest(t)
	g.echo(t)
	p := newPorts(t, loopback(t, "28200-28299"), g)
	at, err := p.Open(80)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := p.Open(80); err != nil || again != at {
		t.Errorf("asked again: %v, %v", again, err)
	}
	other, err := p.Open(8080)
	if err != nil || other == at {
		t.Errorf("another port: %v, %v", other, err)
	}
	if all := p.All(); len(all) != 2 || all[80] != at || all[8080] != other {
		t.Errorf("all: %v", all)
	}
	var clients sync.WaitGroup
	for range 20 {
		c := connect(t, at)
		clients.Go(func() {
			sent := make([]byte, 1<<20)
			_, _ = rand.Read(sent)
			go func() {
				_, _ = c.Write(sent)
				_ = c.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d of %d bytes came back: %v", len(got), len(sent), err)
			}
		})
	}
	clients.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, port := range g.dialed {
		if port != 80 {
			t.Errorf("port %d of the guest was dialled", port)
		}
	}
}

func TestNothingListens(t *testing.T) {
	p := forward.New(loopback(t, "28200-28299").Listen, func(context.Context, uint16) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	})
	defer p.Close()
	at, err := p.Open(80)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(at))
	if err == nil { // else the reset came first
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

// TestClose: connections that are open end with the ports, and so does one that is being dialled.
func TestClose(t *testing.T) {
	g := newGuest(t)
	stuck := make(chan struct{})
	p := forward.New(loopback(t, "28200-28299").Listen, func(ctx context.Context, port uint16) (net.Conn, error) {
		if port == 1 {
			close(stuck)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return g.dial(ctx, port)
	})
	at, err := p.Open(80)
	if err != nil {
		t.Fatal(err)
	}
	never, err := p.Open(1)
	if err != nil {
		t.Fatal(err)
	}
	open, waits := connect(t, at), connect(t, never)
	inside, err := g.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	<-stuck
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, c := range []net.Conn{open, waits, inside} {
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("read %d after Close", n)
		}
	}
	if _, err := net.Dial("tcp", at.String()); err == nil {
		t.Error("the port is open after Close")
	}
	if _, err := p.Open(81); !errors.Is(err, forward.ErrClosed) {
		t.Errorf("Open after Close: %v", err)
	}
}

func TestPortsRunOut(t *testing.T) {
	r, g := loopback(t, "28300-28302"), newGuest(t)
	taken, err := net.Listen("tcp", ours+":28301") // somebody else's
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	p := newPorts(t, r, g)
	for port := uint16(1); port <= 2; port++ {
		if _, err := p.Open(port); err != nil {
			t.Error(err)
		}
	}
	if _, err := p.Open(3); !errors.Is(err, forward.ErrNoPort) {
		t.Errorf("a third of two: %v", err)
	}
	if _, err := p.Open(0); err == nil {
		t.Error("port 0 was forwarded")
	}
}

func TestParseRange(t *testing.T) {
	for _, bad := range []string{"", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:0-9", "127.0.0.1:9-8", "127.0.0.1:1-65536", "localhost:1-2", ":1-2", "127.0.0.1:a-b"} {
		if r, err := forward.ParseRange(bad); err == nil {
			t.Errorf("%q gives %+v", bad, r)
		}
	}
	if r, err := forward.ParseRange("[::1]:7-9"); err != nil || r.Addr != netip.IPv6Loopback() || r.First != 7 || r.Last != 9 {
		t.Errorf("%+v, %v", r, err)
	}
}
