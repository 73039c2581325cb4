// Package bustest runs what a test of something on NATS needs: a real server with its files in a test's directory, a bus, and a Brain
// that behaves as the dispatcher does towards clients. It imports bus and jobs.
package bustest

import (
	"context"
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/port"
)

// Server is an embedded server that can be stopped and started again where it was.
type Server struct {
	*bus.Server
	tb   testing.TB
	dir  string
	addr string
	// credentials is the file of StartGuarded.
	credentials string
}

// Start starts a server that syncs every write, on a port of its own.
func Start(tb testing.TB) *Server {
	tb.Helper()
	s := &Server{tb: tb, dir: tb.TempDir(), addr: port.Addr(freePort(tb))}
	s.start()
	return s
}

func (s *Server) start() {
	tb := s.tb
	tb.Helper()
	s.Restart()
	u, err := url.Parse(s.URL())
	if err != nil {
		tb.Fatal(err)
	}
	s.addr = u.Host
	tb.Cleanup(func() { s.Close() }) // the one that runs then
}

// Restart starts the server again after Close.
func (s *Server) Restart() {
	s.tb.Helper()
	c := bus.EmbedConfig{Listen: s.addr, StoreDir: s.dir, Log: zerolog.Nop()}
	var err error
	if s.credentials != "" {
		if c.Credentials, err = access.Open(s.credentials); err != nil {
			s.tb.Fatal(err)
		}
	}
	e, err := bus.Embed(c)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.Server = e
}

// Connect gives a bus over TCP, as between hosts; it is closed at the test's end.
func (s *Server) Connect() *bus.Bus {
	s.tb.Helper()
	b, err := bus.Connect(s.tb.Context(), bus.Config{URL: s.URL(), Name: "test", Log: zerolog.Nop()})
	if err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(b.Close)
	return b
}

// loaded is how long a machine that is loaded may take for what nats.go lets take seconds: only a hang is cut off.
const loaded = time.Minute

// Plain gives a connection of nats.go, as any client has one.
func (s *Server) Plain(more ...nats.Option) *nats.Conn {
	s.tb.Helper()
	nc, err := nats.Connect(s.URL(), append([]nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(50 * time.Millisecond), nats.Timeout(loaded)}, more...)...)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(nc.Close)
	return nc
}

// JetStream gives what nats.go has for it, on a connection.
func JetStream(tb testing.TB, nc *nats.Conn) jetstream.JetStream {
	tb.Helper()
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(loaded))
	if err != nil {
		tb.Fatal(err)
	}
	return js
}

// Serve has a brain answer, and returns when it does. stop ends that and waits for it; so does the test's end.
func Serve(tb testing.TB, b *bus.Bus, brain bus.Brain) (stop func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		if err := b.ServeDispatcher(ctx, brain, func() { close(ready) }); err != nil {
			tb.Errorf("serve: %v", err)
		}
	}()
	stop = func() { cancel(); <-done }
	tb.Cleanup(stop)
	select {
	case <-ready:
	case <-done:
	}
	return stop
}

// patience is how long Eventually waits: a cluster that has to agree again, on a disk that stalls for seconds, takes more than a minute.
const patience = 5 * time.Minute

// Eventually waits for something that no channel tells of.
func Eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Errorf("waited %v, and still not: %s", patience, what)
			return
		}
	}
}

// Publish stores events as callers do: what is unavailable, be it that the machine is loaded, is published again, as what may be stored.
func Publish(tb testing.TB, b *bus.Bus, events ...jobs.Event) {
	tb.Helper()
	publish := b.Publish
	Eventually(tb, "the events are stored", func() bool {
		err := publish(context.WithoutCancel(tb.Context()), events...)
		publish = b.Republish
		if e, ok := errors.AsType[*jobs.Error](err); ok && e.Code == jobs.CodeUnavailable {
			return false
		}
		if err != nil {
			tb.Error(err)
		}
		return true
	})
}

// Event is an output event, of now.
func Event(job string, attempt int, seq int64, text string) jobs.Event {
	return jobs.Event{
		Type: jobs.EventOutput, Job: job, Tenant: "default", Attempt: attempt, Seq: seq, Time: time.Now().UTC(), Stream: jobs.Stdout,
		Content: jobs.Content{Text: text},
	}
}

// Final is a job's last event.
func Final(job string, attempt int, seq int64) jobs.Event {
	return jobs.Event{
		Type: jobs.EventResult, Job: job, Tenant: "default", Attempt: attempt, Seq: seq, Time: time.Now().UTC(), Final: true,
		Result: &jobs.Result{Ending: jobs.Exited, Class: jobs.ClassUser, Attempt: attempt},
	}
}
