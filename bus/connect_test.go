package bus_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// A server that says nothing does not hold Connect when its context ends.
func TestConnectEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	taken := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			taken <- c
			cancel(enough)
		}
	}()
	if _, err := bus.Connect(ctx, bus.Config{URL: "nats://" + l.Addr().String(), Log: zerolog.Nop()}); !errors.Is(err, enough) {
		t.Errorf("got %v", err)
	}
	(<-taken).Close()
	if _, err := bus.Connect(ctx, bus.Config{URL: "nats://" + l.Addr().String(), Log: zerolog.Nop()}); !errors.Is(err, enough) {
		t.Errorf("with a context that has ended: got %v", err)
	}
}

// A server on a machine that is loaded may take its time to greet.
func TestGreetedLate(t *testing.T) {
	s := bustest.Start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	t.Cleanup(func() { _ = l.Close() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				time.Sleep(nats.DefaultTimeout + time.Second)
				server, err := net.Dial("tcp", strings.TrimPrefix(s.URL(), "nats://"))
				if err != nil {
					return
				}
				defer server.Close()
				all.Go(func() {
					_, _ = io.Copy(c, server)
					_ = c.Close()
				})
				_, _ = io.Copy(server, c)
			})
		}
	})
	b, err := bus.Connect(t.Context(), bus.Config{URL: "nats://" + l.Addr().String(), Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
}

// The context of Connect is that of the first connection, and of no later one.
func TestConnectContextIsOver(t *testing.T) {
	s := bustest.Start(t)
	ctx, cancel := context.WithCancel(t.Context())
	b, err := bus.Connect(ctx, bus.Config{URL: s.URL(), Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	cancel()
	job := jobs.NewID()
	bustest.Publish(t, b, bustest.Event(job, 1, 1, "x"))
	s.Close()
	s.Restart()
	bustest.Publish(t, b, bustest.Event(job, 1, 2, "x"))
	inOrder(t, s.Plain(), job, 2)
}

// A server of somebody else's that takes too little is refused, or the operator is told what it costs.
func TestMaxPayload(t *testing.T) {
	for size, want := range map[int32]string{512 << 10: "error", 1 << 20: "warning", 2 << 20: ""} {
		s, err := server.NewServer(&server.Options{
			Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true, JetStream: true, StoreDir: t.TempDir(), MaxPayload: size,
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		if !s.ReadyForConnections(time.Minute) {
			t.Fatal("the server does not come up")
		}
		var log bytes.Buffer
		b, err := bus.Connect(t.Context(), bus.Config{URL: s.ClientURL(), Log: zerolog.New(&log).Level(zerolog.WarnLevel)})
		got, said := "", log.String()
		switch {
		case err != nil:
			got = "error"
			said = err.Error()
		case log.Len() > 0:
			got = "warning"
		}
		if got != want || want != "" && !strings.Contains(said, "max_payload") {
			t.Errorf("%d bytes: got %q (%s), want %q", size, got, said, want)
		}
		if err == nil {
			b.Close()
		}
		s.Shutdown()
		s.WaitForShutdown()
	}
}

// No stream grows without end.
func TestStreamsAreBounded(t *testing.T) {
	s := bustest.Start(t)
	s.Connect()
	js := bustest.JetStream(t, s.Plain())
	l := js.ListStreams(t.Context())
	n := 0
	for i := range l.Info() {
		n++
		if i.Config.MaxBytes <= 0 {
			t.Errorf("%s is not bounded", i.Config.Name)
		}
	}
	if l.Err() != nil || n != 3 {
		t.Errorf("%d streams, %v", n, l.Err())
	}
}
