package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/paddockvm/paddock/jobs"
)

const (
	// chunkBytes is the most that one output event carries; with base64 and JSON around it, it stays far below NATS's 1 MiB.
	chunkBytes = 64 << 10
	// pendingBytes is how much output may wait for the broker before the program's pipe is left to fill.
	pendingBytes = 4 << 20
	// outputRate and outputBurst are how much output of one attempt goes to the broker, in bytes: per second, and at once. A program that
	// prints faster waits in its write. A broker that syncs always keeps ten seconds of a stream that is being read in memory
	// (nats-server 2.15, filestore's cache), so this is what bounds its memory.
	outputRate  = 4 << 20
	outputBurst = 16 << 20
	// publishRetry is the pause after a publish that failed.
	publishRetry = 100 * time.Millisecond
)

// stream numbers an attempt's events and publishes them in order while the attempt runs: each publish takes all that has come since
// the last. Writers wait when the broker falls too far behind; nothing is dropped.
type stream struct {
	to     Events
	job    string
	tenant string
	n      int // attempt
	pace   *rate.Limiter

	mu      sync.Mutex
	changed *sync.Cond
	seq     int64
	queue   []queued
	bytes   int
	ended   bool
	failed  error // the attempt was given up: drop what comes
	idle    chan struct{}
}

// queued is an event in line; raw is an output event's content, not yet in its JSON form.
type queued struct {
	jobs.Event
	raw []byte
}

func newStream(to Events, l jobs.Lease) *stream {
	s := &stream{to: to, job: l.Job, tenant: l.Tenant, n: l.Attempt, pace: rate.NewLimiter(outputRate, outputBurst), idle: make(chan struct{})}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// run publishes until end was called and all is out, or ctx ends.
func (s *stream) run(ctx context.Context) {
	defer close(s.idle)
	stop := context.AfterFunc(ctx, func() { s.fail(context.Cause(ctx)) })
	defer stop()
	for {
		batch, ok := s.next()
		if !ok {
			return
		}
		for first := true; ctx.Err() == nil; first = false {
			err := s.to.Publish(ctx, batch...) // a repeat is passed over
			if err == nil {
				break
			}
			if first {
				zerolog.Ctx(ctx).Warn().Err(err).Msg("publish events, until it works")
			}
			sleep(ctx, publishRetry)
		}
	}
}

// next waits for events and takes all there are.
func (s *stream) next() ([]jobs.Event, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) == 0 && !s.ended && s.failed == nil {
		s.changed.Wait()
	}
	if len(s.queue) == 0 || s.failed != nil {
		return nil, false
	}
	batch := make([]jobs.Event, len(s.queue))
	for i, q := range s.queue {
		batch[i] = q.Event
		batch[i].Content = jobs.ContentOf(q.raw)
	}
	s.queue, s.bytes = nil, 0
	s.changed.Broadcast()
	return batch, true
}

func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = err
	s.changed.Broadcast()
}

// end waits until all events are stored, and gives the last one's number.
func (s *stream) end() (last int64, err error) {
	s.mu.Lock()
	s.ended = true
	s.changed.Broadcast()
	s.mu.Unlock()
	<-s.idle
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return 0, fmt.Errorf("publish events: %w", s.failed)
	}
	return s.seq, nil
}

// add numbers an event and puts it in line.
func (s *stream) add(e jobs.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(e, nil)
}

// put is add with output; s.mu is held.
func (s *stream) put(e jobs.Event, raw []byte) {
	s.seq++
	e.Job, e.Tenant, e.Attempt, e.Seq, e.Time = s.job, s.tenant, s.n, s.seq, time.Now().UTC()
	s.queue = append(s.queue, queued{e, raw})
	s.bytes += len(raw)
	s.changed.Broadcast()
}

// join appends to the last event in line where that is output of the same stream and has room; s.mu is held.
func (s *stream) join(step int, name string, b []byte) bool {
	if len(s.queue) == 0 {
		return false
	}
	last := &s.queue[len(s.queue)-1]
	if last.Type != jobs.EventOutput || last.Truncated || last.Step != step || last.Stream != name || len(last.raw)+len(b) > chunkBytes {
		return false
	}
	last.raw = append(last.raw, b...)
	s.bytes += len(b)
	return true
}

var errStreamEnded = errors.New("the attempt's events have ended")

// write puts output in line, as fast as it may go. Small writes that still wait become one event.
func (s *stream) write(step int, name string, offset int64, b []byte) error {
	s.keepPace(len(b))
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.bytes >= pendingBytes && s.failed == nil {
		s.changed.Wait()
	}
	if s.failed != nil {
		return s.failed
	}
	if s.ended {
		return errStreamEnded
	}
	if s.join(step, name, b) {
		return nil
	}
	for len(b) > 0 {
		n := cut(b, chunkBytes)
		s.put(jobs.Event{Type: jobs.EventOutput, Step: step, Stream: name, Offset: offset}, clone(b[:n]))
		b, offset = b[n:], offset+int64(n)
	}
	return nil
}

// keepPace waits until n more bytes may go, or nothing is published any more.
func (s *stream) keepPace(n int) {
	wait := s.pace.ReserveN(time.Now(), n).Delay()
	if wait == 0 {
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.idle:
	}
}

func clone(b []byte) []byte { return append([]byte(nil), b...) }

// cut gives how many bytes of b make the next chunk: at most n, and not half a UTF-8 sequence where a whole one fits.
func cut(b []byte, n int) int {
	if len(b) <= n {
		return len(b)
	}
	for i := n; i > n-utf8.UTFMax; i-- {
		if utf8.RuneStart(b[i]) {
			return i
		}
	}
	return n
}

// output is one stream of one step: it counts, keeps the head for the result, holds back half a UTF-8 sequence, and passes the rest on.
type output struct {
	events *stream
	step   int
	name   string

	head   []byte
	passed int64  // bytes that went on
	held   []byte // the beginning of a UTF-8 sequence, at most three bytes
}

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	if room := jobs.MaxResultOutput - len(o.head); room > 0 {
		o.head = append(o.head, b[:min(room, len(b))]...)
	}
	all := b
	if len(o.held) > 0 {
		all = append(o.held, b...)
	}
	keep := incomplete(all)
	if err := o.pass(all[:len(all)-keep]); err != nil {
		return 0, err
	}
	o.held = clone(all[len(all)-keep:])
	return len(b), nil
}

func (o *output) pass(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if err := o.events.write(o.step, o.name, o.passed, b); err != nil {
		return err
	}
	o.passed += int64(len(b))
	return nil
}

// close passes on what was held back, and marks the stream where it was cut short.
func (o *output) close(dropped int64) (jobs.Output, error) {
	err := o.pass(o.held)
	o.held = nil
	if dropped > 0 {
		o.events.add(jobs.Event{Type: jobs.EventOutput, Step: o.step, Stream: o.name, Offset: o.passed, Truncated: true})
	}
	return jobs.Output{Content: jobs.ContentOf(o.head[:wholeRunes(o.head, o.passed)]), Bytes: o.passed, Truncated: dropped > 0, DroppedBytes: dropped}, err
}

// incomplete gives how many bytes at the end of b begin a UTF-8 sequence that may still be completed.
func incomplete(b []byte) int {
	for i := 1; i <= min(len(b), utf8.UTFMax-1); i++ {
		if c := b[len(b)-i]; utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(b[len(b)-i:]) {
				return i
			}
			return 0
		}
	}
	return 0
}

// wholeRunes gives how much of the head to show: all of it, less a sequence that only the head's end cuts.
func wholeRunes(head []byte, total int64) int {
	if int64(len(head)) == total {
		return len(head)
	}
	return len(head) - incomplete(head)
}
