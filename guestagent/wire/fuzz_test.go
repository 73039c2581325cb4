package wire_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// seeds are beginnings of what may come from the other end once a conversation has begun: all that the tables of this package hold.
func seeds() [][]byte {
	all := [][]byte{
		nil, make([]byte, 40), data(window), data(window + 1),
		rawFrame(1, tReply, 0, `{"files":1}`), rawFrame(1, tReply, 0, `{"exit":{"code":0},"error":null}`), rawFrame(1, tReply, 0, `[]`),
		append(rawFrame(1, tData, 2, "out"), rawFrame(1, tReset, 0, "")...),
		append(open(1, "cat"), append(rawFrame(1, tData, 0, "in"), rawFrame(1, tEnd, 0, "")...)...),
		append(open(1, "hold"), greeting(1, 1, nonce2)...), append(greeting(0, 0, nonce2), greeting(1, 1, nonce1)...),
		rawFrame(1, tOpen, 0, strings.Repeat(`{"exec":`, 8000)), // deeper than JSON may be
		bytes.Repeat(open(1, "ping"), 2), answer(1, nonce1)[:20],
	}
	for _, v := range violations {
		all = append(all, v.bytes)
	}
	return all
}

// FuzzGuestSide is a host that says anything: the guest neither panics nor hangs, and leaves nothing running.
func FuzzGuestSide(f *testing.F) {
	for _, s := range seeds() {
		f.Add(append(greeting(1, 1, nonce1), s...))
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		err := wire.Guest(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(b), io.Discard}, serve)
		if err == nil {
			t.Error("ended without an error")
		}
	})
}

// hostile is a connection to a guest that answers the greeting, then says what it was made with, and ends.
type hostile struct {
	net.Conn
	says    []byte
	once    sync.Once
	greeted chan struct{}
	r       io.Reader
}

func newHostile(says []byte) *hostile { return &hostile{says: says, greeted: make(chan struct{})} }

func (h *hostile) Write(b []byte) (int, error) {
	h.once.Do(func() {
		h.r = io.MultiReader(bytes.NewReader(answer(1, string(b[10:]))), bytes.NewReader(h.says))
		close(h.greeted)
	})
	return len(b), nil
}

func (h *hostile) Read(b []byte) (int, error) {
	<-h.greeted
	return h.r.Read(b)
}

func (*hostile) SetDeadline(time.Time) error      { return nil }
func (*hostile) SetReadDeadline(time.Time) error  { return nil }
func (*hostile) SetWriteDeadline(time.Time) error { return nil }

// FuzzHostSide is a guest that says anything on two streams, one of which is read and one is not.
func FuzzHostSide(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := wire.Host(context.Background(), newHostile(b))
		if err != nil {
			t.Fatal(err)
		}
		read, err := c.Open(wire.Request{Op: "cat"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = c.Open(wire.Request{Op: "hold"}); err != nil {
			t.Fatal(err)
		}
		var running sync.WaitGroup
		running.Go(func() {
			if c.Run() == nil {
				t.Error("ended without an error")
			}
		})
		running.Go(func() {
			_ = read.Send(context.Background(), wire.ChanData, make([]byte, 2*window))
		})
		total := 0
		for {
			_, data, _, err := read.Recv(context.Background())
			if err != nil {
				break
			}
			if len(data) == 0 {
				t.Fatal("data without bytes")
			}
			total += len(data)
		}
		if total > len(b) {
			t.Errorf("%d bytes came out of %d", total, len(b))
		}
		read.Close()
		running.Wait()
	})
}
