package objects

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// upload is one under way. All but the file's content is guarded by Uploads.mu.
type upload struct {
	file  *os.File // has no name, so that nothing stays of it
	size  int64
	begun uint64 // counts the uploads

	claimed spans // what has come, also what is being written at the moment
	got     spans // what is there
	writing int   // how many are writing
	came    int64 // the bytes of claimed
	shared  int64 // those of them that are in what all share

	touched time.Time // when it came on last, or was told to wait
	marked  int64     // what had come then
	storing *outcome  // nil: it is not being stored
}

// outcome is what comes of storing an upload: err is there when done is closed.
type outcome struct {
	done chan struct{}
	err  error
}

func (o *outcome) over() bool {
	select {
	case <-o.done:
		return true
	default:
		return false
	}
}

// maxSpans bounds in how many parts an upload may be there. A client sends one piece after the other, some at once.
const maxSpans = 64

func newUpload(dir string, size int64) (*upload, error) {
	f, err := os.CreateTemp(dir, "upload-")
	if err != nil {
		return nil, fmt.Errorf("gather an object: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("gather an object: %w", err), f.Close())
	}
	return &upload{file: f, size: size, touched: time.Now()}, nil
}

func (up *upload) close() { _ = up.file.Close() } // nothing of it is kept

// idle tells whether it has not come on since a time, and is not being stored.
func (up *upload) idle(since time.Time) bool {
	return (up.storing == nil || up.storing.over()) && !up.touched.After(since)
}

// whole tells whether all is there, and will stay as it is.
func (up *upload) whole() bool { return up.got.next() == up.size && up.writing == 0 }

// write puts a piece in its place, where it is not there yet, and tells how far the upload is then, and whether it is whole. A piece that
// would be one part too many is not taken: it will come again.
func (u *Uploads) write(ctx context.Context, k key, up *upload, offset int64, piece []byte) (next int64, whole bool, err error) {
	s := span{offset, offset + int64(len(piece))}
	u.mu.Lock()
	defer u.mu.Unlock()
	claimed := up.claimed.with(s)
	if len(piece) > 0 && !up.got.has(s) && len(claimed) <= maxSpans {
		if u.uploads[k] != up {
			return 0, false, lost()
		}
		if err := u.take(ctx, k, up, claimed.bytes()-up.came); err != nil {
			return 0, false, err
		}
		up.claimed = claimed
		up.writing++
		u.mu.Unlock()
		_, err := up.file.WriteAt(piece, offset)
		u.mu.Lock()
		up.writing--
		if err != nil || u.uploads[k] != up {
			return 0, false, lost()
		}
		up.got = up.got.with(s)
	}
	return up.got.next(), up.whole(), nil
}

func lost() *jobs.Error {
	return &jobs.Error{Code: jobs.CodeUnavailable, Message: "the dispatcher cannot keep what is uploaded: its disk may be full, or the upload was abandoned", RetryAfterMS: uploadRetryMS}
}
