package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// window is how many bytes of data may be on their way in one direction of a stream.
	window = 256 << 10
	// maxStreams is how many streams may be open at once.
	maxStreams = 64
	// takeWithin is how long an agent, which always reads, may take over a frame, under an emulated processor and on a host that has more
	// machines than it can run. One that takes longer has gone, or wants those who write to it to wait for ever.
	takeWithin = 5 * time.Second
	// requestWithin is the same of a request that has gone in parts, but for its last: whoever began the request is held until it is sent, and
	// nobody else is heard meanwhile.
	requestWithin = 10 * time.Second
)

// ErrClosed is why a stream of a closed conversation ended.
var ErrClosed = errors.New("conversation closed")

// Conversation is the frames between a host and a guest over one byte stream. Its methods may be called concurrently.
type Conversation struct {
	r    *reader
	host bool
	own  nonce // names this conversation

	partOf uint32 // the stream whose request has begun; 0 for none. The reader's, as parts
	parts  []byte

	wmu  sync.Mutex // serialises writes
	w    io.Writer
	wbuf []byte

	answers int // how often the guest may repeat its answer: as often as the host has its greeting. The reader's

	mu      sync.Mutex
	streams map[uint32]*Stream
	late    int // what may still come for streams that this end has let go
	nextID  uint32
	err     error
	done    chan struct{}
	// requests holds the streams that the host opened, for Accept.
	requests chan *Stream
}

func newConversation(w io.Writer, r *reader, own nonce, host bool) *Conversation {
	return &Conversation{
		r: r, host: host, own: own, w: w,
		streams: map[uint32]*Stream{}, done: make(chan struct{}), requests: make(chan *Stream, maxStreams),
	}
}

// Host begins a conversation with the agent at the other end of conn. ctx bounds the greeting only. Run must be called, and reads
// until the conversation ends. An agent that does not take what is written to it ends the conversation after some seconds: nothing
// that writes waits longer.
func Host(ctx context.Context, conn net.Conn) (*Conversation, error) {
	r, own, again, err := greet(ctx, conn)
	if err != nil {
		return nil, err
	}
	c := newConversation(punctual{conn}, r, own, true)
	c.answers = again
	return c, nil
}

// punctual writes to a guest that may never read.
type punctual struct{ net.Conn }

// Write implements io.Writer.
func (p punctual) Write(b []byte) (int, error) {
	if err := p.SetWriteDeadline(time.Now().Add(takeWithin)); err != nil {
		return 0, err
	}
	return p.Conn.Write(b)
}

// Guest holds one conversation after the other with the hosts at the other end of rw; each is given to serve, which returns when the
// conversation is done. It returns when reading or writing fails.
func Guest(rw io.ReadWriter, serve func(*Conversation)) error {
	r := newReader(rw)
	g, err := awaitGreeting(r)
	for err == nil {
		if aerr := answer(rw, g); aerr != nil {
			if !errors.Is(aerr, ErrProtocol) {
				return aerr
			}
			g, err = awaitGreeting(r)
			continue
		}
		c := newConversation(rw, r, g.nonce, false)
		var serving sync.WaitGroup
		serving.Go(func() { serve(c) })
		err = c.Run()
		serving.Wait()
		var again *greetingError
		switch {
		case errors.As(err, &again):
			g, err = again.greeting, nil
		case errors.Is(err, ErrProtocol):
			g, err = awaitGreeting(r)
		}
	}
	return err
}

// Run reads frames and hands them to their streams until the conversation ends, and tells why; it never waits for anything but the
// other end. Whoever began the conversation calls it once.
func (c *Conversation) Run() error {
	for {
		f, err := readFrame(c.r)
		if err != nil && c.repeated(err) {
			continue
		}
		if err == nil {
			err = c.dispatch(f)
		}
		if err != nil {
			c.end(err)
			return err
		}
	}
}

// repeated tells whether what was read is this conversation's own greeting or answer once more.
func (c *Conversation) repeated(err error) bool {
	if again, ok := errors.AsType[*greetingError](err); ok && !c.host {
		return again.nonce == c.own
	}
	if again, ok := errors.AsType[*answerError](err); ok && c.host && c.answers > 0 {
		c.answers--
		return again.nonce == c.own
	}
	return false
}

// Done is closed when the conversation has ended; Err then tells why.
func (c *Conversation) Done() <-chan struct{} { return c.done }

// Err is why the conversation ended; nil while it goes on.
func (c *Conversation) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the conversation and all its streams. It does not close the byte stream.
func (c *Conversation) Close() { c.end(ErrClosed) }

func (c *Conversation) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	close(c.done)
}

func (c *Conversation) dispatch(f frame) error {
	if c.partOf != 0 && (f.stream != c.partOf || f.typ != typePart && f.typ != typeOpen) {
		return violation("a frame between the parts of a request")
	}
	switch f.typ {
	case typePart:
		return c.part(f)
	case typeOpen:
		return c.opened(f)
	}
	c.mu.Lock()
	s, last := c.streams[f.stream], c.nextID
	c.mu.Unlock()
	switch {
	case f.stream > last:
		return violation("frame of stream %d, which nobody opened", f.stream)
	case s == nil:
		return c.passOver(f)
	case f.typ == typeReset && !c.host:
		s.forget() // before the host can open another in its place
	}
	return s.receive(f)
}

// lateMost is what an agent may have on its way when its host lets a stream go: a window of data and one of credit, a frame for each byte, and
// how the stream ends.
const lateMost = 2*window + 2

// passOver takes a frame of a stream that this end has let go. A host does so only as often as it has let streams go: else a guest could have
// it read for ever what says nothing.
func (c *Conversation) passOver(f frame) error {
	if !c.host {
		return nil
	}
	cost := max(1, len(f.payload))
	switch f.typ {
	case typeCredit:
		n, err := f.credit()
		if err != nil {
			return err
		}
		cost = n
	case typeReply:
		cost = 1
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.late -= cost; c.late < 0 {
		return violation("more of streams that are over than can have been on its way")
	}
	return nil
}

// part keeps the beginning of a request. One at a time has begun, so that this is all the memory that requests take.
func (c *Conversation) part(f frame) error {
	switch {
	case c.host:
		return violation("a guest opened a stream")
	case len(f.payload) == 0:
		return violation("part without bytes")
	case len(c.parts)+len(f.payload) > MaxRequest:
		return violation("request of more than %d bytes", MaxRequest)
	}
	c.partOf, c.parts = f.stream, append(c.parts, f.payload...)
	return nil
}

// opened takes a stream in that the host opened.
func (c *Conversation) opened(f frame) error {
	if c.host {
		return violation("a guest opened a stream")
	}
	s, body := newStream(c, f.stream), f.payload
	if c.partOf != 0 {
		if body = append(c.parts, f.payload...); len(body) > MaxRequest {
			return violation("request of more than %d bytes", MaxRequest)
		}
		c.partOf, c.parts = 0, nil
	}
	if err := json.Unmarshal(body, &s.request); err != nil {
		return violation("request: %v", err)
	}
	if err := c.add(s); err != nil {
		return err
	}
	select {
	case c.requests <- s: // has room for as many as may be open; those that were reset at once are accepted in a moment
	case <-c.done:
	}
	return nil
}

func (c *Conversation) add(s *Stream) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.id <= c.nextID {
		return violation("stream %d opened after %d", s.id, c.nextID)
	}
	if len(c.streams) >= maxStreams {
		return violation("more than %d streams", maxStreams)
	}
	c.nextID = s.id
	c.streams[s.id] = s
	return nil
}

// Accept gives the next stream that the host opened.
func (c *Conversation) Accept() (*Stream, error) {
	select {
	case s := <-c.requests:
		return s, nil
	case <-c.done:
		return nil, c.Err()
	}
}

// Open opens a stream with a request. It gives an *Error where that cannot be sent: too large, or one stream too many.
func (c *Conversation) Open(r Request) (*Stream, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if len(b) > MaxRequest {
		return nil, &Error{Kind: ErrTooLarge, Message: fmt.Sprintf("request of %d bytes, at most %d fit", len(b), MaxRequest)}
	}
	c.wmu.Lock() // ids must reach the other end in order
	defer c.wmu.Unlock()
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return nil, c.err
	}
	if len(c.streams) >= maxStreams {
		defer c.mu.Unlock()
		return nil, &Error{Kind: ErrRequest, Message: fmt.Sprintf("more than %d operations at once", maxStreams)}
	}
	c.nextID++
	s := newStream(c, c.nextID)
	c.streams[s.id] = s
	c.mu.Unlock()
	if err := c.writeRequest(s.id, b); err != nil {
		s.forget()
		return nil, err
	}
	return s, nil
}

// writeRequest writes a request in as many frames as it needs; c.wmu is held, so that no other comes between.
func (c *Conversation) writeRequest(stream uint32, b []byte) error {
	for began := time.Now(); len(b) > MaxPayload; {
		if time.Since(began) > requestWithin {
			err := fmt.Errorf("a request has not been taken within %v: %w", requestWithin, os.ErrDeadlineExceeded)
			c.end(err)
			return err
		}
		if err := c.writeLocked(frame{stream: stream, typ: typePart, payload: b[:MaxPayload]}); err != nil {
			return err
		}
		b = b[MaxPayload:]
	}
	return c.writeLocked(frame{stream: stream, typ: typeOpen, payload: b})
}

func (c *Conversation) write(f frame) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.writeLocked(f)
}

func (c *Conversation) writeLocked(f frame) error {
	select {
	case <-c.done:
		return c.Err()
	default:
	}
	c.wbuf = append(appendHeader(c.wbuf[:0], f, len(f.payload)), f.payload...)
	if _, err := c.w.Write(c.wbuf); err != nil {
		c.end(err)
		return err
	}
	return nil
}

func creditPayload(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }
