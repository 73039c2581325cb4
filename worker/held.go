package worker

import (
	"context"
	"sync"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// heldSet are the attempts that this worker has, each with the means to end it.
type heldSet struct {
	mu sync.Mutex
	m  map[string]*heldAttempt // by job: one attempt of a job at a time
}

type heldAttempt struct {
	jobs.Held
	acts         bool // its machine is there, and what it does could be done twice
	cancel, drop context.CancelCauseFunc
}

// abortGrace is how long a worker that must end waits for the broker to take what an attempt has said.
const abortGrace = 3 * time.Second

// add notes the attempt. work ends when it is cancelled or dropped, and with ctx; lost when it is dropped, and a moment after ctx: until
// then what the attempt has done is still to be told. end forgets it. acts is of one whose machine ends with the lease.
func (s *heldSet) add(ctx context.Context, h jobs.Held, acts bool) (work, lost context.Context, end func()) {
	work, cancel := context.WithCancelCause(ctx)
	lost, drop := context.WithCancelCause(context.WithoutCancel(ctx))
	a := &heldAttempt{Held: h, acts: acts, cancel: cancel, drop: func(cause error) {
		cancel(cause)
		drop(cause)
	}}
	stop := context.AfterFunc(ctx, func() {
		sleep(lost, abortGrace)
		drop(context.Cause(ctx))
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[string]*heldAttempt{}
	}
	if old := s.m[h.Job]; old != nil { // the dispatcher gave the job anew: the old attempt is fenced
		old.drop(errDropped)
	}
	s.m[h.Job] = a
	return work, lost, func() {
		stop()
		a.drop(nil)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.m[h.Job] == a {
			delete(s.m, h.Job)
		}
	}
}

// running notes that the attempt's first step has started.
func (s *heldSet) running(h jobs.Held) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.m[h.Job]; a != nil && a.Epoch == h.Epoch {
		a.Running = true
	}
}

// rests notes that the attempt's machine is gone: it has only to report.
func (s *heldSet) rests(h jobs.Held) { s.each(h, func(a *heldAttempt) { a.acts = false }) }

func (s *heldSet) list() []jobs.Held {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := make([]jobs.Held, 0, len(s.m))
	for _, a := range s.m {
		l = append(l, a.Held)
	}
	return l
}

// cancel ends an attempt's work; drop ends the attempt.
func (s *heldSet) cancel(h jobs.Held) { s.each(h, func(a *heldAttempt) { a.cancel(errCanceled) }) }
func (s *heldSet) drop(h jobs.Held)   { s.each(h, func(a *heldAttempt) { a.drop(errDropped) }) }

func (s *heldSet) each(h jobs.Held, do func(*heldAttempt)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.m[h.Job]; a != nil && a.Attempt == h.Attempt && a.Epoch == h.Epoch {
		do(a)
	}
}

// dropAll drops all and gives how many there were.
func (s *heldSet) dropAll() int { return s.dropThose(func(*heldAttempt) bool { return true }) }

// dropActing drops those whose machines could do what another attempt does too, and gives how many there were.
func (s *heldSet) dropActing() int { return s.dropThose(func(a *heldAttempt) bool { return a.acts }) }

func (s *heldSet) dropThose(which func(*heldAttempt) bool) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.m {
		if which(a) {
			a.acts = false
			a.drop(errDropped)
			n++
		}
	}
	return n
}
