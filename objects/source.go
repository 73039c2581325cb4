package objects

import (
	"context"
	"errors"
	"io"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/jobs"
)

// source reads for the object store: it fills the chunks, keeps the server's pace, and keeps its reader's error, which the store does not
// tell from its own.
type source struct {
	r      io.Reader
	err    error
	sent   int          // since the server had caught up
	settle func() error // waits until it has
}

// settleAfter is how many bytes may wait to be written. The server has room for 128 MiB of a stream, for all who write; what comes on top
// is refused, and nats.go, which itself would send 512 MiB ahead, gives up.
const settleAfter = 4 << 20

func (s *source) Read(b []byte) (int, error) {
	if s.sent >= settleAfter {
		if err := s.settle(); err != nil {
			return 0, err
		}
		s.sent = 0
	}
	n, err := 0, error(nil)
	for n < len(b) && err == nil { // not io.ReadFull, which hides a reader's own ErrUnexpectedEOF
		var m int
		m, err = s.r.Read(b[n:])
		n += m
	}
	s.sent += n
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// settle waits until the server has stored what was sent to the bucket: its answer to one more message, which asks to be refused, comes
// after them.
func (s *JetStream) settle(ctx context.Context, tenant string) error {
	_, err := s.js.Publish(ctx, "$O."+jobs.ObjectBucket(tenant)+".C.settle", nil, jetstream.WithExpectStream("none"))
	if refused := new(jetstream.APIError); errors.As(err, &refused) {
		return nil
	}
	return err
}
