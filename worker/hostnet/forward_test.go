package hostnet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/worker/hostnet"
)

func TestForward(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cfg := l.config(t)
	cfg.Ports = [2]uint16{30000, 30002}
	h := run(t, cfg)
	s := take(t, h)
	g := newGuest(t, s)
	echo(t, g.ns, 80)
	at, err := s.Forward(t.Context(), 80) // with no policy
	must(t, err)
	if at.Addr() != netip.MustParseAddr("127.0.0.1") || at.Port() < 30000 || at.Port() > 30002 {
		t.Errorf("forwarded from %s", at)
	}
	if as, err := tcp(l.host, "", "127.0.0.1", int(at.Port()), granted); err != nil || as != "169.254.0.1" {
		t.Errorf("the guest saw %q: %v, want its gateway", as, err)
	}
	if _, err := tcp(l.host, "", hostAddr, int(at.Port()), denied); err == nil {
		t.Error("the port listens at the host's public address")
	}
	if again, err := s.Forward(t.Context(), 80); again != at || err != nil {
		t.Errorf("asked again, it is %s: %v", again, err)
	}
	both(t, l, at)

	closed, err := s.Forward(t.Context(), 81)
	must(t, err)
	if _, err := tcp(l.host, "", "127.0.0.1", int(closed.Port()), denied); err == nil {
		t.Error("a port where the guest does not listen answers")
	}
	other := take(t, h)
	third, err := other.Forward(t.Context(), 80)
	must(t, err)
	if _, err := other.Forward(t.Context(), 82); !errors.Is(err, hostnet.ErrNoPort) {
		t.Errorf("a fourth of three ports: %v", err)
	}
	if diff := cmp.Diff(map[uint16]uint16{80: at.Port(), 81: closed.Port()}, portsOf(s)); diff != "" {
		t.Errorf("Forwards (-want +got):\n%s", diff)
	}

	var open net.Conn
	must(t, in(l.host, func() (err error) { open, err = net.Dial("tcp", at.String()); return err }))
	defer open.Close()
	must(t, other.Close())
	must(t, s.Close())
	open.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, open); errors.Is(err, context.DeadlineExceeded) {
		t.Error("a connection through the slot lives on")
	}
	for _, p := range []netip.AddrPort{at, closed, third} {
		if _, err := tcp(l.host, "", "127.0.0.1", int(p.Port()), denied); err == nil {
			t.Errorf("%s still listens", p)
		}
	}
	if _, err := s.Forward(t.Context(), 80); !errors.Is(err, hostnet.ErrClosed) {
		t.Errorf("forward of a closed slot: %v", err)
	}
	if err := s.Allow(t.Context(), hostnet.Policy{}); !errors.Is(err, hostnet.ErrClosed) {
		t.Errorf("allow of a closed slot: %v", err)
	}
}

func portsOf(s *hostnet.Slot) map[uint16]uint16 {
	m := map[uint16]uint16{}
	for guest, at := range s.Forwards() {
		m[guest] = at.Port()
	}
	return m
}

// both sends much and says that it is all: the guest's echo of it comes back whole, after the end of what was sent.
func both(t *testing.T, l *lab, at netip.AddrPort) {
	t.Helper()
	must(t, in(l.host, func() error {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
		wrote := make(chan error, 1)
		go func() {
			_, err := c.Write(sent)
			wrote <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
		}()
		got, err := io.ReadAll(c)
		err = errors.Join(err, <-wrote)
		if _, rest, _ := bytes.Cut(got, []byte("\n")); !bytes.Equal(rest, sent) {
			err = errors.Join(err, fmt.Errorf("%d bytes came back of %d", len(rest), len(sent)))
		}
		return err
	}))
}

// TestBandwidth sends and receives more than the bound lets through in the time, and looks at the clock the one way that is sure: it
// cannot have been faster.
func TestBandwidth(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cfg := l.config(t)
	cfg.Bandwidth = 16 << 20 // bits: 2 MiB/s
	s := take(t, run(t, cfg))
	g := newGuest(t, s)
	allow(t, s, hostnet.Policy{Kind: hostnet.Internet})
	echo(t, g.ns, 80)
	at, err := s.Forward(t.Context(), 80)
	must(t, err)
	const size = 3 << 20
	for name, c := range map[string]struct {
		from *lab
		to   string
		back bool
	}{"out": {nil, web + ":80", false}, "through a forwarded port": {l, at.String(), true}} {
		ns := g.ns
		if c.from != nil {
			ns = l.host
		}
		took, err := transfer(ns, c.to, size)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if least := time.Second; took < least {
			t.Errorf("%s: %d bytes there and back took %s, less than %s", name, size, took, least)
		}
	}
	if took, err := transfer(l.host, web+":80", size); err != nil || took > 5*time.Second {
		t.Errorf("unbounded it took %s: %v", took, err)
	}
}

func transfer(ns *os.File, to string, size int) (took time.Duration, err error) {
	err = in(ns, func() error {
		c, err := net.Dial("tcp", to)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(60 * time.Second))
		begun := time.Now()
		wrote := make(chan error, 1)
		go func() {
			_, err := c.Write(make([]byte, size))
			wrote <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
		}()
		n, err := io.Copy(io.Discard, c)
		if took = time.Since(begun); n < int64(size) {
			err = errors.Join(err, fmt.Errorf("%d bytes came back", n))
		}
		return errors.Join(err, <-wrote)
	})
	return took, err
}
