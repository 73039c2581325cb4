package harness

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/test/port"
)

// Relay is a network between clients and a server: what they say passes through, later where it is slow, and not at all where it is cut.
type Relay struct {
	Port int

	to    string
	mu    sync.RWMutex
	slow  time.Duration
	ends  map[net.Conn]bool // both ends of every connection
	cut   bool
	over  bool
	conns sync.WaitGroup
}

// StartRelay starts one to an address, and ends it with the test.
func StartRelay(t testing.TB, to string) *Relay {
	t.Helper()
	r := &Relay{Port: FreePort(t), to: to, ends: map[net.Conn]bool{}}
	l, err := net.Listen("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	r.conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.conns.Go(func() { r.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		r.mu.Lock()
		r.over = true
		r.mu.Unlock()
		r.hangUp()
		r.conns.Wait()
	})
	return r
}

// Addr is where it listens.
func (r *Relay) Addr() string { return port.Addr(r.Port) }

// Slow delays what passes from now on, each way.
func (r *Relay) Slow(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slow = d
}

// Cut lets nothing through from now on: connections seem to live, new ones too, and what is sent is lost.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = true
}

// Heal lets new connections through; those that there are break.
func (r *Relay) Heal() {
	r.mu.Lock()
	r.cut = false
	r.mu.Unlock()
	r.hangUp()
}

func (r *Relay) hangUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.ends {
		_ = c.Close()
	}
}

func (r *Relay) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer server.Close()
	r.mu.Lock()
	over := r.over
	r.ends[client], r.ends[server] = true, true
	r.mu.Unlock()
	if over {
		return
	}
	var back sync.WaitGroup
	back.Go(func() { r.pass(client, server) })
	r.pass(server, client)
	back.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.ends, client)
	delete(r.ends, server)
}

// pass copies until one of them ends, which ends the other. A connection of which something was lost passes nothing any more.
func (r *Relay) pass(to, from net.Conn) {
	defer to.Close()
	b := make([]byte, 32<<10)
	for lost := false; ; {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		r.mu.RLock()
		slow := r.slow
		r.mu.RUnlock()
		time.Sleep(slow)
		r.mu.RLock() // nothing is on its way through when Cut returns
		if lost = lost || r.cut; !lost {
			_, err = to.Write(b[:n])
		}
		r.mu.RUnlock()
		if lost {
			_, _ = io.Copy(io.Discard, from)
		}
		if lost || err != nil {
			return
		}
	}
}
