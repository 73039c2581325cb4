// Package dispatcher is Paddock's front door and brain: it admits jobs, gives them to workers that ask, notices workers that are lost,
// and ends jobs, each exactly once. Admit is the place to start reading, and report.go the other end.
//
// The ledger is the truth; what is kept in memory is rebuilt from it. It imports jobs, dispatcher/ledger and dispatcher/match, and
// knows neither NATS nor workers.
package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/match"
	"github.com/paddockvm/paddock/jobs"
)

// Publisher takes events that viewers shall see. An event is known by (job, attempt, seq): publishing it again does no harm.
type Publisher interface {
	// Publish returns when all are durably stored, in order.
	Publish(ctx context.Context, events ...jobs.Event) error
	// LastSeq gives the Seq of the last event of an attempt; 0 for none.
	LastSeq(ctx context.Context, tenant, job string, attempt int) (int64, error)
	// DeadLetter tells of a job that can never run.
	DeadLetter(ctx context.Context, job jobs.Job, reason string) error
}

// Config is what a Dispatcher needs. Store and Events are required.
type Config struct {
	Store  ledger.Store
	Events Publisher
	// LeaseTTL is how long a worker's attempts are its own after its last heartbeat (15 s where 0); after Grace more (5 s) they are
	// given to others.
	LeaseTTL, Grace time.Duration
	// RetryBase is the pause before the first infra retry; it doubles with each. 0 means 1 s.
	RetryBase time.Duration
	// MaxQueued bounds the queue; 0 means 100,000.
	MaxQueued int
	// KeepEnded is how long a job can be asked for after its end; 0 means 7 days. It is a day at least, because for so long an
	// idempotency key names its job.
	KeepEnded  time.Duration
	Registerer prometheus.Registerer // nil: no metrics
}

// Dispatcher is one dispatcher. Its methods may be called concurrently, and answer once Run has begun.
type Dispatcher struct {
	cfg     Config
	metrics metrics
	loaded  chan struct{} // closed when the ledger has been read

	mu      sync.Mutex // guards what follows; never held over I/O
	queue   *match.Queue
	entries map[string]*ledger.Entry // jobs that have not ended
	workers map[string]*worker
	polls   []*poll
	epoch   int64
	// admitting counts jobs on their way into the ledger, so that the queue's bound holds.
	admitting int
	wake      *time.Timer // for the earliest job that may not be matched yet
	// doubts are jobs of which memory may not be what the ledger has: see doubt.go.
	doubts map[string]bool

	outbox     chan struct{} // one token: there is something in the ledger's outbox
	publishing chan struct{} // one token: who has put it in reads the outbox and publishes
	unsure     bool          // guarded by publishing: the outbox's head may have been published already
}

// New checks the configuration; it reads nothing yet.
func New(cfg Config) (*Dispatcher, error) {
	if cfg.Store == nil || cfg.Events == nil {
		return nil, errors.New("dispatcher: Store and Events are required")
	}
	for d, v := range map[*time.Duration]time.Duration{&cfg.LeaseTTL: 15 * time.Second, &cfg.Grace: 5 * time.Second, &cfg.RetryBase: time.Second, &cfg.KeepEnded: 7 * 24 * time.Hour} {
		if *d == 0 {
			*d = v
		}
	}
	if cfg.KeepEnded < keyRemembered {
		return nil, fmt.Errorf("dispatcher: ended jobs are kept for %v, and must be for %v at least: for so long idempotency keys name them", cfg.KeepEnded, keyRemembered)
	}
	if cfg.MaxQueued == 0 {
		cfg.MaxQueued = 100_000
	}
	d := &Dispatcher{
		cfg: cfg, loaded: make(chan struct{}), queue: match.New(), entries: map[string]*ledger.Entry{}, workers: map[string]*worker{},
		doubts: map[string]bool{}, outbox: make(chan struct{}, 1), publishing: make(chan struct{}, 1), unsure: true,
	}
	d.metrics = newMetrics(cfg.Registerer, d)
	return d, nil
}

// Run reads the ledger, publishes what an earlier life had committed and not published, and then keeps leases, expiries and the outbox
// until ctx ends. It returns an error where the ledger cannot be read.
func (d *Dispatcher) Run(ctx context.Context) error {
	if err := d.load(ctx); err != nil {
		return fmt.Errorf("dispatcher: %w", err)
	}
	defer d.stopPolls()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.drainOutbox(ctx) })
	g.Go(func() error { return d.reconcile(ctx) })
	g.Go(func() error { return d.forget(ctx) })
	return g.Wait()
}

// load rebuilds memory from the ledger. Workers that had sessions get a whole lease to beat again.
func (d *Dispatcher) load(ctx context.Context) error {
	sessions, err := d.cfg.Store.Sessions(ctx)
	if err != nil {
		return err
	}
	open, err := d.cfg.Store.Open(ctx)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for _, e := range open {
		d.entries[e.ID] = &e
		d.epoch = max(d.epoch, e.Epoch)
		if e.State == jobs.StateQueued {
			if !e.Cancel { // else reconcile ends it
				d.queue.Push(item(&e))
			}
			continue
		}
		if d.workers[e.Worker] == nil {
			d.workers[e.Worker] = &worker{name: e.Worker, session: max(sessions[e.Worker], e.Session), seen: now, waiting: true}
		}
	}
	close(d.loaded)
	zerolog.Ctx(ctx).Info().Int("open", len(open)).Msg("ledger read")
	return nil
}

// ready waits until the ledger has been read.
func (d *Dispatcher) ready(ctx context.Context) error {
	select {
	case <-d.loaded:
		return nil
	case <-ctx.Done():
		return unavailable("the dispatcher is starting")
	}
}

func unavailable(why string) *jobs.Error {
	return &jobs.Error{Code: jobs.CodeUnavailable, Message: why, RetryAfterMS: 1000}
}

// broken logs a failure of the ledger or the broker and gives what clients may know of it.
func (d *Dispatcher) broken(ctx context.Context, what string, err error) error {
	if e, ok := errors.AsType[*jobs.Error](err); ok {
		return e
	}
	zerolog.Ctx(ctx).Error().Err(err).Msg(what)
	return unavailable("the ledger cannot be written or read at the moment: " + what)
}

func item(e *ledger.Entry) match.Item {
	i := match.Item{ID: e.ID, Image: e.Image, Priority: e.Priority, Resources: e.Resources, Network: e.Network, NotBefore: e.NotBefore}
	if e.Attempt > 0 {
		i.Avoid, i.AvoidUntil = e.Worker, e.NotBefore.Add(avoidFor)
	}
	return i
}

// avoidFor is how long a job that may be tried again waits for a worker other than its last: those may all be busy for hours.
const avoidFor = 30 * time.Second

// Get gives a job of a tenant, with its spec.
func (d *Dispatcher) Get(ctx context.Context, tenant, id string) (jobs.Job, error) {
	if err := jobs.ValidTenant(tenant); err != nil {
		return jobs.Job{}, err
	}
	j, err := d.cfg.Store.Get(ctx, tenant, id)
	if errors.Is(err, ledger.ErrNotFound) {
		return j, notFound(id)
	}
	if err != nil {
		return j, d.broken(ctx, "get job", err)
	}
	return j, nil
}

func notFound(id string) *jobs.Error {
	return &jobs.Error{Code: jobs.CodeNotFound, Message: fmt.Sprintf("no job %.80q", id)}
}

// List gives jobs of a tenant without their specs, newest first.
func (d *Dispatcher) List(ctx context.Context, tenant string, q jobs.ListRequest) (jobs.ListReply, error) {
	if err := jobs.ValidTenant(tenant); err != nil {
		return jobs.ListReply{}, err
	}
	switch {
	case q.Limit == 0:
		q.Limit = 50
	case q.Limit < 0 || q.Limit > 1000:
		return jobs.ListReply{}, &jobs.Error{Code: jobs.CodeInvalid, Message: "invalid list request", Faults: []jobs.Fault{{Path: "limit", Message: "must be 1 to 1000"}}}
	}
	r, err := d.cfg.Store.List(ctx, tenant, q)
	if err != nil {
		return r, d.broken(ctx, "list jobs", err)
	}
	return r, nil
}
