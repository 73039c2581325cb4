package guestagent

import (
	"context"
	"encoding/json"
	"errors"
	"io"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// streamReader reads a stream's data as one run of bytes.
type streamReader struct {
	ctx context.Context //nolint:containedctx // of the one request that this reader lives in
	s   *wire.Stream
	buf []byte
}

// Read implements io.Reader.
func (r *streamReader) Read(b []byte) (int, error) {
	if len(r.buf) == 0 {
		var err error
		if _, r.buf, _, err = r.s.Recv(r.ctx); err != nil {
			return 0, err
		}
	}
	n := copy(b, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

// exactly reads as many bytes as the host has announced and then the end. Anything else is the host's fault.
type exactly struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (e *exactly) Read(b []byte) (int, error) {
	n, err := e.r.Read(b)
	e.left -= int64(n)
	if e.left < 0 || e.left > 0 && errors.Is(err, io.EOF) {
		return 0, &wire.Error{Kind: wire.ErrRequest, Message: "the file's bytes are not as many as announced"}
	}
	return n, err
}

// sendFile sends one file's header and exactly its bytes.
func sendFile(ctx context.Context, s *wire.Stream, h wire.FileHeader, r io.Reader) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if err := s.Send(ctx, wire.ChanMessage, b); err != nil {
		return err
	}
	buf := make([]byte, min(h.Size, wire.MaxPayload))
	for left := h.Size; left > 0; {
		n, err := io.ReadFull(r, buf[:min(left, int64(len(buf)))])
		if err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
				err = &wire.Error{Kind: wire.ErrPath, Message: h.Path + ": became shorter while it was read"}
			}
			return err
		}
		if err := s.Send(ctx, wire.ChanData, buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}
