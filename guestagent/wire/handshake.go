package wire

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// A conversation begins with the host's greeting: a magic, the versions it speaks, and a nonce. The guest throws away whatever comes
// before a greeting and answers with a magic of its own, the version it chose, and the nonce; the host throws away whatever comes
// before that. So both find each other in a stream that still carries bytes of a conversation that broke off, or that a snapshot cut.
//
// A host that gets no answer greets again with the same nonce, which a guest that has answered ignores; after some tries it first
// sends as many zero bytes as a frame can hold, which end a frame that the guest may still be waiting for.
const (
	greetingMagic = "PDKHOST\x01"
	answerMagic   = "PDKGUEST"
	nonceSize     = 16
	greetingSize  = len(greetingMagic) + 2 + nonceSize
	answerSize    = len(answerMagic) + 1 + nonceSize

	// Versions of the protocol that this package speaks.
	minVersion, maxVersion = 1, 1

	regreet    = 250 * time.Millisecond
	flushAfter = 4 // greetings
)

type nonce [nonceSize]byte

// greeting is what a host begins with.
type greeting struct {
	least, most byte
	nonce       nonce
}

func (g greeting) encode() []byte {
	b := append([]byte(greetingMagic), g.least, g.most)
	return append(b, g.nonce[:]...)
}

// greetingError is a greeting found where a frame was expected.
type greetingError struct{ greeting }

func (*greetingError) Error() string { return "the host has begun a new conversation" }
func (*greetingError) Unwrap() error { return ErrProtocol }

func readRestOfGreeting(r io.Reader, head [headerSize]byte) error {
	var b [greetingSize]byte
	copy(b[:], head[:])
	if _, err := io.ReadFull(r, b[headerSize:]); err != nil {
		return err
	}
	g := greeting{least: b[len(greetingMagic)], most: b[len(greetingMagic)+1]}
	copy(g.nonce[:], b[len(greetingMagic)+2:])
	return &greetingError{g}
}

// answerError is an answer found where a frame was expected: the guest has answered a greeting that was sent again.
type answerError struct{ nonce nonce }

func (*answerError) Error() string { return "the agent has answered another greeting" }
func (*answerError) Unwrap() error { return ErrProtocol }

func readRestOfAnswer(r io.Reader, head [headerSize]byte) error {
	var b [answerSize]byte
	copy(b[:], head[:])
	if _, err := io.ReadFull(r, b[headerSize:]); err != nil {
		return err
	}
	e := new(answerError)
	copy(e.nonce[:], b[len(answerMagic)+1:])
	return e
}

// seek reads up to and including a magic, throwing away what comes before it.
func seek(r io.ByteReader, magic string) error {
	matched := 0
	for matched < len(magic) {
		c, err := r.ReadByte()
		if err != nil {
			return err
		}
		switch c {
		case magic[matched]:
			matched++
		case magic[0]: // no magic here begins with its first byte twice, nor repeats it within
			matched = 1
		default:
			matched = 0
		}
	}
	return nil
}

// greet begins a conversation from the host's side and gives the reader that holds what has been read beyond the answer, and how often it
// has greeted again.
func greet(ctx context.Context, conn net.Conn) (_ *reader, own nonce, again int, err error) {
	g := greeting{least: minVersion, most: maxVersion}
	_, _ = rand.Read(g.nonce[:]) // never fails (crypto/rand)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}()
	r := newReader(conn)
	answered := make(chan error, 1)
	go func() {
		answered <- awaitAnswer(r, g.nonce)
	}()
	tick := time.NewTicker(regreet)
	defer tick.Stop()
	for n := 0; ; n++ {
		if n == flushAfter {
			if _, err := conn.Write(make([]byte, MaxPayload+headerSize)); err != nil {
				return nil, own, n, drain(answered, conn, err)
			}
		}
		if _, err := conn.Write(g.encode()); err != nil {
			return nil, own, n, drain(answered, conn, err)
		}
		select {
		case err := <-answered:
			return r, g.nonce, n, err
		case <-tick.C:
		}
	}
}

// drain ends the goroutine that waits for the answer, so that greet leaves none behind, and gives err.
func drain(answered <-chan error, conn net.Conn, err error) error {
	_ = conn.SetReadDeadline(time.Unix(1, 0))
	<-answered //nolint:errcheck // the error that ended the greeting is told
	return fmt.Errorf("greet the agent: %w", err)
}

func awaitAnswer(r *reader, want nonce) error {
	for {
		if err := seek(r, answerMagic); err != nil {
			return fmt.Errorf("await the agent's answer: %w", err)
		}
		var b [1 + nonceSize]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return fmt.Errorf("await the agent's answer: %w", err)
		}
		if !bytes.Equal(b[1:], want[:]) {
			continue // an answer to somebody before us
		}
		if b[0] < minVersion || b[0] > maxVersion {
			return violation("the agent speaks version %d of the protocol, this host %d to %d", b[0], minVersion, maxVersion)
		}
		return nil
	}
}

// awaitGreeting waits for a host, from the guest's side.
func awaitGreeting(r *reader) (greeting, error) {
	if err := seek(r, greetingMagic); err != nil {
		return greeting{}, err
	}
	var head [headerSize]byte
	copy(head[:], greetingMagic)
	if _, err := io.ReadFull(r, head[len(greetingMagic):]); err != nil {
		return greeting{}, err
	}
	err := readRestOfGreeting(r, head)
	var g *greetingError
	if errors.As(err, &g) {
		return g.greeting, nil
	}
	return greeting{}, err
}

// answer replies to a greeting; version 0 says that there is none in common.
func answer(w io.Writer, g greeting) error {
	v := min(g.most, maxVersion)
	if v < g.least || v < minVersion {
		v = 0
	}
	b := append([]byte(answerMagic), v)
	if _, err := w.Write(append(b, g.nonce[:]...)); err != nil {
		return err
	}
	if v == 0 {
		return violation("the host speaks versions %d to %d, this agent %d to %d", g.least, g.most, minVersion, maxVersion)
	}
	return nil
}
