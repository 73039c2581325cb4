package wire_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// A guest cannot have its host read for ever what says nothing: each such frame is one that an agent may have had on its way, or the last.
func TestFloods(t *testing.T) {
	for _, tt := range []struct {
		name  string
		close bool // the host has let the stream go
		says  func(own []byte) []byte
	}{
		{"credit of nothing", false, func([]byte) []byte { return rawFrame(1, tCredit, 0, credit(0)) }},
		{"resets", false, func([]byte) []byte { return rawFrame(1, tReset, 0, "") }},
		{"answers", false, func(own []byte) []byte { return answer(1, string(own)) }},
		{"data of a stream that is over", true, func([]byte) []byte { return rawFrame(1, tData, 2, "x") }},
		{"no data of a stream that is over", true, func([]byte) []byte { return rawFrame(1, tData, 2, "") }},
		{"credit of a stream that is over", true, func([]byte) []byte { return rawFrame(1, tCredit, 0, credit(1)) }},
		{"credit of nothing of a stream that is over", true, func([]byte) []byte { return rawFrame(1, tCredit, 0, credit(0)) }},
		{"credit that is none of a stream that is over", true, func([]byte) []byte { return rawFrame(1, tCredit, 0, "") }},
		{"replies of a stream that is over", true, func([]byte) []byte { return rawFrame(1, tReply, 0, "{}") }},
		{"resets of a stream that is over", true, func([]byte) []byte { return rawFrame(1, tReset, 0, "") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, p, ran := startHost(t)
			s, err := c.Open(wire.Request{Op: "hold"})
			if err != nil {
				t.Fatal(err)
			}
			if tt.close {
				s.Close()
			}
			go func() { // nobody reads any more
				<-c.Done()
				_ = p.conn.Close()
			}()
			many := bytes.Repeat(tt.says(p.own), 1024)
			for range 3 * window / 1024 { // more than twice a window
				if _, err := p.conn.Write(many); err == nil {
					continue
				}
				if err := <-ran; !errors.Is(err, wire.ErrProtocol) {
					t.Error(err)
				}
				return
			}
			t.Error("the host still reads")
		})
	}
}

// What an agent may have had on its way when its host let a stream go is passed over, as often as that happens.
func TestLateFramesArePassedOver(t *testing.T) {
	c, p, _ := startHost(t)
	for n := range uint32(5) {
		s, err := c.Open(wire.Request{Op: "hold"})
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		pairs := bytes.Repeat(append(rawFrame(n+1, tData, 2, "x"), rawFrame(n+1, tCredit, 0, credit(1))...), 1024)
		for range window / 1024 {
			p.say(pairs)
		}
		p.say(rawFrame(n+1, tReset, 0, ""))
	}
	s, err := c.Open(wire.Request{Op: wire.OpPing})
	if err != nil {
		t.Fatal(err)
	}
	p.say(rawFrame(6, tReply, 0, "{}"))
	if _, _, reply, err := s.Recv(t.Context()); reply == nil {
		t.Error(err)
	}
}
