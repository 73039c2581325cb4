package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/jobs"
)

// Causes with which an attempt's context ends.
var (
	errCanceled = errors.New("canceled")
	errDropped  = errors.New("the attempt is not this worker's any more")
)

// sessionState is what the last heartbeats said.
type sessionState struct {
	mu      sync.Mutex
	session int64
	ttl     time.Duration
	okAt    time.Time // when the last answered beat was sent
	drained bool
}

func (s *sessionState) id() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session
}

// mayLease tells whether to ask for more: not with a session that is about to run out, nor when told to drain.
func (s *sessionState) mayLease() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.drained && time.Since(s.okAt) < s.ttl*2/3
}

// expired tells whether the dispatcher may by now have given this worker's attempts to others.
func (s *sessionState) expired() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.okAt) >= s.ttl
}

// answered takes a reply in and tells whether it began another session than the one that the beat was sent in.
func (s *sessionState) answered(sentAt time.Time, sent int64, r jobs.BeatReply) (renewed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session, s.ttl, s.okAt, s.drained = r.Session, time.Duration(r.TTLMS)*time.Millisecond, sentAt, r.Drain
	return sent != 0 && sent != r.Session
}

// register sends the first heartbeat until it is answered.
func (w *Worker) register(ctx context.Context) error {
	for {
		err := w.beatOnce(ctx, false)
		if err == nil {
			return nil
		}
		var refused *jobs.Error
		if errors.As(err, &refused) && refused.Code != jobs.CodeUnavailable {
			return fmt.Errorf("register worker %s: %w", w.cfg.Name, err)
		}
		zerolog.Ctx(ctx).Info().Err(err).Msg("no dispatcher answers yet")
		sleep(ctx, w.cfg.BeatEvery)
		if ctx.Err() != nil {
			return fmt.Errorf("register worker %s: %w", w.cfg.Name, context.Cause(ctx))
		}
	}
}

// beat sends heartbeats until ctx ends, and ends this worker's attempts itself when nobody has answered for a whole TTL: by then
// they may run elsewhere.
func (w *Worker) beat(ctx context.Context, drain <-chan struct{}) error {
	tick := time.NewTicker(w.cfg.BeatEvery)
	defer tick.Stop()
	draining := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-drain:
			drain, draining = nil, true
		case <-tick.C:
		}
		err := w.beatOnce(ctx, draining)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			zerolog.Ctx(ctx).Warn().Err(err).Msg("heartbeat")
			if w.session.expired() {
				w.metrics.selfFenced.Add(float64(w.held.endAll(errDropped)))
			}
		}
	}
}

func (w *Worker) beatOnce(ctx context.Context, draining bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*w.cfg.BeatEvery)
	defer cancel()
	sentAt, sent := time.Now(), w.session.id()
	r, err := w.cfg.Dispatcher.Beat(ctx, jobs.Beat{
		Worker: w.cfg.Name, Session: sent, Version: w.cfg.Version, Capacity: w.cfg.Capacity, Images: w.cfg.Images.Offered(),
		Driver: w.cfg.Driver.Name(), Degraded: w.cfg.Caps.Degraded, Running: w.held.list(), Draining: draining,
	})
	if err != nil {
		return err
	}
	if r.Error != nil {
		return r.Error
	}
	if w.session.answered(sentAt, sent, r) {
		w.metrics.selfFenced.Add(float64(w.held.endAll(errDropped)))
	}
	for _, h := range r.Drop {
		w.held.end(h, errDropped)
	}
	for _, h := range r.Cancel {
		w.held.end(h, errCanceled)
	}
	return nil
}

// heldSet are the attempts that this worker has, each with the means to end it.
type heldSet struct {
	mu sync.Mutex
	m  map[string]*heldAttempt // by job: one attempt of a job at a time
}

type heldAttempt struct {
	jobs.Held
	cancel context.CancelCauseFunc
}

// add notes the attempt; the context ends when the attempt is cancelled or dropped. end forgets it.
func (s *heldSet) add(ctx context.Context, h jobs.Held) (_ context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	a := &heldAttempt{Held: h, cancel: cancel}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[string]*heldAttempt{}
	}
	if old := s.m[h.Job]; old != nil { // the dispatcher gave the job anew: the old attempt is fenced
		old.cancel(errDropped)
	}
	s.m[h.Job] = a
	return ctx, func() {
		cancel(nil)
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

func (s *heldSet) list() []jobs.Held {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := make([]jobs.Held, 0, len(s.m))
	for _, a := range s.m {
		l = append(l, a.Held)
	}
	return l
}

func (s *heldSet) end(h jobs.Held, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.m[h.Job]; a != nil && a.Attempt == h.Attempt && a.Epoch == h.Epoch {
		a.cancel(cause)
	}
}

func (s *heldSet) endAll(cause error) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.m {
		a.cancel(cause)
	}
	return len(s.m)
}
