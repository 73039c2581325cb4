package wire_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/test/leak"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

// What follows speaks the protocol from docs/agent-protocol.md, without the package's own code, so that both can be held against it.

const (
	tOpen = 1 + iota
	tData
	tCredit
	tEnd
	tReply
	tReset
	tPart
)

const (
	window     = 256 << 10
	maxPayload = 65_536
	flush      = 65_548
)

func rawHeader(length, stream uint32, typ, channel byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, length)
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, typ, channel, 0, 0)
}

func rawFrame(stream uint32, typ, channel byte, payload string) []byte {
	return append(rawHeader(uint32(len(payload)), stream, typ, channel), payload...)
}

func open(stream uint32, op string) []byte { return rawFrame(stream, tOpen, 0, `{"op":"`+op+`"}`) }

func credit(n uint32) string { return string(binary.BigEndian.AppendUint32(nil, n)) }

const nonce1, nonce2 = "0123456789abcdef", "fedcba9876543210"

func greeting(least, most byte, nonce string) []byte {
	return append(append([]byte("PDKHOST\x01"), least, most), nonce...)
}

func answer(version byte, nonce string) []byte {
	return append(append([]byte("PDKGUEST"), version), nonce...)
}

// heard is what a peer has read: an answer, or a frame.
type heard struct {
	Answer     bool
	Version    byte
	Nonce      string
	Stream     uint32
	Type, Chan byte
	Payload    string
}

// peer is one end of the protocol, spoken by hand.
type peer struct {
	t    *testing.T
	own  []byte // what names the conversation, where the test is the guest
	conn net.Conn
	in   chan heard // closed at the stream's end; has room for all that a test makes the other end say
}

func newPeer(t *testing.T, conn net.Conn) *peer {
	p := &peer{t: t, conn: conn, in: make(chan heard, 4096)}
	r := bufio.NewReader(conn)
	go func() {
		defer close(p.in)
		for {
			h, err := hear(r)
			if err != nil {
				return
			}
			p.in <- h
		}
	}()
	return p
}

func hear(r io.Reader) (heard, error) {
	var b [12]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return heard{}, err
	}
	if string(b[:8]) == "PDKGUEST" {
		rest := make([]byte, 13)
		_, err := io.ReadFull(r, rest)
		return heard{Answer: true, Version: b[8], Nonce: string(b[9:]) + string(rest)}, err
	}
	payload := make([]byte, binary.BigEndian.Uint32(b[:]))
	_, err := io.ReadFull(r, payload)
	return heard{Stream: binary.BigEndian.Uint32(b[4:]), Type: b[8], Chan: b[9], Payload: string(payload)}, err
}

// say writes; an other end that does not read is an error of the test.
func (p *peer) say(messages ...[]byte) {
	p.t.Helper()
	for _, m := range messages {
		if _, err := p.conn.Write(m); err != nil {
			p.t.Fatalf("write: %v", err)
		}
	}
}

// hears gives what the other end says next.
func (p *peer) hears() heard {
	p.t.Helper()
	h, ok := <-p.in
	if !ok {
		p.t.Fatal("the other end has closed")
	}
	return h
}

// expectAnswer passes over frames of what was before.
func (p *peer) expectAnswer(version byte, nonce string) {
	p.t.Helper()
	for {
		if h := p.hears(); h.Answer {
			if h.Version != version || h.Nonce != nonce {
				p.t.Errorf("answer %d to %q", h.Version, h.Nonce)
			}
			return
		}
	}
}

// expectReply passes over data and credit.
func (p *peer) expectReply(stream uint32) wire.Reply {
	p.t.Helper()
	for {
		switch h := p.hears(); {
		case h.Stream == stream && h.Type == tReply:
			var r wire.Reply
			if err := json.Unmarshal([]byte(h.Payload), &r); err != nil {
				p.t.Fatal(err)
			}
			return r
		case h.Type != tData && h.Type != tCredit:
			p.t.Fatalf("%+v", h)
		}
	}
}

// startGuest serves a guest; the test speaks to it by hand.
func startGuest(t *testing.T, serve func(*wire.Conversation)) *peer {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = wire.Guest(theirs, serve)
	}()
	p := newPeer(t, ours)
	t.Cleanup(func() {
		_ = ours.Close()
		<-done
		for range p.in { //nolint:revive // until it is closed
		}
	})
	return p
}

// greeted is a guest that has answered.
func greeted(t *testing.T, serve func(*wire.Conversation)) *peer {
	t.Helper()
	p := startGuest(t, serve)
	p.say(greeting(1, 1, nonce1))
	p.expectAnswer(1, nonce1)
	return p
}

// startHost begins a conversation with a guest that the test plays. The channel gives why it ended.
func startHost(t *testing.T) (*wire.Conversation, *peer, <-chan error) {
	t.Helper()
	host, guest := net.Pipe()
	own := make(chan []byte, 1)
	go func() {
		b := make([]byte, 26)
		_, _ = io.ReadFull(guest, b)
		own <- b[10:]
		_, _ = guest.Write(answer(1, string(b[10:])))
	}()
	c, err := wire.Host(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, guest)
	p.own = <-own
	ran := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ran <- c.Run()
	}()
	t.Cleanup(func() {
		c.Close()
		_ = host.Close()
		<-done
		_ = guest.Close()
		for range p.in { //nolint:revive // until it is closed
		}
	})
	return c, p, ran
}

// serve answers by the request's op: "ping" at once; "cat" when the data has ended, which it has sent back on stdout by then; "hold"
// takes nothing and answers never, until the stream or the conversation is gone.
func serve(c *wire.Conversation) {
	ctx, cancel := context.WithCancel(context.Background())
	running := make(chan struct{}, 1000)
	n := 0
	for {
		s, err := c.Accept()
		if err != nil {
			break
		}
		n++
		go func() {
			defer func() { running <- struct{}{} }()
			defer s.Close()
			switch s.Request().Op {
			case wire.OpPing:
				_ = s.Reply(wire.Reply{})
			case "cat":
				cat(ctx, s)
			case "hold":
				select {
				case <-s.Gone():
				case <-c.Done():
				}
			}
		}()
	}
	cancel()
	for range n {
		<-running
	}
}

func cat(ctx context.Context, s *wire.Stream) {
	files := 0
	for {
		_, b, _, err := s.Recv(ctx)
		if errors.Is(err, io.EOF) {
			_ = s.Reply(wire.Reply{Files: files})
			return
		}
		if err != nil {
			return
		}
		files += len(b)
		if err := s.Send(ctx, wire.ChanStdout, b); err != nil {
			return
		}
	}
}
