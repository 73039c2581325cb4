package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// This file is what becomes of an attempt's events while nobody takes them: where they wait, who waits for that, and what is left at the end.

// room waits until more may be put in line, and counts for how long; s.mu is held, and released meanwhile.
func (s *stream) room() error {
	if s.failed != nil || s.bytes < pendingBytes {
		return s.failed
	}
	s.waiting = time.Now()
	defer func() {
		s.waited += time.Since(s.waiting)
		s.waiting = time.Time{}
	}()
	for s.failed == nil && s.bytes >= pendingBytes {
		switch {
		case s.interrupted:
			return errInterrupted
		case s.spilling || !s.toDisk():
			t := time.AfterFunc(spillRetry, s.changed.Broadcast)
			s.changed.Wait()
			t.Stop()
		}
	}
	return s.failed
}

// toDisk moves what waits in memory to disk, where that has room; s.mu is held, and released meanwhile.
func (s *stream) toDisk() bool {
	queue, n := s.queue, s.bytes
	s.queue, s.bytes, s.spilling = nil, 0, true
	s.mu.Unlock()
	g, err := s.disk.put(queue)
	s.mu.Lock()
	s.spilling = false
	s.changed.Broadcast()
	if err != nil {
		s.queue, s.bytes = append(queue, s.queue...), s.bytes+n
		if !s.told {
			s.told = true
			s.log.Warn().Err(err).Msg("no room for output: the program waits in its write")
		}
		return false
	}
	s.segments = append(s.segments, g)
	return true
}

var errInterrupted = errors.New("nobody waits for the output any more")

// interrupt ends the wait of whoever writes and finds no room, for good.
func (s *stream) interrupt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.interrupted = true
	s.changed.Broadcast()
}

// waitedFor is for how long output has had to wait for room in all: what the program printed was not taken.
func (s *stream) waitedFor() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting.IsZero() {
		return s.waited
	}
	return s.waited + time.Since(s.waiting)
}

// fetch takes the first segment from disk; s.mu is held, and released while it reads.
func (s *stream) fetch() bool {
	g := s.segments[0]
	s.mu.Unlock()
	events, err := g.events()
	s.mu.Lock()
	if err != nil { // it stays: whoever ends the stream closes it
		if s.failed == nil {
			s.failed = &failure{jobs.HostResources, err}
		}
		s.changed.Broadcast()
		return false
	}
	g.close()
	s.segments, s.flying = s.segments[1:], events
	s.changed.Broadcast()
	return true
}

// lost is why what is left can never be stored; nil where it can. Call it after end.
func (s *stream) lost() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, ok := errors.AsType[*failure](s.failed); ok {
		return f
	}
	return nil
}

// storedSeq is the number of the last event that is stored.
func (s *stream) storedSeq() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stored
}

// again publishes what is left, once; call it after end.
func (s *stream) again(ctx context.Context) (stored bool) {
	for (len(s.flying) > 0 || s.next()) && s.publish(ctx) {
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stored == s.seq
}

// close forgets what is left; call it after end.
func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.segments {
		g.close()
	}
	s.flying, s.segments, s.queue = nil, nil, nil
}

// writeRest writes what is left as frames; call it after end.
func (s *stream) writeRest(w io.Writer) error {
	s.mu.Lock()
	flying, segments, queue := s.flying, s.segments, s.queue
	s.mu.Unlock()
	rest := make([]queued, 0, len(flying))
	for _, e := range flying {
		q := queued{e, e.Data()}
		q.Content = jobs.Content{}
		rest = append(rest, q)
	}
	if err := writeFrames(w, rest); err != nil {
		return err
	}
	for _, g := range segments {
		if _, err := io.Copy(w, g.reader()); err != nil {
			return fmt.Errorf("copy output on disk: %w", err)
		}
	}
	return writeFrames(w, queue)
}

func writeFrames(w io.Writer, queue []queued) error {
	var b []byte
	for i := range queue {
		var err error
		if b, err = appendFrame(b[:0], &queue[i]); err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}
