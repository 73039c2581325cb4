package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Type is a frame's kind.
type Type uint8

// The frame types. A frame of any other type ends the conversation.
const (
	typeOpen   Type = 1 // host → guest: a new stream; the payload is a Request
	typeData   Type = 2 // bytes on a channel; costs credit
	typeCredit Type = 3 // the payload is how many more bytes of data the other end may send, a big-endian uint32
	typeEnd    Type = 4 // the sender sends no more data on this stream
	typeReply  Type = 5 // guest → host: the payload is a Reply; the stream is over
	typeReset  Type = 6 // the stream is over without a reply
	typePart   Type = 7 // host → guest: the beginning of a Request larger than a payload; the host's next frame is the next part, or open with the last
)

// Channel tells apart what flows on one stream.
type Channel uint8

// The channels.
const (
	ChanData    Channel = 0
	ChanMessage Channel = 1
	ChanStdout  Channel = 2
	ChanStderr  Channel = 3
)

const (
	headerSize = 12
	// MaxPayload bounds a frame's payload, and so a Reply's JSON.
	MaxPayload = 64 << 10
	// MaxRequest bounds a Request's JSON: arguments and environment may be that large together (ARG_MAX of Linux, execve(2)).
	MaxRequest = 2 << 20
)

// frame is a header and its payload: length u32, stream u32, type u8, channel u8, two zero bytes; all big-endian.
type frame struct {
	stream  uint32
	typ     Type
	channel Channel
	payload []byte
}

// ErrProtocol is what the other end did wrong; the conversation is over.
var ErrProtocol = errors.New("protocol violation")

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrProtocol}, args...)...)
}

// credit is how much a credit frame gives.
func (f frame) credit() (int, error) {
	if len(f.payload) != 4 {
		return 0, violation("credit of %d bytes", len(f.payload))
	}
	n := binary.BigEndian.Uint32(f.payload)
	if n == 0 || n > window {
		return 0, violation("credit of %d", n)
	}
	return int(n), nil
}

func appendHeader(b []byte, f frame, length int) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	b = binary.BigEndian.AppendUint32(b, f.stream)
	return append(b, byte(f.typ), byte(f.channel), 0, 0)
}

// parseHeader checks a header and gives the frame without its payload, and the payload's length.
func parseHeader(h [headerSize]byte) (frame, int, error) {
	n := binary.BigEndian.Uint32(h[0:])
	f := frame{stream: binary.BigEndian.Uint32(h[4:]), typ: Type(h[8]), channel: Channel(h[9])}
	switch {
	case n > MaxPayload:
		return f, 0, violation("frame of %d bytes", n)
	case f.typ < typeOpen || f.typ > typePart:
		return f, 0, violation("frame of type %d", f.typ)
	case f.channel > ChanStderr:
		return f, 0, violation("channel %d", f.channel)
	case h[10] != 0 || h[11] != 0:
		return f, 0, violation("header with %#x where zero belongs", h[10:])
	case f.stream == 0:
		return f, 0, violation("stream 0")
	case (f.typ == typeEnd || f.typ == typeReset) && n > 0:
		return f, 0, violation("%d bytes where none belong", n)
	}
	return f, int(n), nil
}

// smallFrame is what a reader has room for before it has read a larger one: most conversations have none, and a host holds many.
const smallFrame = 4 << 10

// reader reads frames.
type reader struct {
	*bufio.Reader
	large []byte // takes payloads that the buffer has no room for
}

func newReader(r io.Reader) *reader { return &reader{Reader: bufio.NewReaderSize(r, smallFrame)} }

// readFrame reads one frame. Its payload is r's, until the next read. A greeting or an answer in place of a header is a *greetingError
// or an *answerError.
func readFrame(r *reader) (frame, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return frame{}, err
	}
	switch string(h[:len(greetingMagic)]) {
	case greetingMagic:
		return frame{}, readRestOfGreeting(r, h)
	case answerMagic:
		return frame{}, readRestOfAnswer(r, h)
	}
	f, n, err := parseHeader(h)
	if err != nil {
		return f, err
	}
	if f.payload, err = r.take(n); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return f, fmt.Errorf("frame cut short: %w", err)
	}
	return f, nil
}

// take gives the next n bytes, which are r's until the next read.
func (r *reader) take(n int) ([]byte, error) {
	if n <= r.Size() {
		b, err := r.Peek(n)
		if err == nil {
			_, err = r.Discard(n)
		}
		return b, err
	}
	if cap(r.large) < n {
		r.large = make([]byte, MaxPayload)
	}
	_, err := io.ReadFull(r, r.large[:n])
	return r.large[:n], err
}
