package wire_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/test/bubble"
)

// TestGuestFindsGreeting puts before a greeting what a broken conversation may have left.
func TestGuestFindsGreeting(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before []byte
	}{
		{"nothing", nil},
		{"zeros", make([]byte, flush)},
		{"the rest of a frame", append(rawFrame(3, tData, 0, "abc")[5:], open(4, "ping")...)},
		{"half a magic", []byte("PDKHO")},
		{"half a magic, with the whole one's beginning", []byte("PDKHOSTP")},
		{"the guest's own magic", answer(1, nonce2)},
		{"a megabyte", bytes.Repeat([]byte("PDK"), 350_000)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startGuest(t, serve)
			p.say(tt.before, greeting(1, 1, nonce1), open(1, "ping"))
			p.expectAnswer(1, nonce1)
			p.expectReply(1)
		})
	}
}

// TestGuestChoosesVersion shows the negotiation, and that a host with which there is no version in common does not end the guest.
func TestGuestChoosesVersion(t *testing.T) {
	for _, tt := range []struct{ least, most, want byte }{
		{1, 1, 1}, {0, 1, 1}, {1, 255, 1}, {2, 255, 0}, {0, 0, 0}, {3, 2, 0}, {255, 1, 0},
	} {
		p := startGuest(t, serve)
		p.say(greeting(tt.least, tt.most, nonce1))
		p.expectAnswer(tt.want, nonce1)
		if tt.want == 0 {
			p.say(open(1, "ping"), greeting(1, 1, nonce2))
			p.expectAnswer(1, nonce2)
		}
		p.say(open(1, "ping"))
		p.expectReply(1)
	}
}

// TestGreetingInsteadOfFrame shows that the same greeting again changes nothing, and another one ends all that ran.
func TestGreetingInsteadOfFrame(t *testing.T) {
	ended := make(chan error, 2)
	p := greeted(t, func(c *wire.Conversation) {
		serve(c)
		ended <- c.Err()
	})
	p.say(open(1, "cat"), rawFrame(1, tData, 0, "a"), greeting(1, 1, nonce1), greeting(1, 1, nonce1), rawFrame(1, tData, 0, "b"), rawFrame(1, tEnd, 0, ""))
	if r := p.expectReply(1); r.Files != 2 {
		t.Errorf("%d bytes came through", r.Files)
	}
	p.say(open(2, "cat"), open(3, "hold"), greeting(1, 1, nonce2))
	p.expectAnswer(1, nonce2)
	if err := <-ended; err == nil { // serve returns when its streams have ended
		t.Error("the first conversation has not ended")
	}
	p.say(open(1, "ping")) // streams are numbered from 1 again
	p.expectReply(1)
}

// TestHostVanishesMidFrame cuts a host off in every kind of place, without the byte stream's breaking, and greets as the next host does.
func TestHostVanishesMidFrame(t *testing.T) {
	largest := rawFrame(1, tData, 0, strings.Repeat("x", maxPayload))
	for _, tt := range []struct {
		name string
		left []byte
	}{
		{"between frames", nil},
		{"in a header", largest[:5]},
		{"after a header", largest[:12]},
		{"in a payload", largest[:1000]},
		{"before the last byte", largest[:len(largest)-1]},
		{"in a request", open(2, "ping")[:15]},
		{"in its greeting", greeting(1, 1, nonce1)[:9]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ended := make(chan struct{}, 10)
			p := greeted(t, func(c *wire.Conversation) {
				serve(c)
				ended <- struct{}{}
			})
			p.say(open(1, "hold"), tt.left)
			for range 4 {
				p.say(greeting(1, 1, nonce2))
			}
			p.say(make([]byte, flush), greeting(1, 1, nonce2))
			<-ended // what the first host had started is over
			p.say(open(1, "ping"))
			for h := p.hears(); h.Type != tReply; h = p.hears() {
				if !h.Answer || h.Nonce != nonce2 && tt.name != "in its greeting" { // whose rest, and the next, made another
					t.Errorf("%+v", h)
				}
			}
		})
	}
}

// fakeGuest gives the host's end of a pipe and plays the guest on the other.
func fakeGuest(t *testing.T, play func(net.Conn)) net.Conn {
	t.Helper()
	host, guest := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		play(guest)
	}()
	t.Cleanup(func() {
		_ = host.Close()
		_ = guest.Close()
		<-done
	})
	return host
}

// TestHostFindsAnswer puts before the answer what a guest may still have had to say to somebody else.
func TestHostFindsAnswer(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before []byte
	}{
		{"nothing", nil},
		{"frames", append(rawFrame(1, tData, 2, "output"), rawFrame(1, tReply, 0, "{}")...)},
		{"an answer to somebody else", answer(1, nonce2)},
		{"a refusal of somebody else", answer(0, nonce2)},
		{"half a magic", []byte("PDKGUESPDKGU")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := fakeGuest(t, func(c net.Conn) {
				b := make([]byte, 26)
				_, _ = io.ReadFull(c, b)
				if string(b[:8]) != "PDKHOST\x01" || b[8] != 1 || b[9] != 1 {
					t.Errorf("greeting %q", b)
				}
				_, _ = c.Write(append(append(tt.before, answer(1, string(b[10:]))...), "beyond"...)) // what comes after is the conversation's
			})
			if _, err := wire.Host(t.Context(), conn); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHostGreetsAgain is with a guest that hears nothing for two seconds.
func TestHostGreetsAgain(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var heard bytes.Buffer
		conn := fakeGuest(t, func(c net.Conn) {
			_, _ = io.CopyN(&heard, c, 4*26+flush+3*26) // up to the seventh greeting
			_, _ = c.Write(answer(1, string(heard.Bytes()[10:26])))
		})
		if _, err := wire.Host(t.Context(), conn); err != nil {
			t.Fatal(err)
		}
		g := string(heard.Bytes()[:26])
		if want := strings.Repeat(g, 4) + strings.Repeat("\x00", flush) + strings.Repeat(g, 3); heard.String() != want {
			t.Error("not four greetings, zeros, and the same greeting again")
		}
	})
}

// TestHostGivesUp shows that no guest keeps a host beyond its context, and that nothing is left behind (TestMain).
func TestHostGivesUp(t *testing.T) {
	discard := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	for _, tt := range []struct {
		name string
		play func(net.Conn)
		want error
	}{
		{"silent", discard, context.DeadlineExceeded},
		{"does not read", func(net.Conn) {}, context.DeadlineExceeded},
		{"speaks without end", func(c net.Conn) {
			go discard(c)
			for _, err := c.Write(nil); err == nil; _, err = c.Write(bytes.Repeat(answer(1, nonce1), 1000)) { //nolint:revive // until it is closed
				time.Sleep(time.Millisecond) // of the bubble: it lets time pass
			}
		}, context.DeadlineExceeded},
		{"no version in common", func(c net.Conn) {
			b := make([]byte, 26)
			_, _ = io.ReadFull(c, b)
			_, _ = c.Write(answer(0, string(b[10:])))
		}, wire.ErrProtocol},
		{"a version that nobody offered", func(c net.Conn) {
			b := make([]byte, 26)
			_, _ = io.ReadFull(c, b)
			_, _ = c.Write(answer(2, string(b[10:])))
		}, wire.ErrProtocol},
		{"hangs up", func(c net.Conn) {
			_, _ = io.CopyN(io.Discard, c, 30)
			_ = c.Close()
		}, io.ErrClosedPipe},
		{"hangs up in its answer", func(c net.Conn) {
			b := make([]byte, 26)
			_, _ = io.ReadFull(c, b)
			_, _ = c.Write(answer(1, string(b[10:]))[:20])
			_ = c.Close()
		}, io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if _, err := wire.Host(ctx, fakeGuest(t, tt.play)); !errors.Is(err, tt.want) {
					t.Errorf("error %v", err)
				}
			})
		})
	}
}
