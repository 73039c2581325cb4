package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// ErrReset is why a stream ended that the other end gave up.
var ErrReset = errors.New("stream reset")

// Stream is one operation: a request, data both ways, a reply. One goroutine may receive; several may send.
type Stream struct {
	c       *Conversation
	id      uint32
	request Request

	mu       sync.Mutex
	in       inbox
	eaten    int    // bytes received that the other end has not been given credit for again
	inEnded  bool   // nothing more comes
	last     []byte // the reply, on the host's side
	reset    bool
	gone     chan struct{} // closed with reset
	credit   int           // bytes of data that may be sent
	readable chan struct{}
	writable chan struct{}
}

func newStream(c *Conversation, id uint32) *Stream {
	return &Stream{c: c, id: id, credit: window, gone: make(chan struct{}), readable: make(chan struct{}, 1), writable: make(chan struct{}, 1)}
}

// Request is what the stream was opened with.
func (s *Stream) Request() *Request { return &s.request }

// Gone is closed when the other end has given the stream up.
func (s *Stream) Gone() <-chan struct{} { return s.gone }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// receive takes a frame from the reading goroutine; it never waits.
func (s *Stream) receive(f frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch f.typ {
	case typeCredit:
		n, err := f.credit()
		if err != nil {
			return err
		}
		if s.credit+n > window {
			return violation("credit beyond the window")
		}
		s.credit += n
		signal(s.writable)
		return nil
	case typeReset:
		if s.reset {
			return violation("two resets")
		}
		s.reset = true
		close(s.gone)
		signal(s.writable)
	case typeData:
		switch {
		case s.inEnded:
			return violation("data after the end")
		case len(f.payload) == 0:
			return violation("data without bytes")
		case s.in.size+s.eaten+len(f.payload) > window:
			return violation("more data than credit")
		}
		s.in.put(f.channel, f.payload)
	case typeEnd, typeReply:
		if s.inEnded {
			return violation("two ends")
		}
		if (f.typ == typeReply) != s.c.host {
			return violation("an end that is the other side's")
		}
		s.inEnded = true
		s.last = append(s.last, f.payload...)
	}
	signal(s.readable)
	return nil
}

// Recv gives the next data that came: its channel and bytes, which are the caller's. At the end it gives io.EOF, on the host's side
// with the reply.
func (s *Stream) Recv(ctx context.Context) (ch Channel, b []byte, reply *Reply, err error) {
	for {
		ch, b, err := s.next()
		switch {
		case b != nil:
			s.giveCredit()
			return ch, b, nil, nil
		case errors.Is(err, io.EOF) && s.c.host:
			reply := new(Reply)
			if err := json.Unmarshal(s.last, reply); err != nil {
				return 0, nil, nil, violation("reply: %v", err)
			}
			return 0, nil, reply, io.EOF
		case err != nil:
			return 0, nil, nil, err
		}
		select {
		case <-s.readable:
		case <-ctx.Done():
			return 0, nil, nil, context.Cause(ctx)
		case <-s.c.done:
			if s.waiting() { // it came before the end
				continue
			}
			return 0, nil, nil, s.c.Err()
		}
	}
}

// next takes the data that came first, or tells how the stream ended; neither if nothing is there.
func (s *Stream) next() (Channel, []byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.in.empty():
		ch, b := s.in.take()
		s.eaten += len(b)
		return ch, b, nil
	case s.inEnded:
		return 0, nil, io.EOF
	case s.reset:
		return 0, nil, ErrReset
	}
	return 0, nil, nil
}

// waiting tells whether there is something to receive.
func (s *Stream) waiting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.in.empty() || s.inEnded || s.reset
}

// giveCredit lets the other end send as much again as has been taken, in large pieces.
func (s *Stream) giveCredit() {
	s.mu.Lock()
	n := s.eaten
	if n < window/4 || s.inEnded {
		s.mu.Unlock()
		return
	}
	s.eaten = 0
	s.mu.Unlock()
	_ = s.c.write(frame{stream: s.id, typ: typeCredit, payload: creditPayload(n)}) // a broken connection shows in the next Recv
}

// Send sends data on a channel; it waits for credit. A message of at most MaxPayload bytes arrives as one; other data may be cut
// anywhere. A stream that carries messages has one sender.
func (s *Stream) Send(ctx context.Context, ch Channel, b []byte) error {
	for len(b) > 0 {
		n, err := s.SendSome(ctx, ch, b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// SendSome sends as much of b as fits one frame and as there is credit for, and gives how much: something, or there is an error.
func (s *Stream) SendSome(ctx context.Context, ch Channel, b []byte) (int, error) {
	want := min(len(b), MaxPayload)
	least := 1
	if ch == ChanMessage {
		least = want
	}
	n, err := s.takeCredit(ctx, least, want)
	if err != nil {
		return 0, err
	}
	return n, s.c.write(frame{stream: s.id, typ: typeData, channel: ch, payload: b[:n]})
}

// takeCredit takes what there is of want, once it is at least least.
func (s *Stream) takeCredit(ctx context.Context, least, want int) (int, error) {
	for {
		s.mu.Lock()
		n, reset := min(want, s.credit), s.reset
		if n < least {
			n = 0
		}
		s.credit -= n
		more := s.credit > 0
		s.mu.Unlock()
		switch {
		case reset:
			signal(s.writable) // for the other senders
			return 0, ErrReset
		case n > 0:
			if more {
				signal(s.writable)
			}
			return n, nil
		}
		select {
		case <-s.writable:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-s.c.done:
			return 0, s.c.Err()
		}
	}
}

// End says that no more data is sent, from the host's side.
func (s *Stream) End() error { return s.c.write(frame{stream: s.id, typ: typeEnd}) }

// Reply answers the request and ends the stream, from the guest's side.
func (s *Stream) Reply(r Reply) error {
	s.forget() // before the host can open another in its place
	b, err := json.Marshal(r)
	if err == nil && len(b) > MaxPayload {
		err = fmt.Errorf("reply of %d bytes", len(b))
	}
	if err != nil {
		return errors.Join(err, s.c.write(frame{stream: s.id, typ: typeReset}))
	}
	return s.c.write(frame{stream: s.id, typ: typeReply, payload: b})
}

// Close lets the stream go; where the other end is not done with it, it learns that nobody listens.
func (s *Stream) Close() {
	if !s.forget() {
		return
	}
	s.mu.Lock()
	over := s.inEnded && s.c.host || s.reset
	s.mu.Unlock()
	if !over {
		_ = s.c.write(frame{stream: s.id, typ: typeReset})
	}
}

// forget takes the stream out of the conversation and tells whether it was in.
func (s *Stream) forget() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	_, in := s.c.streams[s.id]
	if in {
		s.c.late += lateMost
	}
	delete(s.c.streams, s.id)
	return in
}
