package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// Get reads the files that match r and gives each to f, which must read it to its end or return an error. The paths are clean, in
// lexical order, without `..`, and relative where the pattern is; whether they match is the guest's word.
func (c *Client) Get(ctx context.Context, r wire.Get, f func(wire.FileHeader, io.Reader) error) error {
	s, err := c.open(wire.Request{Op: wire.OpGet, Get: &r})
	if err != nil {
		return err
	}
	defer s.Close()
	left, files, last := r.MaxBytes, 0, ""
	for {
		ch, b, reply, err := s.Recv(ctx)
		if err != nil {
			reply, err = result(ctx, wire.OpGet, reply, err)
			if err == nil && reply.Files != files {
				err = fmt.Errorf("get: %w: %d files came, the agent says %d", ErrLost, files, reply.Files)
			}
			return err
		}
		h, err := fileHeader(ch, b)
		switch {
		case err != nil:
			return err
		case !plain(h.Path) || path.IsAbs(h.Path) != path.IsAbs(r.Pattern) || h.Path <= last:
			return fmt.Errorf("get: %w: a file of the path %.200q", ErrLost, h.Path)
		}
		if files++; files > r.MaxFiles || h.Size > left {
			return fmt.Errorf("get: %w: more than was asked for", ErrLost)
		}
		left, last = left-h.Size, h.Path
		body := &fileReader{ctx: ctx, s: s, left: h.Size}
		if err := f(h, body); err != nil {
			return err
		}
		if body.left > 0 || len(body.buf) > 0 {
			return errors.New("get: a file was not read to its end")
		}
	}
}

func fileHeader(ch wire.Channel, b []byte) (wire.FileHeader, error) {
	var h wire.FileHeader
	if ch != wire.ChanMessage {
		return h, fmt.Errorf("get: %w: data where a file's header belongs", ErrLost)
	}
	if err := json.Unmarshal(b, &h); err != nil || h.Size < 0 {
		return h, fmt.Errorf("get: %w: a file's header that cannot be read", ErrLost)
	}
	h.Mode &= 0o777 // no set-uid bit crosses
	return h, nil
}

// maxPath is PATH_MAX (linux/limits.h).
const maxPath = 4096

// plain tells whether a guest's path is one that Linux has and that leads where it reads.
func plain(p string) bool {
	return p != "" && p != "." && p != "/" && len(p) < maxPath && path.Clean(p) == p && !strings.ContainsRune(p, 0) &&
		p != ".." && !strings.HasPrefix(p, "../")
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
	if len(r.buf) == 0 {
		if r.left == 0 {
			return 0, io.EOF
		}
		ch, data, reply, err := r.s.Recv(r.ctx)
		if err != nil {
			if reply, err = result(r.ctx, wire.OpGet, reply, err); reply != nil {
				err = fmt.Errorf("get: %w: a file cut short", ErrLost)
			}
			return 0, err
		}
		if ch != wire.ChanData || int64(len(data)) > r.left {
			return 0, fmt.Errorf("get: %w: not the bytes of the file that was announced", ErrLost)
		}
		r.buf = data
		r.left -= int64(len(data))
	}
	n := copy(b, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}
