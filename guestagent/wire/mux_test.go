package wire_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/test/bubble"
)

// pair is a host and a guest that serves.
func pair(t *testing.T, serve func(*wire.Conversation)) *wire.Conversation {
	t.Helper()
	host, guest := net.Pipe()
	var running sync.WaitGroup
	running.Go(func() { _ = wire.Guest(guest, serve) })
	c, err := wire.Host(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	running.Go(func() { _ = c.Run() })
	t.Cleanup(func() {
		c.Close()
		_ = host.Close()
		running.Wait()
	})
	return c
}

func ping(t *testing.T, c *wire.Conversation) {
	t.Helper()
	s, err := c.Open(wire.Request{Op: wire.OpPing})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, _, reply, err := s.Recv(t.Context()); reply == nil {
		t.Fatal(err)
	}
}

// TestFlowControl shows both ways that a sender stops at the window until the receiver takes, and that nothing is lost over it.
func TestFlowControl(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := pair(t, serve)
		s, err := c.Open(wire.Request{Op: "cat"})
		if err != nil {
			t.Fatal(err)
		}
		sent := 0
		var sending sync.WaitGroup
		sending.Go(func() {
			chunk := make([]byte, 10_000)
			for range 200 {
				if err := s.Send(t.Context(), wire.ChanData, chunk); err != nil {
					t.Error(err)
					return
				}
				sent += len(chunk)
			}
			if err := s.End(); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait() // nothing moves any more
		if sent >= 200*10_000 || sent < window {
			t.Errorf("%d bytes were sent with nobody who takes them back", sent)
		}
		ping(t, c) // another stream does
		got := 0
		for {
			_, b, reply, err := s.Recv(t.Context())
			if got += len(b); errors.Is(err, io.EOF) {
				if got != 200*10_000 || reply.Files != got {
					t.Errorf("%d bytes came back, reply %+v", got, reply)
				}
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		sending.Wait()
	})
}

// TestMessagesAreWhole sends messages among so much data that credit is short for them time and again: the receiver takes only when the
// sender cannot go on.
func TestMessagesAreWhole(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const rounds = 1000
		message := strings.Repeat("m", 300)
		c := pair(t, func(c *wire.Conversation) {
			s, err := c.Accept()
			if err != nil {
				return
			}
			for i := range rounds {
				if err := errors.Join(s.Send(context.Background(), wire.ChanMessage, []byte(message)), s.Send(context.Background(), wire.ChanData, make([]byte, 1+i*37%1000))); err != nil {
					t.Error(err)
				}
			}
			_ = s.Reply(wire.Reply{})
		})
		s, err := c.Open(wire.Request{Op: wire.OpGet})
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; ; {
			synctest.Wait()
			ch, b, _, err := s.Recv(t.Context())
			switch {
			case errors.Is(err, io.EOF) && n == rounds:
				return
			case err != nil:
				t.Fatalf("after %d messages: %v", n, err)
			case ch == wire.ChanMessage && string(b) != message:
				t.Fatalf("message of %d bytes", len(b))
			case ch == wire.ChanMessage:
				n++
			}
		}
	})
}

// TestMemoryOfUntakenData fills the windows of all streams with the frames that cost a receiver the most: of one byte each.
func TestMemoryOfUntakenData(t *testing.T) {
	const streams = 8
	c, p, _ := startHost(t)
	var open []*wire.Stream
	for range streams {
		s, err := c.Open(wire.Request{Op: "hold"})
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, s)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for n := range uint32(streams) {
		pair := string(rawFrame(n+1, tData, 2, "o")) + string(rawFrame(n+1, tData, 3, "e"))
		for range 64 {
			p.say([]byte(strings.Repeat(pair, window/2/64)))
		}
	}
	p.say(rawFrame(1, tReply, 0, "{}")) // has been read when this has: the next write waits for it
	p.say(rawFrame(2, tReply, 0, "{}"))
	runtime.GC()
	runtime.ReadMemStats(&after)
	if used := int64(after.HeapAlloc) - int64(before.HeapAlloc); used > streams*8*window {
		t.Errorf("%d bytes of windows take %d bytes of memory", streams*window, used)
	}
	for i := range window { // in order, and on their channels
		want := wire.ChanStdout + wire.Channel(i%2)
		if ch, b, _, err := open[0].Recv(t.Context()); ch != want || len(b) != 1 || err != nil {
			t.Fatalf("byte %d: channel %d, %q, %v", i, ch, b, err)
		}
	}
}

// TestStreamsBound opens as many streams as may be, and goes round with them: one that is over makes room for another at once.
func TestStreamsBound(t *testing.T) {
	c := pair(t, serve)
	var held []*wire.Stream
	for range 64 {
		s, err := c.Open(wire.Request{Op: "hold"})
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, s)
	}
	_, err := c.Open(wire.Request{Op: wire.OpPing})
	if e, ok := errors.AsType[*wire.Error](err); !ok || e.Kind != wire.ErrRequest {
		t.Errorf("one more gives %v", err)
	}
	for range 200 {
		held[0].Close()
		ping(t, c)
		s, err := c.Open(wire.Request{Op: "hold"})
		if err != nil {
			t.Fatal(err)
		}
		held = append(held[1:], s)
	}
}

// TestTooManyStreams is a host that does not count.
func TestTooManyStreams(t *testing.T) {
	ended := make(chan error, 1)
	p := greeted(t, func(c *wire.Conversation) {
		serve(c)
		ended <- c.Err()
	})
	for n := range uint32(65) {
		p.say(open(n+1, "hold"))
	}
	if err := <-ended; !errors.Is(err, wire.ErrProtocol) {
		t.Errorf("ended with %v", err)
	}
}

// TestOpenAndResetFlood opens and lets go without end: the guest neither counts what is over nor stops reading.
func TestOpenAndResetFlood(t *testing.T) {
	p := greeted(t, serve)
	const n = 900 // fewer than the test's peer has room for
	for id := uint32(1); id <= n; id++ {
		p.say(open(id, "hold"), rawFrame(id, tReset, 0, ""))
	}
	p.say(open(n+1, "ping"))
	p.expectReply(n + 1)
}

// TestReset shows what both ends see of a stream that one has given up.
func TestReset(t *testing.T) {
	t.Run("by the guest", func(t *testing.T) {
		c, p, _ := startHost(t)
		s, err := c.Open(wire.Request{Op: "hold"})
		if err != nil {
			t.Fatal(err)
		}
		p.say(rawFrame(1, tData, 2, "last"), rawFrame(1, tReset, 0, ""))
		if _, b, _, err := s.Recv(t.Context()); string(b) != "last" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		if _, _, _, err := s.Recv(t.Context()); !errors.Is(err, wire.ErrReset) {
			t.Errorf("receive: %v", err)
		}
		if err := s.Send(t.Context(), wire.ChanData, []byte("x")); !errors.Is(err, wire.ErrReset) {
			t.Errorf("send: %v", err)
		}
	})
	t.Run("by the host", func(t *testing.T) {
		gone := make(chan error, 1)
		c := pair(t, func(c *wire.Conversation) {
			s, err := c.Accept()
			if err != nil {
				return
			}
			<-s.Gone()
			gone <- s.Send(context.Background(), wire.ChanStdout, make([]byte, window+1)) // it would wait for credit
			serve(c)
		})
		s, err := c.Open(wire.Request{Op: "hold"})
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		s.Close()
		if err := <-gone; !errors.Is(err, wire.ErrReset) {
			t.Errorf("send: %v", err)
		}
		ping(t, c)
	})
	t.Run("frames that crossed it", func(t *testing.T) {
		c, p, _ := startHost(t)
		s, err := c.Open(wire.Request{Op: "hold"})
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		p.say(rawFrame(1, tData, 2, "late"), rawFrame(1, tCredit, 0, credit(100)), rawFrame(1, tReply, 0, "{}"))
		s, err = c.Open(wire.Request{Op: wire.OpPing})
		if err != nil {
			t.Fatal(err)
		}
		p.say(rawFrame(2, tReply, 0, `{"files":2}`))
		if _, _, reply, err := s.Recv(t.Context()); reply == nil || reply.Files != 2 {
			t.Errorf("%v, %v", reply, err)
		}
	})
}

// TestWaitersEnd shows that nothing waits beyond its context or the conversation.
func TestWaitersEnd(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := pair(t, serve)
		s, err := c.Open(wire.Request{Op: "hold"})
		if err != nil {
			t.Fatal(err)
		}
		cause := errors.New("cause")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, cause)
		defer cancel()
		if _, _, _, err := s.Recv(ctx); !errors.Is(err, cause) {
			t.Errorf("receive: %v", err)
		}
		if err := s.Send(ctx, wire.ChanData, make([]byte, window+1)); !errors.Is(err, cause) {
			t.Errorf("send: %v", err)
		}
		var waiting sync.WaitGroup
		waiting.Go(func() {
			if _, _, _, err := s.Recv(t.Context()); !errors.Is(err, wire.ErrClosed) {
				t.Errorf("receive: %v", err)
			}
		})
		waiting.Go(func() {
			if err := s.Send(t.Context(), wire.ChanData, []byte("x")); !errors.Is(err, wire.ErrClosed) {
				t.Errorf("send: %v", err)
			}
		})
		synctest.Wait()
		c.Close()
		waiting.Wait()
		<-c.Done()
		if _, err := c.Open(wire.Request{Op: wire.OpPing}); !errors.Is(err, wire.ErrClosed) {
			t.Errorf("open: %v", err)
		}
	})
}

// TestGuestThatDoesNotRead shows that whoever writes to it waits some seconds, and not for ever, even without a context.
func TestGuestThatDoesNotRead(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		host, guest := net.Pipe()
		defer guest.Close()
		go func() {
			b := make([]byte, 26)
			_, _ = io.ReadFull(guest, b)
			_, _ = guest.Write(answer(1, string(b[10:])))
		}()
		c, err := wire.Host(t.Context(), host)
		if err != nil {
			t.Fatal(err)
		}
		var running sync.WaitGroup
		running.Go(func() { _ = c.Run() })
		for range 2 {
			if _, err := c.Open(wire.Request{Op: wire.OpPing}); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("open: %v", err)
			}
		}
		<-c.Done()
		_ = host.Close()
		running.Wait()
	})
}

// TestGuestThatReadsSlowly is one that takes each frame just in time: a request in parts does not hold up its sender for each of them.
func TestGuestThatReadsSlowly(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		host, guest := net.Pipe()
		defer guest.Close()
		go func() {
			b := make([]byte, 26)
			_, _ = io.ReadFull(guest, b)
			_, _ = guest.Write(answer(1, string(b[10:])))
			part := make([]byte, maxPayload+12)
			for {
				if _, err := io.ReadFull(guest, part[:1]); err != nil {
					return
				}
				time.Sleep(4 * time.Second)
				if _, err := io.ReadFull(guest, part[1:]); err != nil {
					return
				}
			}
		}()
		c, err := wire.Host(t.Context(), host)
		if err != nil {
			t.Fatal(err)
		}
		var running sync.WaitGroup
		running.Go(func() { _ = c.Run() })
		began := time.Now()
		_, err = c.Open(wire.Request{Op: wire.OpExec, Exec: &wire.Exec{Argv: []string{strings.Repeat("x", wire.MaxRequest-1000)}}})
		if took := time.Since(began); !errors.Is(err, os.ErrDeadlineExceeded) || took > 15*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		_ = host.Close()
		running.Wait()
	})
}
