package worker

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/paddockvm/paddock/jobs"
)

const (
	// chunkBytes is the most that one output event carries; with base64 and JSON around it, it stays far below NATS's 1 MiB.
	chunkBytes = 64 << 10
	// pendingBytes is how much of an attempt waits for the broker in memory, events counted as eventBytes besides what they carry: a program
	// may print a byte at a time, to both its streams in turn. What comes on top waits on disk, and where that is full, too, the program's
	// pipe is left to fill.
	pendingBytes = 4 << 20
	eventBytes   = 512
	// outputRate and outputBurst are how much output of one attempt goes to the broker, in bytes, each event counted as eventBytes besides:
	// per second, and at once. A program that prints faster waits in its write. A broker that syncs always keeps ten seconds of a stream that is being read in memory
	// (nats-server 2.15, filestore's cache), so this is what bounds its memory.
	outputRate  = 4 << 20
	outputBurst = 16 << 20
	// publishRetry is the pause after a publish that failed; it doubles up to publishRetryMost.
	publishRetry     = 100 * time.Millisecond
	publishRetryMost = 2 * time.Second
	// spillRetry is how often a program that waits for room on disk has it looked for: the disk is not ours alone.
	spillRetry = time.Second
)

// stream numbers an attempt's events and publishes them in order while the attempt runs: each publish takes all that has come since
// the last. What the broker does not take waits, in memory and then on disk; nothing is dropped. Nothing is published that may be another
// worker's to tell by now.
type stream struct {
	to     Events
	lease  *sessionState // until when what happens in the attempt is this worker's to tell
	job    string
	tenant string
	n      int // attempt
	pace   *rate.Limiter
	disk   *spill
	log    *zerolog.Logger

	mu      sync.Mutex
	changed *sync.Cond
	seq     int64
	stored  int64 // the Seq of the last event that the broker has
	// What waits, in this order: a batch that is being published, what is on disk, and what is in memory.
	flying   []jobs.Event
	segments []*segment
	queue    []queued
	bytes    int  // of the queue
	spilling bool // what was the queue is on its way to disk, and comes before what is it now
	told     bool // that the disk has no room

	waited      time.Duration // how long writers waited for room, and since when one does
	waiting     time.Time
	interrupted bool // whoever waits for room does so no more

	over   chan struct{} // closed by end: nothing comes any more
	ended  bool
	failed error // the attempt was given up, or its output is lost: drop what comes
	idle   chan struct{}
}

// queued is an event in line; raw is an output event's content, not yet in its JSON form.
type queued struct {
	jobs.Event
	raw []byte
}

// newStream makes an attempt's; log is told of a host that has no room for output.
func newStream(to Events, lease *sessionState, disk *spill, l jobs.Lease, log *zerolog.Logger) *stream {
	s := &stream{
		to: to, lease: lease, disk: disk, job: l.Job, tenant: l.Tenant, n: l.Attempt, pace: rate.NewLimiter(outputRate, outputBurst),
		log: log, over: make(chan struct{}), idle: make(chan struct{}),
	}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// run publishes until end was called and either all is out or the broker does not take it, or until ctx ends.
func (s *stream) run(ctx context.Context) {
	defer close(s.idle)
	stop := context.AfterFunc(ctx, func() { s.fail(context.Cause(ctx)) })
	defer stop()
	for s.next() && s.publish(ctx) {
	}
}

// publish stores the batch that next has taken. It gives up where ctx has ended, and after a try where end was called.
func (s *stream) publish(ctx context.Context) bool {
	publish := s.to.Publish
	for backoff := publishRetry; s.lease.own(ctx, s.over); backoff = min(2*backoff, publishRetryMost) {
		err := publish(ctx, s.flying...)
		publish = s.to.Republish // some may be stored, and by the next try the broker may have forgotten which
		if err == nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.stored = s.flying[len(s.flying)-1].Seq
			s.flying = nil
			return true
		}
		if backoff == publishRetry {
			zerolog.Ctx(ctx).Warn().Err(err).Msg("publish events, until it works")
		}
		if pause(ctx, backoff, s.over, nil); closed(s.over) {
			break
		}
	}
	return false
}

// next waits for events and takes what comes first of all there are: what is in memory, or a part of what is on disk. Only run calls it.
func (s *stream) next() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.failed == nil && len(s.segments) == 0 && (s.spilling || len(s.queue) == 0 && !s.ended) {
		s.changed.Wait()
	}
	switch {
	case s.failed != nil:
		return false
	case len(s.segments) > 0:
		return s.fetch()
	case len(s.queue) == 0:
		return false
	}
	for i := range s.queue {
		s.flying = append(s.flying, s.queue[i].event())
	}
	s.queue, s.bytes = nil, 0
	s.changed.Broadcast()
	return true
}

func (q *queued) event() jobs.Event {
	e := q.Event
	e.Content = jobs.ContentOf(q.raw)
	return e
}

func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = err
	}
	s.changed.Broadcast()
}

// end waits until all events are stored, or until that did not work: then the rest is left. It gives the last event's number.
func (s *stream) end() (last int64, stored bool) {
	s.mu.Lock()
	if !s.ended {
		s.ended = true
		close(s.over)
	}
	s.changed.Broadcast()
	s.mu.Unlock()
	<-s.idle
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seq, s.stored == s.seq
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
	s.bytes += len(raw) + eventBytes
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
	if err := s.room(); err != nil {
		return err
	}
	if s.ended {
		return errStreamEnded
	}
	if s.join(step, name, b) {
		return nil
	}
	for len(b) > 0 {
		n := cut(b, chunkBytes)
		s.put(jobs.Event{Type: jobs.EventOutput, Step: step, Stream: name, Offset: offset}, bytes.Clone(b[:n]))
		s.pace.ReserveN(time.Now(), eventBytes) // the next write waits for it
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
