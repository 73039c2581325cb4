package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// Put writes one file of r.Size bytes into the guest. Where data gives fewer, nothing is written, and the error is data's. Put returns
// when a Read of data that is under way does.
func (c *Client) Put(ctx context.Context, r wire.Put, data io.Reader) error {
	if r.Size < 0 {
		return fmt.Errorf("put %s: a file of %d bytes", r.Path, r.Size)
	}
	s, err := c.open(wire.Request{Op: wire.OpPut, Put: &r})
	if err != nil {
		return err
	}
	defer s.Close() // the guest gives up a file that has not all come
	ctx, stop := context.WithCancelCause(ctx)
	sent := make(chan error, 1)
	go func() {
		err := sendFile(ctx, s, r.Size, data)
		if short, ok := errors.AsType[*shortError](err); ok {
			stop(short)
		}
		sent <- err
	}()
	_, _, reply, err := s.Recv(ctx) // a refusal comes before all is sent
	_, err = result(ctx, wire.OpPut, reply, err)
	stop(nil)
	if sendErr := <-sent; err == nil && sendErr != nil {
		return fmt.Errorf("put: %w: the agent has written a file that it was not sent", ErrLost)
	}
	return err
}

// shortError is a fault of the caller's reader.
type shortError struct{ err error }

func (e *shortError) Error() string { return e.err.Error() }
func (e *shortError) Unwrap() error { return e.err }

func sendFile(ctx context.Context, s *wire.Stream, size int64, data io.Reader) error {
	buf := make([]byte, min(size, wire.MaxPayload))
	for size > 0 {
		n, err := io.ReadFull(data, buf[:min(size, int64(len(buf)))])
		if err != nil {
			return &shortError{fmt.Errorf("%d bytes short: %w", size-int64(n), err)}
		}
		if err := s.Send(ctx, wire.ChanData, buf[:n]); err != nil {
			return err
		}
		size -= int64(n)
	}
	return s.End()
}
