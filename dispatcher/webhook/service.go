// Package webhook tells tenants' servers of their jobs: it makes deliveries of the state changes that the ledger has kept for it, signs
// them (Standard Webhooks), and makes each again and again until it is taken or has failed for good. Every delivery is made at least
// once, under one id. Where it may not go, and what it takes from an answer, is in guard.go and send.go; whose turn it is, in queue.go.
//
// It imports jobs and dispatcher/ledger.
package webhook

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// Store keeps endpoints and deliveries: the ledger. When a method returns without error its effect is durable.
type Store interface {
	// AddEndpoint keeps a new endpoint, unless the tenant has most already: then it gives false.
	AddEndpoint(ctx context.Context, e ledger.Endpoint, most int) (bool, error)
	// Endpoint gives one of a tenant's endpoints (ledger.ErrNoWebhook), Endpoints all, the oldest first.
	Endpoint(ctx context.Context, tenant, id string) (ledger.Endpoint, error)
	Endpoints(ctx context.Context, tenant string) ([]ledger.Endpoint, error)
	// ChangeEndpoint changes an endpoint in one transaction and gives what it is then. change may be called more than once. Where the
	// endpoint is enabled no more, its pending deliveries fail, in transactions that follow, as far as those succeed.
	ChangeEndpoint(ctx context.Context, tenant, id string, change func(*ledger.Endpoint)) (ledger.Endpoint, error)
	// RemoveEndpoint gives what was removed. Its pending deliveries fail.
	RemoveEndpoint(ctx context.Context, tenant, id string, at time.Time) (ledger.Endpoint, error)
	// CallbackSecrets gives the secrets of a tenant's callbacks; none where none were made. ChangeCallbackSecrets changes them in one
	// transaction; change may be called more than once.
	CallbackSecrets(ctx context.Context, tenant string) ([]ledger.Secret, error)
	ChangeCallbackSecrets(ctx context.Context, tenant string, change func([]ledger.Secret) []ledger.Secret) ([]ledger.Secret, error)

	// Hooks gives state changes that nothing has been made of, the oldest first.
	Hooks(ctx context.Context, limit int) ([]ledger.Hook, error)
	// Hooked has a token when there may be more of them.
	Hooked() <-chan struct{}
	// SpreadHooks takes hooks away and keeps their deliveries, in one transaction; a hook that is not there any more has none.
	SpreadHooks(ctx context.Context, list []ledger.Spread) error
	// AddDelivery keeps a delivery that no state change is behind.
	AddDelivery(ctx context.Context, d ledger.Delivery) error

	// DeliveryTargets gives what has pending deliveries.
	DeliveryTargets(ctx context.Context) ([]ledger.DeliveryTarget, error)
	// PendingDeliveries gives a target's pending deliveries, those that are due first first.
	PendingDeliveries(ctx context.Context, target string, limit int) ([]ledger.Delivery, error)
	// DeliveryTried keeps a try and what became of the delivery; one that is pending no more only becomes delivered.
	DeliveryTried(ctx context.Context, t ledger.DeliveryTry) error
	// Delivery gives one with its tries and its body (ledger.ErrNoWebhook); Deliveries many without, the newest first, at most limit and one
	// more where there is one.
	Delivery(ctx context.Context, tenant, id string) (ledger.Delivery, error)
	Deliveries(ctx context.Context, tenant string, q jobs.DeliveriesRequest) ([]ledger.Delivery, error)
	// Redeliver makes deliveries pending, due at a time and at the beginning of the schedule, where their endpoints are there and enabled: the
	// one with an id, or those that failed. It gives their targets, and how many they are; with an error, those of what it came to.
	Redeliver(ctx context.Context, tenant string, q jobs.RedeliverRequest, at time.Time) (targets []ledger.DeliveryTarget, n int, err error)
	// ForgetDeliveries deletes deliveries that ended before a time, at most limit, and gives how many.
	ForgetDeliveries(ctx context.Context, before time.Time, limit int) (int, error)
}

// Config is what a Service needs. Store is required.
type Config struct {
	Store Store
	Guard Guard
	// Keep is how long a delivery can be asked for, and replayed, after its end; 0 means 7 days.
	Keep time.Duration
	// Schedule is how long after the try before each try of a delivery is made; nil is Standard Webhooks' ten tries in 75 hours.
	Schedule []time.Duration
	// Transport makes requests; nil is HTTP/1.1 as far as the guard lets it. A test's own goes where it likes.
	Transport  http.RoundTripper
	Registerer prometheus.Registerer // nil: no metrics
}

// Service is all that is to be done about webhooks by the dispatcher that leads. Its methods may be called concurrently, and answer before
// and after Run too; deliveries are made while Run runs.
type Service struct {
	cfg     Config
	guard   Guard
	client  http.Client
	close   func() // connections that wait for their next request
	metrics metrics

	mu    sync.Mutex // guards the queue; never held over I/O
	queue *queue
	// changed has a token when the queue may have something to do.
	changed chan struct{}
}

// New makes a Service; it reads nothing yet.
func New(cfg Config) (*Service, error) {
	if cfg.Store == nil {
		return nil, errors.New("webhook: Store is required")
	}
	if cfg.Keep == 0 {
		cfg.Keep = 7 * 24 * time.Hour
	}
	if cfg.Schedule == nil {
		cfg.Schedule = schedule
	}
	s := &Service{
		cfg: cfg, guard: cfg.Guard, close: func() {}, changed: make(chan struct{}, 1),
		queue: newQueue(bounds{all: inAll, slow: inSlow, tenant: perTenant, host: perHost, endpoint: perEndpoint}),
	}
	if cfg.Transport == nil {
		t := cfg.Guard.transport()
		cfg.Transport, s.close = t, t.CloseIdleConnections
	}
	s.client = http.Client{
		Transport:     cfg.Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // a 3xx is the answer
	}
	s.metrics = newMetrics(cfg.Registerer, s)
	return s, nil
}

const (
	// againAfter is when the ledger is asked again after an error.
	againAfter = time.Second
	// finishWithin is how long tries that are under way at the end may take; they are made again by whoever leads next.
	finishWithin = 2 * time.Second
	// forgetEvery is how often old deliveries are looked for.
	forgetEvery = 10 * time.Minute
)

// Run makes deliveries until ctx ends, and returns when all that it started has ended. It returns an error where the ledger cannot be read
// at the beginning.
func (s *Service) Run(ctx context.Context) error {
	targets, err := s.cfg.Store.DeliveryTargets(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("webhook: read deliveries: %w", err)
	}
	s.mu.Lock()
	s.queue = newQueue(s.queue.bounds) // an earlier Run's is of no use
	now := time.Now()
	for _, t := range targets { // each is read once: what an earlier life took for the time may have been wrong
		s.queue.add(t.Target, t.Tenant, now, now)
	}
	s.mu.Unlock()
	defer s.close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { s.spreadHooks(ctx); return nil })
	g.Go(func() error { s.deliver(ctx); return nil })
	g.Go(func() error { s.forget(ctx); return nil })
	return g.Wait()
}

// wake has deliver look at the queue.
func (s *Service) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// deliver does what the queue says until ctx ends.
func (s *Service) deliver(ctx context.Context) {
	trying, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	var all sync.WaitGroup
	for ctx.Err() == nil {
		s.mu.Lock()
		next, at, ok := s.queue.take(time.Now())
		s.mu.Unlock()
		if ok {
			all.Go(func() {
				if next.delivery == nil {
					s.read(ctx, next.target)
				} else {
					s.try(trying, next)
				}
				s.wake()
			})
			continue
		}
		if look := time.Now().Add(lookEvery); at.IsZero() || at.After(look) {
			at = look // the clock may be set meanwhile
		}
		pause(ctx, at, s.changed)
	}
	late := time.AfterFunc(finishWithin, abort)
	defer late.Stop()
	all.Wait()
}

// pause waits for a token, a time (zero: none) or the end.
func pause(ctx context.Context, until time.Time, token <-chan struct{}) {
	var due <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
	case <-token:
	case <-due:
	}
}

// read reads what of a target's is due.
func (s *Service) read(ctx context.Context, t *target) {
	s.mu.Lock()
	n := t.ask()
	s.mu.Unlock()
	list, err := s.cfg.Store.PendingDeliveries(ctx, t.key, n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); err != nil {
		s.queue.unread(t, now.Add(againAfter), now)
	} else {
		s.queue.read(t, list, n, now)
	}
	if err != nil && ctx.Err() == nil {
		zerolog.Ctx(ctx).Warn().Err(err).Msg("read webhook deliveries")
	}
}

// try makes a delivery once, and says what follows.
func (s *Service) try(ctx context.Context, t turn) {
	next := s.attempt(ctx, t.delivery, t.target)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue.done(t, next, time.Now())
}

// forget deletes old deliveries until ctx ends.
func (s *Service) forget(ctx context.Context) {
	for ctx.Err() == nil {
		const most = 1000
		n, err := s.cfg.Store.ForgetDeliveries(ctx, time.Now().Add(-s.cfg.Keep), most)
		if err != nil && ctx.Err() == nil {
			zerolog.Ctx(ctx).Warn().Err(err).Msg("forget webhook deliveries")
		}
		if n == most {
			continue
		}
		pause(ctx, time.Now().Add(forgetEvery), nil)
	}
}

// jitter is 0 to 1.
func jitter() float64 { return rand.Float64() }
