package wire_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// TestFramesAsDocumented holds what goes out against the documented bytes, and what comes in too.
func TestFramesAsDocumented(t *testing.T) {
	c, p, _ := startHost(t)
	s, err := c.Open(wire.Request{Op: wire.OpPing})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(t.Context(), wire.ChanData, []byte("stdin")); err != nil {
		t.Fatal(err)
	}
	if err := s.End(); err != nil {
		t.Fatal(err)
	}
	got := []heard{p.hears(), p.hears(), p.hears()}
	want := []heard{
		{Stream: 1, Type: tOpen, Payload: `{"op":"ping"}`},
		{Stream: 1, Type: tData, Payload: "stdin"},
		{Stream: 1, Type: tEnd},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(heard{})); d != "" {
		t.Errorf("sent (-want +got):\n%s", d)
	}
	p.say(rawFrame(1, tData, 2, "out"), rawFrame(1, tData, 3, "err"), rawFrame(1, tReply, 0, `{"files":3}`))
	for _, want := range []struct {
		ch   wire.Channel
		data string
	}{{wire.ChanStdout, "out"}, {wire.ChanStderr, "err"}} {
		if ch, b, _, err := s.Recv(t.Context()); ch != want.ch || string(b) != want.data || err != nil {
			t.Errorf("channel %d: %q, %v", ch, b, err)
		}
	}
	if _, _, reply, err := s.Recv(t.Context()); !errors.Is(err, io.EOF) || reply == nil || reply.Files != 3 {
		t.Errorf("reply %+v, %v", reply, err)
	}
}

// violations that both ends must answer by ending the conversation; stream 1 is open.
var violations = []struct {
	name  string
	bytes []byte
}{
	{"a byte too long", rawHeader(maxPayload+1, 1, tData, 0)},
	{"4 GiB", rawHeader(1<<32-1, 1, tData, 0)},
	{"type 0", rawFrame(1, 0, 0, "")},
	{"type 7", rawFrame(1, 7, 0, "")},
	{"channel 4", rawFrame(1, tData, 4, "x")},
	{"reserved bytes", append(rawHeader(0, 1, tEnd, 0)[:10], 0, 1)},
	{"stream 0", rawFrame(0, tData, 0, "x")},
	{"a stream that nobody opened", rawFrame(2, tData, 0, "x")},
	{"data without bytes", rawFrame(1, tData, 0, "")},
	{"end with bytes", rawFrame(1, tEnd, 0, "x")},
	{"reset with bytes", rawFrame(1, tReset, 0, "x")},
	{"credit of three bytes", rawFrame(1, tCredit, 0, "abc")},
	{"credit that nobody used", rawFrame(1, tCredit, 0, credit(1))},
	{"credit of 4 GiB", rawFrame(1, tCredit, 0, credit(1<<32-1))},
	{"more data than credit", data(window + 1)},
}

// data is so much of it on stream 1.
func data(n int) []byte {
	var b []byte
	for n > 0 {
		m := min(n, maxPayload)
		b = append(b, rawFrame(1, tData, 0, strings.Repeat("d", m))...)
		n -= m
	}
	return b
}

func TestGuestEndsConversationOnViolation(t *testing.T) {
	for _, tt := range append(violations, []struct {
		name  string
		bytes []byte
	}{
		{"a reply from the host", rawFrame(1, tReply, 0, "{}")},
		{"data after the end", append(rawFrame(1, tEnd, 0, ""), rawFrame(1, tData, 0, "x")...)},
		{"two ends", append(rawFrame(1, tEnd, 0, ""), rawFrame(1, tEnd, 0, "")...)},
		{"a stream opened twice", open(1, "ping")},
		{"a request that is no JSON", rawFrame(2, tOpen, 0, "{")},
		{"an answer from the host", answer(1, nonce1)},
		{"a frame between a request's parts", append(rawFrame(2, tPart, 0, "{"), rawFrame(1, tData, 0, "x")...)},
		{"parts of two requests", append(rawFrame(2, tPart, 0, "{"), rawFrame(3, tPart, 0, "{")...)},
		{"a part without bytes", rawFrame(2, tPart, 0, "")},
		{"a request without end", bytes.Repeat(rawFrame(2, tPart, 0, strings.Repeat(" ", maxPayload)), wire.MaxRequest/maxPayload+1)},
		{"a request whose last part is too much", append(bytes.Repeat(rawFrame(2, tPart, 0, strings.Repeat(" ", maxPayload)), wire.MaxRequest/maxPayload), rawFrame(2, tOpen, 0, "{}")...)},
	}...) {
		t.Run(tt.name, func(t *testing.T) {
			ended := make(chan error, 2)
			p := greeted(t, func(c *wire.Conversation) {
				serve(c)
				ended <- c.Err()
			})
			p.say(open(1, "hold"), tt.bytes)
			if err := <-ended; !errors.Is(err, wire.ErrProtocol) {
				t.Errorf("ended with %v", err)
			}
			p.say(greeting(1, 1, nonce2), open(1, "ping")) // and it waits for the next
			p.expectAnswer(1, nonce2)
			p.expectReply(1)
		})
	}
}

func TestHostEndsConversationOnViolation(t *testing.T) {
	for _, tt := range append(violations, []struct {
		name  string
		bytes []byte
	}{
		{"a guest that opens", open(2, "ping")},
		{"a guest that begins to open", rawFrame(2, tPart, 0, "{")},
		{"an end from the guest", rawFrame(1, tEnd, 0, "")},
		{"two replies", append(rawFrame(1, tReply, 0, "{}"), rawFrame(1, tReply, 0, "{}")...)},
		{"data after the reply", append(rawFrame(1, tReply, 0, "{}"), rawFrame(1, tData, 2, "x")...)},
		{"a greeting from the guest", greeting(1, 1, nonce1)},
		{"an answer to another", answer(1, nonce1)},
	}...) {
		t.Run(tt.name, func(t *testing.T) {
			c, p, ran := startHost(t)
			if _, err := c.Open(wire.Request{Op: "hold"}); err != nil {
				t.Fatal(err)
			}
			p.say(tt.bytes)
			if err := <-ran; !errors.Is(err, wire.ErrProtocol) {
				t.Errorf("ended with %v", err)
			}
			if _, err := c.Open(wire.Request{Op: wire.OpPing}); !errors.Is(err, wire.ErrProtocol) {
				t.Errorf("open gives %v", err)
			}
		})
	}
}

// TestCutFrame cuts a conversation's bytes at every place: nothing hangs, and what came whole before the cut is not lost.
func TestCutFrame(t *testing.T) {
	whole := append(rawFrame(1, tData, 2, "output"), rawFrame(1, tReply, 0, `{"files":1}`)...)
	for cut := range len(whole) {
		c, p, ran := startHost(t)
		s, err := c.Open(wire.Request{Op: "hold"})
		if err != nil {
			t.Fatal(err)
		}
		p.say(whole[:cut])
		_ = p.conn.Close()
		if err := <-ran; !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", cut, err)
		}
		_, b, reply, err := s.Recv(t.Context())
		if gotData := string(b) == "output"; gotData != (cut >= 18) || !gotData && (err == nil || reply != nil) {
			t.Errorf("cut at %d: %q, %v, %v", cut, b, reply, err)
		}
	}
}

// TestRequestTooLarge shows that a request is refused on the host, before anything of it is sent.
func TestRequestTooLarge(t *testing.T) {
	c, p, _ := startHost(t)
	_, err := c.Open(wire.Request{Op: wire.OpExec, Exec: &wire.Exec{Argv: []string{strings.Repeat("x", wire.MaxRequest)}}})
	if e, ok := errors.AsType[*wire.Error](err); !ok || e.Kind != wire.ErrTooLarge {
		t.Errorf("error %v", err)
	}
	if _, err := c.Open(wire.Request{Op: wire.OpPing}); err != nil {
		t.Fatal(err)
	}
	if h := p.hears(); h.Type != tOpen || h.Payload != `{"op":"ping"}` {
		t.Errorf("%+v", h)
	}
}

// TestLargeRequest shows that a request larger than a frame crosses in parts, with nothing between them.
func TestLargeRequest(t *testing.T) {
	c, p, _ := startHost(t)
	sent := wire.Request{Op: wire.OpExec, Exec: &wire.Exec{Argv: []string{strings.Repeat("x", 3*maxPayload)}}}
	if _, err := c.Open(sent); err != nil {
		t.Fatal(err)
	}
	var body strings.Builder
	for {
		h := p.hears()
		if h.Stream != 1 || h.Type != tPart && h.Type != tOpen {
			t.Fatalf("frame %d of stream %d", h.Type, h.Stream)
		}
		body.WriteString(h.Payload)
		if h.Type == tOpen {
			break
		}
	}
	// The same bytes, said to a guest.
	got := make(chan wire.Request, 1)
	g := greeted(t, func(c *wire.Conversation) {
		s, err := c.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		got <- *s.Request()
		_ = s.Reply(wire.Reply{})
		<-c.Done()
	})
	for b := body.String(); ; b = b[maxPayload:] {
		if len(b) <= maxPayload {
			g.say(rawFrame(1, tOpen, 0, b))
			break
		}
		g.say(rawFrame(1, tPart, 0, b[:maxPayload]))
	}
	if d := cmp.Diff(sent, <-got); d != "" {
		t.Error(d)
	}
	g.expectReply(1)
}

// TestReplyTooLarge shows that a reply that fits no frame fails its stream, and only that.
func TestReplyTooLarge(t *testing.T) {
	p := greeted(t, func(c *wire.Conversation) {
		s, err := c.Accept()
		if err != nil {
			return
		}
		if err := s.Reply(wire.Reply{Error: &wire.Error{Message: strings.Repeat("x", maxPayload)}}); err == nil {
			t.Error("sent")
		}
		serve(c)
	})
	p.say(open(1, "ping"))
	if h := p.hears(); h.Type != tReset || h.Stream != 1 {
		t.Errorf("%+v", h)
	}
	p.say(open(2, "ping"))
	p.expectReply(2)
}
