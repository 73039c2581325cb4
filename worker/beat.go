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
	again   chan struct{} // closed at the next answer; nil where nobody waits for it
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
func (s *sessionState) expired() bool { return s.left() <= 0 }

// left is how long attempts are this worker's yet if nobody answers.
func (s *sessionState) left() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ttl - time.Since(s.okAt)
}

// own waits until attempts are this worker's, as far as it knows: it returns false where ctx or stop ends first. An attempt that has been
// dropped meanwhile has been told so then.
func (s *sessionState) own(ctx context.Context, stop <-chan struct{}) bool {
	for ctx.Err() == nil {
		answer := s.answer() // before the look: an answer in between is not missed
		if !s.expired() {
			break
		}
		select {
		case <-answer:
		case <-stop:
			return false
		case <-ctx.Done():
		}
	}
	return ctx.Err() == nil
}

// answer is closed when a heartbeat is answered.
func (s *sessionState) answer() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.again == nil {
		s.again = make(chan struct{})
	}
	return s.again
}

// resume goes on with the session of an earlier life, whose results are still to be reported.
func (s *sessionState) resume(session int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session = session
}

// answered takes a reply in.
func (s *sessionState) answered(sentAt time.Time, r jobs.BeatReply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session, s.ttl, s.okAt, s.drained = r.Session, time.Duration(r.TTLMS)*time.Millisecond, sentAt, r.Drain
	if s.again != nil {
		close(s.again)
		s.again = nil
	}
}

// register sends the first heartbeat until it is answered.
func (w *Worker) register(ctx context.Context) error {
	for told := false; ; told = true {
		err := w.beatOnce(ctx, false)
		if err == nil {
			return nil
		}
		var refused *jobs.Error
		if errors.As(err, &refused) && refused.Code != jobs.CodeUnavailable {
			return fmt.Errorf("register worker %s: %w", w.cfg.Name, err)
		}
		if !told {
			zerolog.Ctx(ctx).Info().Err(err).Msg("not registered yet")
		}
		sleep(ctx, w.cfg.BeatEvery)
		if ctx.Err() != nil {
			return fmt.Errorf("register worker %s: %w", w.cfg.Name, context.Cause(ctx))
		}
	}
}

// beat sends heartbeats until ctx ends. When nobody has answered for a whole TTL it ends the attempts that can act on anything but this
// worker: by then they may run elsewhere. The others go on, and their reports are fenced (docs/adr/0005). The last heartbeat after drain says
// that the worker takes no more: nobody gives anything to a worker that has left.
func (w *Worker) beat(ctx context.Context, drain <-chan struct{}) error {
	tick := time.NewTicker(w.cfg.BeatEvery)
	defer tick.Stop()
	var silent time.Time // since when nobody answers
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
		switch {
		case ctx.Err() != nil:
		case err == nil && !silent.IsZero():
			zerolog.Ctx(ctx).Info().Dur("silence", time.Since(silent)).Msg("heartbeats are answered again")
			silent = time.Time{}
		case err != nil && silent.IsZero():
			zerolog.Ctx(ctx).Warn().Err(err).Msg("heartbeat, until it is answered")
			silent = time.Now()
		}
		if err != nil && ctx.Err() == nil && w.session.expired() {
			w.metrics.selfFenced.Add(float64(w.held.dropActing()))
		}
	}
}

func (w *Worker) beatOnce(ctx context.Context, draining bool) error {
	within := 2 * w.cfg.BeatEvery
	if left := w.session.left(); left > 0 { // who waits for an answer beyond that ends its attempts too late
		within = min(within, left)
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	sentAt, sent := time.Now(), w.session.id()
	r, err := w.cfg.Dispatcher.Beat(ctx, jobs.Beat{
		Worker: w.cfg.Name, Session: sent, Version: w.cfg.Version, Capacity: w.cfg.Capacity, Images: w.cfg.Images.Offered(), Networks: w.networks(),
		Driver: w.cfg.Driver.Name(), Degraded: w.cfg.Caps.Degraded, Running: w.held.list(), Draining: draining, Instance: w.instance,
		Pool: w.cfg.Pool, Labels: w.cfg.Labels, Contract: jobs.Contract, Warm: w.pools.warm(), Templates: w.cfg.Images.Templates(),
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
	if sent != 0 && sent != r.Session { // another session: before anybody takes the answer for a consent
		w.metrics.selfFenced.Add(float64(w.held.dropAll()))
	}
	w.session.answered(sentAt, r)
	for _, h := range r.Cancel {
		w.held.cancel(h)
	}
	return nil
}
