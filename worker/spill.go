package worker

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/paddockvm/paddock/jobs"
)

const (
	// defaultSpillEach and defaultSpillAll are what may wait on disk of one attempt's output and of all together.
	defaultSpillEach = 64 << 20
	defaultSpillAll  = 1 << 30
)

func spillDir(dir string) string { return filepath.Join(dir, "out") }

// spills is the disk on which output waits that the broker does not take, of all attempts. Its files have no names: they take room as long
// as they are open, and no longer than this process.
type spills struct {
	dir       string
	each, all int64

	mu   sync.Mutex
	used int64
}

// newSpills makes the directory, and takes out of it what a process left that died between a file's making and the loss of its name.
func newSpills(dir string, each, all int64) (*spills, error) {
	if each == 0 {
		each = defaultSpillEach
	}
	if all == 0 {
		all = defaultSpillAll
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range left {
		_ = os.Remove(filepath.Join(dir, f.Name()))
	}
	return &spills{dir: dir, each: each, all: all}, nil
}

// waiting is how many bytes wait on disk.
func (s *spills) waiting() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// errSpillFull is why no more output may wait on disk.
var errSpillFull = errors.New("as much output waits on disk as may")

// spill is one attempt's share. used is guarded by the spills'.
type spill struct {
	of   *spills
	used int64
}

// take counts n bytes in, where there is room for them, or out, where n is negative.
func (s *spill) take(n int64) bool {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	if n > 0 && (s.used+n > s.of.each || s.of.used+n > s.of.all) {
		return false
	}
	s.used += n
	s.of.used += n
	return true
}

// segment is a part of an attempt's events on disk.
type segment struct {
	of   *spill
	file *os.File
	size int64
}

// put writes events to disk, durably for this process alone. On error nothing is left.
func (s *spill) put(queue []queued) (_ *segment, err error) {
	size := 0
	for _, q := range queue {
		size += len(q.raw) + eventBytes
	}
	b := make([]byte, 0, size)
	for i := range queue {
		if b, err = appendFrame(b, &queue[i]); err != nil {
			return nil, err
		}
	}
	g := &segment{of: s, size: int64(len(b))}
	if !s.take(g.size) {
		return nil, errSpillFull
	}
	if g.file, err = os.CreateTemp(s.of.dir, "events-"); err != nil {
		s.take(-g.size)
		return nil, err
	}
	_ = os.Remove(g.file.Name())
	if _, err := g.file.Write(b); err != nil {
		g.close()
		return nil, fmt.Errorf("write output to disk: %w", err)
	}
	return g, nil
}

// reader reads the segment from its beginning.
func (g *segment) reader() io.Reader { return io.NewSectionReader(g.file, 0, g.size) }

// events reads all of it.
func (g *segment) events() (l []jobs.Event, err error) {
	for f := framesOf(g.reader()); ; {
		e, err := f.next()
		if errors.Is(err, io.EOF) {
			return l, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read output back from disk: %w", err)
		}
		l = append(l, e)
	}
}

func (g *segment) close() {
	_ = g.file.Close() // it has no name: that was all of it
	g.of.take(-g.size)
}
