package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
		zerolog.Ctx(ctx).Info().Err(err).Msg("not registered yet")
		sleep(ctx, w.cfg.BeatEvery)
		if ctx.Err() != nil {
			return fmt.Errorf("register worker %s: %w", w.cfg.Name, context.Cause(ctx))
		}
	}
}

// beat sends heartbeats until ctx ends, and ends this worker's attempts itself when nobody has answered for a whole TTL: by then
// they may run elsewhere. The last one after drain says that the worker takes no more: nobody gives anything to a worker that has left.
func (w *Worker) beat(ctx context.Context, drain <-chan struct{}) error {
	tick := time.NewTicker(w.cfg.BeatEvery)
	defer tick.Stop()
	for told := drain; ; {
		select {
		case <-ctx.Done():
			if !closed(drain) {
				return nil
			}
			if err := w.beatOnce(context.WithoutCancel(ctx), true); err != nil {
				zerolog.Ctx(ctx).Warn().Err(err).Msg("last heartbeat")
			}
			return nil
		case <-told:
			told = nil // at once, and then as usual
		case <-tick.C:
		}
		err := w.beatOnce(ctx, closed(drain))
		if err != nil && ctx.Err() == nil {
			zerolog.Ctx(ctx).Warn().Err(err).Msg("heartbeat")
			if w.session.expired() {
				w.metrics.selfFenced.Add(float64(w.held.dropAll()))
			}
		}
	}
}

// instanceOf names the process behind a state directory: one that comes back has the name that it had, and its place in the fleet at once.
func instanceOf(dir string) (string, error) {
	name := filepath.Join(dir, "instance")
	b, err := os.ReadFile(name)
	if err == nil && len(b) > 0 {
		return string(b), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	id := jobs.NewID()
	return id, os.WriteFile(name, []byte(id), 0o600)
}

func (w *Worker) beatOnce(ctx context.Context, draining bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*w.cfg.BeatEvery)
	defer cancel()
	sentAt, sent := time.Now(), w.session.id()
	r, err := w.cfg.Dispatcher.Beat(ctx, jobs.Beat{
		Worker: w.cfg.Name, Session: sent, Version: w.cfg.Version, Capacity: w.cfg.Capacity, Images: w.cfg.Images.Offered(), Networks: w.networks(),
		Driver: w.cfg.Driver.Name(), Degraded: w.cfg.Caps.Degraded, Running: w.held.list(), Draining: draining, Instance: w.instance,
	})
	if err != nil {
		return err
	}
	for _, h := range r.Drop {
		w.held.drop(h)
	}
	if r.Error != nil {
		return r.Error
	}
	if w.session.answered(sentAt, sent, r) {
		w.metrics.selfFenced.Add(float64(w.held.dropAll()))
	}
	for _, h := range r.Cancel {
		w.held.cancel(h)
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
	cancel, drop context.CancelCauseFunc
}

// abortGrace is how long a worker that must end waits for the broker to take what an attempt has said.
const abortGrace = 3 * time.Second

// add notes the attempt. work ends when it is cancelled or dropped, and with ctx; lost when it is dropped, and a moment after ctx: until
// then what the attempt has done is still to be told. end forgets it.
func (s *heldSet) add(ctx context.Context, h jobs.Held) (work, lost context.Context, end func()) {
	work, cancel := context.WithCancelCause(ctx)
	lost, drop := context.WithCancelCause(context.WithoutCancel(ctx))
	a := &heldAttempt{Held: h, cancel: cancel, drop: func(cause error) {
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
func (s *heldSet) dropAll() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.m {
		a.drop(errDropped)
	}
	return len(s.m)
}
