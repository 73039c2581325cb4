package bus_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// relay passes on what comes to it, until it is silent: connections stay open, and nothing comes through any more, as when a host has lost
// its power.
type relay struct {
	l    net.Listener
	wg   sync.WaitGroup
	gate sync.RWMutex // held for writing while it is silent

	mu    sync.Mutex
	conns []net.Conn
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{l: l}
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", to)
			if err != nil {
				_ = c.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, c, s)
			r.mu.Unlock()
			r.wg.Go(func() { r.pass(s, c) })
			r.wg.Go(func() { r.pass(c, s) })
		}
	})
	return r
}

func (r *relay) pass(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		r.gate.RLock()
		r.gate.RUnlock() //nolint:staticcheck // to wait is all that it is for
		if _, werr := to.Write(buf[:n]); werr != nil || err != nil {
			_ = to.Close()
			return
		}
	}
}

// used tells whether somebody is connected through it.
func (r *relay) used() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.conns) > 0
}

// cut ends all connections. There may be others.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		_ = c.Close()
	}
}

func (r *relay) close() {
	_ = r.l.Close()
	r.cut()
	r.wg.Wait()
}

// TestSilentServer: a server that says nothing any more, on a connection that seems to live, is left for another within a lease's length.
func TestSilentServer(t *testing.T) {
	s := bustest.Start(t)
	addr := strings.TrimPrefix(s.URL(), "nats://")
	relays := []*relay{newRelay(t, addr), newRelay(t, addr)}
	for _, r := range relays {
		defer r.close()
	}
	b, err := bus.Connect(t.Context(), bus.Config{URL: "nats://" + relays[0].l.Addr().String() + ",nats://" + relays[1].l.Addr().String(), Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	used, other := relays[0], relays[1]
	if !used.used() {
		used, other = other, used
	}
	used.gate.Lock()
	defer used.gate.Unlock()
	within(t, 15*time.Second, "it leaves a server that says nothing", other.used) // a lease, where nobody has said otherwise
	bustest.Eventually(t, "connected to the other", b.Connected)
	bustest.Publish(t, b, bustest.Event(jobs.NewID(), 1, 1, "x"))
}

// within waits for something, so long in the time that this process has: what a loaded machine holds it up for is no time to it.
func within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	const tick = 50 * time.Millisecond
	for had := time.Duration(0); !ok(); had += tick {
		if had > d {
			t.Fatalf("after %v still not: %s", d, what)
		}
		time.Sleep(tick)
	}
}

// TestSilentDispatcher: requests do not go for long to a dispatcher that says nothing any more, on a connection that seems to live, when another
// answers them.
func TestSilentDispatcher(t *testing.T) {
	s := bustest.Start(t)
	r := newRelay(t, strings.TrimPrefix(s.URL(), "nats://"))
	t.Cleanup(r.close)
	silent, err := bus.Connect(t.Context(), bus.Config{URL: "nats://" + r.l.Addr().String(), Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(silent.Close)
	bustest.Serve(t, silent, &bustest.Brain{})
	bustest.Serve(t, s.Connect(), &bustest.Brain{})
	r.gate.Lock()
	defer r.gate.Unlock()
	answered(t, s)
}

// answered waits until no request is lost any more.
func answered(t *testing.T, s *bustest.Server) {
	t.Helper()
	nc := s.Plain()
	const most, inARow = 30, 20 // seconds, one for each that is lost; and by chance one of a million times
	for lost, n := 0, 0; n < inARow; {
		_, err := nc.Request(jobs.GetSubject("acme"), []byte(`{"id":"none"}`), time.Second)
		if err == nil {
			n++
			continue
		}
		n = 0
		if lost++; lost > most || !errors.Is(err, nats.ErrTimeout) {
			t.Fatalf("%d requests were lost: %v", lost, err)
		}
	}
}

// TestEndsWhileItConnectsAgain: requests do not go for good to a dispatcher that has ended its serving just when its connection came back. The
// server may hear a moment later that the connection has ended on which it was still served.
func TestEndsWhileItConnectsAgain(t *testing.T) {
	s := bustest.Start(t)
	r := newRelay(t, strings.TrimPrefix(s.URL(), "nats://"))
	t.Cleanup(r.close)
	ends, err := bus.Connect(t.Context(), bus.Config{URL: "nats://" + r.l.Addr().String(), Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ends.Close)
	stop := bustest.Serve(t, ends, &bustest.Brain{})
	bustest.Serve(t, s.Connect(), &bustest.Brain{})
	r.gate.Lock() // it is not back before that was seen
	r.cut()
	bustest.Eventually(t, "the connection is lost", func() bool { return !ends.Connected() })
	r.gate.Unlock()
	stop()
	bustest.Eventually(t, "the connection is back", ends.Connected)
	answered(t, s)
}

// TestSilentServerOfCallout: who decides who may connect leaves a server that says nothing any more as soon as everybody else does: until then
// the cluster's other servers, which those turn to, let nobody in.
func TestSilentServerOfCallout(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var silent atomic.Bool
	var serving sync.WaitGroup
	connected := make(chan struct{}, 10)
	serving.Go(func() {
		for first := true; ; first = false {
			c, err := l.Accept()
			if err != nil {
				return
			}
			connected <- struct{}{}
			serving.Go(func() {
				defer c.Close()
				fmt.Fprintf(c, "INFO {\"server_id\":\"s\",\"version\":\"2.12.0\",\"headers\":true,\"max_payload\":1048576,\"nonce\":\"n\"}\r\n")
				for lines := bufio.NewScanner(c); lines.Scan(); {
					if lines.Text() == "PING" && (!first || !silent.Load()) {
						fmt.Fprint(c, "PONG\r\n")
					}
				}
			})
		}
	})
	defer serving.Wait()
	defer l.Close()
	keys, err := access.MakeCalloutKeys(filepath.Join(t.TempDir(), "callout"))
	if err != nil {
		t.Fatal(err)
	}
	credentials := filepath.Join(t.TempDir(), "credentials.yaml")
	if err := access.Change(credentials, func(l []access.Credential) ([]access.Credential, error) { return l, nil }); err != nil {
		t.Fatal(err)
	}
	file, err := access.Open(credentials)
	if err != nil {
		t.Fatal(err)
	}
	a, err := bus.ConnectCallout(t.Context(), bus.CalloutConfig{URL: "nats://" + l.Addr().String(), Keys: keys, Credentials: file, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	<-connected
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := a.Run(ctx, func() { silent.Store(true) }); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()
	within(t, 30*time.Second, "it leaves a server that says nothing", func() bool { return len(connected) > 0 }) // 12 s, on a loaded machine
}
