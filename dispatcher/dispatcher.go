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
	"slices"
	"sync"
	"sync/atomic"
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
	// CloseAttempt durably stores the last event of an attempt whose worker may still be writing: as the one after the last that is there
	// then, whatever its Seq is. It does not look whether it has done so before.
	CloseAttempt(ctx context.Context, e jobs.Event) error
	// Has tells whether an event is stored; one whose Seq is 0 by CloseAttempt.
	Has(ctx context.Context, e jobs.Event) (bool, error)
	// Progress tells how far a batch is; it is durably stored when it returns.
	Progress(ctx context.Context, b jobs.Batch) error
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
	// MaxQueued bounds the queue; 0 means 100,000. Quotas bound what each tenant has of it.
	MaxQueued int
	Quotas    Quotas
	// KeepEnded is how long a job can be asked for after its end; 0 means 7 days. It is a day at least, because for so long an
	// idempotency key names its job.
	KeepEnded time.Duration
	// Connected tells whether workers' heartbeats can reach this dispatcher at the moment: while they cannot, no lease runs out. nil: always.
	Connected func() bool
	// Peers is for Lead; nil where this dispatcher is the only one.
	Peers      Peers
	Registerer prometheus.Registerer // nil: no metrics
	// Callback says why a job's callback could not be called, to its client; nil: none is called.
	Callback func(url string) error
}

// Dispatcher is one dispatcher. Its methods may be called concurrently, and answer once Run has begun.
type Dispatcher struct {
	cfg     Config
	metrics metrics
	loaded  chan struct{}          // closed when the ledger has been read
	tenure  atomic.Pointer[tenure] // see leads
	halfway atomic.Bool            // the ledger may have something of a batch that has failed

	mu      sync.Mutex // guards what follows; never held over I/O
	queue   *match.Queue
	entries map[string]*ledger.Entry // jobs that have not ended
	workers map[string]*worker
	polls   []*poll
	epoch   int64
	began   time.Time // when the ledger had been read
	looked  time.Time // when somebody last looked whether the clock was set
	// admitting counts jobs on their way into the ledger, so that the queue's bound holds.
	admitting int
	wake      *time.Timer // for the earliest job that may not be matched yet
	// doubts are jobs of which memory may not be what the ledger has: see doubt.go.
	doubts   map[string]bool
	awaits   map[string]*awaited // by job
	accounts map[string]*account // by tenant
	// held are the entries of attempts, which workers have. endsFrom is the earliest time at which a queued job may have to be ended; zero for none.
	held     map[string]*ledger.Entry
	endsFrom time.Time
	// running are attempts of which heartbeats tell that they run, by job, and the ledger does not know it yet.
	running map[string]jobs.Held
	// blocked are queued jobs that wait for others to end, and unmet those of which it is not known yet that they have ended well; dependents is
	// who waits for a job, suspect those that are to be looked at again.
	blocked    map[string]*ledger.Entry
	unmet      map[string][]string
	dependents map[string]map[string]bool
	suspect    []string
	suspected  signal            // there are suspects
	moved      map[string]string // batches of which jobs have ended, with their tenants
	movedOn    signal            // there are such
	// expected are workers that the last dispatcher knew and this one has not heard of yet, and of which it is not known what they offer, until
	// doubtUntil.
	expected   map[string]bool
	doubtUntil time.Time
	flags      map[string]ledger.Flags // what workers were told, by name
	refusals   map[string]*jobs.Error  // why schedules' jobs were not taken, by tenant and name
	// untold is what of the outbox goes out apart, by job or batch: see untold.go. untoldNew and untoldEnds are the jobs and the ended batches
	// among them that were not tried yet, and lateEnds the batches' ends that wait for jobs'.
	untold                map[string]*untold
	untoldNew, untoldEnds []string
	lateEnds              map[string]*untold
	passes                passes

	outbox      signal        // there is something in the ledger's outbox
	toTell      signal        // there is something to be told apart, and perhaps a place for it
	progress    chan struct{} // one token: who has put it in tells how far a batch is
	newRunning  signal        // there are such in running
	newOffer    signal        // a worker offers what the ledger does not know of
	newSchedule signal        // a schedule has been put
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
		cfg: cfg, loaded: make(chan struct{}), queue: match.New(matching(&cfg.Quotas)), entries: map[string]*ledger.Entry{}, workers: map[string]*worker{},
		doubts: map[string]bool{}, awaits: map[string]*awaited{}, accounts: map[string]*account{},
		held: map[string]*ledger.Entry{}, blocked: map[string]*ledger.Entry{}, unmet: map[string][]string{}, dependents: map[string]map[string]bool{},
		moved: map[string]string{}, expected: map[string]bool{}, flags: map[string]ledger.Flags{}, refusals: map[string]*jobs.Error{},
		untold: map[string]*untold{}, lateEnds: map[string]*untold{}, passes: passes{stirred: make(chan struct{})},
		outbox: newSignal(), suspected: newSignal(), toTell: newSignal(), progress: make(chan struct{}, 1), newOffer: newSignal(), newRunning: newSignal(), running: map[string]jobs.Held{}, newSchedule: newSignal(), movedOn: newSignal(),
	}
	d.metrics = newMetrics(cfg.Registerer, d)
	return d, nil
}

// Run reads the ledger, publishes what an earlier life had committed and not published, and then keeps leases, expiries and the outbox
// until ctx ends. It returns an error where the ledger cannot be read.
func (d *Dispatcher) Run(ctx context.Context) error {
	if err := d.load(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // it was stopped
		}
		return fmt.Errorf("dispatcher: %w", err)
	}
	defer d.stopPolls()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.drainOutbox(ctx) })
	g.Go(func() error { return d.tellApart(ctx) })
	g.Go(func() error { return d.reconcile(ctx) })
	g.Go(func() error { return d.noteRunning(ctx) })
	g.Go(func() error { return d.depend(ctx) })
	g.Go(func() error { return d.fire(ctx) })
	g.Go(func() error { return d.tellProgress(ctx) })
	g.Go(func() error { return d.note(ctx) })
	g.Go(func() error { return d.forget(ctx) })
	return g.Wait()
}

// load rebuilds memory from the ledger. Workers that had sessions get a whole lease to beat again.
func (d *Dispatcher) load(ctx context.Context) error {
	known, err := d.cfg.Store.Workers(ctx)
	if err != nil {
		return err
	}
	if err := d.cfg.Store.DropIncoming(ctx); err != nil { // what the last dispatcher had begun
		return err
	}
	open, err := d.cfg.Store.Open(ctx)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.began, d.looked = now, now
	// Epochs go on from the time: where the ledger was restored to what it once was, none that was given since is given again.
	d.epoch = now.UnixMicro()
	d.recallWorkers(known, now)
	sessions := map[string]int64{}
	for _, w := range known {
		sessions[w.Name] = w.Session
	}
	for i := range open {
		d.recall(&open[i], now)
		e := d.remember(open[i])
		d.epoch = max(d.epoch, e.Epoch)
		d.place(e)
		if e.State == jobs.StateQueued {
			continue
		}
		w := d.workers[e.Worker]
		if w == nil {
			w = &worker{name: e.Worker, session: sessions[e.Worker], waiting: true}
			d.workers[e.Worker] = w
		}
		w.session, w.seen = max(w.session, e.Session), now
	}
	close(d.loaded)
	zerolog.Ctx(ctx).Info().Int("open", len(open)).Msg("ledger read")
	return nil
}

// ready is readyNow for clients: what they ask waits for a ledger that does not answer just now.
func (d *Dispatcher) ready(ctx context.Context) error {
	if err := d.readyNow(ctx); err == nil || ctx.Err() != nil || !d.leadsSoon(ctx) {
		return err
	}
	return nil
}

// readyNow waits until the ledger has been read, and refuses where this dispatcher does not lead. Workers have to go on when they are not answered
// at once, and ask again by themselves.
func (d *Dispatcher) readyNow(ctx context.Context) error {
	select {
	case <-d.loaded:
	case <-ctx.Done():
		return unavailable("the dispatcher is starting")
	}
	if !d.leads() {
		return unavailable("the ledger does not answer")
	}
	return nil
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
	now := time.Now()
	notBefore := wall(e.NotBefore, now)
	i := match.Item{
		ID: e.ID, Tenant: e.Tenant, Pool: e.Pool, Image: e.Image, Priority: e.Priority, Resources: e.Resources, Network: e.Network,
		Requires: e.Requires, Concurrency: jobs.Concurrency{Key: e.Key, Limit: e.KeyLimit}, Since: wall(e.AcceptedAt, now), NotBefore: notBefore,
	}
	if may := later(e.AcceptedAt, e.NotBefore); e.Attempt == 0 && !e.ExpiresAt.IsZero() {
		i.Hurry = e.ExpiresAt.Sub(may) < 2*templateWait // else it could expire while it is held up
	}
	if e.Attempt > 0 {
		i.Avoid, i.AvoidUntil = append(slices.Clone(e.FailedOn), e.Worker), notBefore.Add(avoidFor)
	}
	return i
}

// place puts a job where it stands: to those that wait for the matcher, or for others' ends, or to those that run. d.mu is held.
func (d *Dispatcher) place(e *ledger.Entry) {
	defer d.noteEnd(e, time.Now())
	switch {
	case e.State != jobs.StateQueued:
		d.queue.Hold(item(e), e.Worker)
	case e.Cancel: // reconcile ends it
		d.aside(e.ID)
		d.queue.Release(e.ID)
	case len(e.DependsOn) > 0 && e.Attempt == 0: // else they have ended well
		d.block(e)
	default:
		d.queue.Push(item(e))
	}
}

// avoidFor is how long a job that may be tried again waits for a worker other than those that had it: those may all be busy for hours.
const avoidFor = 30 * time.Second

// Get gives a job of a tenant, with its spec.
func (d *Dispatcher) Get(ctx context.Context, tenant, id string) (jobs.Job, error) {
	if err := jobs.ValidTenant(tenant); err != nil {
		return jobs.Job{}, err
	}
	j, err := d.find(ctx, tenant, id)
	if errors.Is(err, ledger.ErrNotFound) {
		return j, notFound(id)
	}
	if err != nil {
		return j, d.broken(ctx, "get job", err)
	}
	return j, nil
}

// find reads a job. An id that is none is nobody's, and not every ledger can even be asked for one: PostgreSQL refuses texts with a NUL byte.
func (d *Dispatcher) find(ctx context.Context, tenant, id string) (jobs.Job, error) {
	if _, err := jobs.ParseID(id); err != nil {
		return jobs.Job{}, ledger.ErrNotFound
	}
	return d.cfg.Store.Get(ctx, tenant, id)
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
