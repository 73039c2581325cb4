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

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/worker/forward"
	"github.com/paddockvm/paddock/worker/hostnet"
)

// forward has a port of the test's host lead to a guest's, as workers do.
func (l *lab) forward(t *testing.T, s *hostnet.Slot, port uint16) netip.AddrPort {
	t.Helper()
	r, err := forward.ParseRange("127.0.0.1:30000-30099")
	must(t, err)
	p := forward.New(func() (c net.Listener, err error) {
		err = in(l.host, func() error { c, err = r.Listen(); return err })
		return c, err
	}, s.Dial)
	t.Cleanup(func() { must(t, p.Close()) })
	at, err := p.Open(port)
	must(t, err)
	return at
}

func TestDial(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := take(t, run(t, l.config(t)))
	g := newGuest(t, s)
	echo(t, g.ns, 80)
	at := l.forward(t, s, 80) // with no policy
	if as, err := tcp(l.host, "", "127.0.0.1", int(at.Port()), granted); err != nil || as != "169.254.0.1" {
		t.Errorf("the guest saw %q: %v, want its gateway", as, err)
	}
	both(t, l, at)
	if c, err := s.Dial(t.Context(), 81); !errors.Is(err, unix.ECONNREFUSED) {
		if err == nil {
			c.Close()
		}
		t.Errorf("a port where the guest does not listen: %v", err)
	}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Dial(short, 80); !errors.Is(err, context.Canceled) {
		t.Errorf("dial with a context that has ended: %v", err)
	}
	open, err := s.Dial(t.Context(), 80)
	must(t, err)
	defer open.Close()
	must(t, s.Close())
	open.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, open); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a connection through the slot lives on")
	}
	if _, err := s.Dial(t.Context(), 80); err == nil {
		t.Error("dial through a closed slot")
	}
	if err := s.Allow(t.Context(), hostnet.Policy{}); !errors.Is(err, hostnet.ErrClosed) {
		t.Errorf("allow of a closed slot: %v", err)
	}
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
	at := l.forward(t, s, 80)
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
	const much = 20 * size // which takes 28 s at that speed
	if took, err := transfer(l.host, web+":80", much); err != nil || took > 25*time.Second {
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
