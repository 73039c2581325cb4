package wire

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

const (
	// window is how many bytes of data may be on their way in one direction of a stream.
	window = 256 << 10
	// maxStreams is how many streams may be open at once.
	maxStreams = 64
)

// ErrClosed is why a stream of a closed conversation ended.
var ErrClosed = errors.New("conversation closed")

// Conversation is the frames between a host and a guest over one byte stream. Its methods may be called concurrently.
type Conversation struct {
	rw   io.ReadWriter
	r    *bufio.Reader
	host bool
	own  nonce // names this conversation

	wmu  sync.Mutex // serialises writes
	wbuf []byte

	mu      sync.Mutex
	streams map[uint32]*Stream
	nextID  uint32
	err     error
	done    chan struct{}
	// requests holds the streams that the host opened, for Accept.
	requests chan *Stream
}

func newConversation(rw io.ReadWriter, r *bufio.Reader, host bool) *Conversation {
	return &Conversation{
		rw: rw, r: r, host: host, wbuf: make([]byte, 0, headerSize+MaxPayload),
		streams: map[uint32]*Stream{}, done: make(chan struct{}), requests: make(chan *Stream, maxStreams),
	}
}

// Host begins a conversation with the agent at the other end of conn. ctx bounds the greeting only. Run must be called, and reads
// until the conversation ends.
func Host(ctx context.Context, conn net.Conn) (*Conversation, error) {
	r, own, err := greet(ctx, conn)
	if err != nil {
		return nil, err
	}
	c := newConversation(conn, r, true)
	c.own = own
	return c, nil
}

// Guest holds one conversation after the other with the hosts at the other end of rw; each is given to serve, which returns when the
// conversation is done. It returns when reading or writing fails.
func Guest(rw io.ReadWriter, serve func(*Conversation)) error {
	r := bufio.NewReaderSize(rw, MaxPayload+headerSize)
	g, err := awaitGreeting(r)
	for err == nil {
		if aerr := answer(rw, g); aerr != nil {
			if !errors.Is(aerr, ErrProtocol) {
				return aerr
			}
			g, err = awaitGreeting(r)
			continue
		}
		c := newConversation(rw, r, false)
		c.own = g.nonce
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
	if again, ok := errors.AsType[*answerError](err); ok && c.host {
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
	if f.typ == typeOpen {
		return c.opened(f)
	}
	c.mu.Lock()
	s := c.streams[f.stream]
	c.mu.Unlock()
	if s == nil {
		return nil // of a stream that this end has let go
	}
	return s.receive(f)
}

// opened takes a stream in that the host opened.
func (c *Conversation) opened(f frame) error {
	if c.host {
		return violation("a guest opened a stream")
	}
	s := newStream(c, f.stream)
	if err := json.Unmarshal(f.payload, &s.request); err != nil {
		return violation("request: %v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.stream <= c.nextID {
		return violation("stream %d opened after %d", f.stream, c.nextID)
	}
	if len(c.streams) >= maxStreams {
		return violation("more than %d streams", maxStreams)
	}
	c.nextID = f.stream
	c.streams[f.stream] = s
	c.requests <- s // has room for as many as may be open
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

// Open opens a stream with a request.
func (c *Conversation) Open(r Request) (*Stream, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if len(b) > MaxPayload {
		return nil, &Error{Kind: ErrTooLarge, Message: fmt.Sprintf("request of %d bytes, at most %d fit", len(b), MaxPayload)}
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
		return nil, fmt.Errorf("more than %d streams", maxStreams)
	}
	c.nextID++
	s := newStream(c, c.nextID)
	c.streams[s.id] = s
	c.mu.Unlock()
	if err := c.writeLocked(frame{stream: s.id, typ: typeOpen, payload: b}); err != nil {
		s.forget()
		return nil, err
	}
	return s, nil
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
	b := appendHeader(c.wbuf[:0], f, len(f.payload))
	if _, err := c.rw.Write(append(b, f.payload...)); err != nil {
		c.end(err)
		return err
	}
	return nil
}

func creditPayload(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }
