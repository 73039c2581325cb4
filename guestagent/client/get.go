package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/paddockvm/paddock/guestagent/wire"
)

func fileHeader(ch wire.Channel, b []byte) (wire.FileHeader, error) {
	var h wire.FileHeader
	if ch != wire.ChanMessage {
		return h, fmt.Errorf("get: %w: data where a file's header belongs", ErrLost)
	}
	if err := json.Unmarshal(b, &h); err != nil || h.Size < 0 {
		return h, fmt.Errorf("get: %w: a file's header that cannot be read", ErrLost)
	}
	return h, nil
}

// fileReader reads exactly one file's bytes from a stream.
type fileReader struct {
	ctx  context.Context //nolint:containedctx // of the one Get that this reader lives in
	s    *wire.Stream
	left int64
	buf  []byte
}

// Read implements io.Reader.
func (r *fileReader) Read(b []byte) (int, error) {
	for len(r.buf) == 0 {
		if r.left == 0 {
			return 0, io.EOF
		}
		ch, data, reply, err := r.s.Recv(r.ctx)
		switch {
		case reply != nil && reply.Error != nil:
			return 0, fmt.Errorf("get: %w", reply.Error)
		case err != nil:
			return 0, fmt.Errorf("get: %w: a file cut short: %w", ErrLost, err)
		case ch != wire.ChanData || int64(len(data)) > r.left:
			return 0, fmt.Errorf("get: %w: not the bytes of the file that was announced", ErrLost)
		}
		r.buf = data
		r.left -= int64(len(data))
	}
	n := copy(b, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}
