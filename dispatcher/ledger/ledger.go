// Package ledger says what the dispatcher asks of its database: the truth about every job. One Store of whole operations, each one
// transaction; dispatcher/ledger/sqlite keeps it in a file, dispatcher/ledger/postgres in a database that several dispatchers share.
package ledger

import (
	"context"
	"errors"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Store keeps jobs. Every transition is a compare-and-set on (state, attempt, epoch): it gives false, and changes nothing, where the
// attempt is not the job's current one. When a method returns without error its effect is durable; after an error it may be there or not,
// unless the error says more. Methods may be called concurrently. Times are kept in whole microseconds.
type Store interface {
	Jobs
	Batches
	Schedules
	Fleet
	Webhooks
	Objects
	Leadership
	Movable

	Close() error
}

// Jobs are the operations on jobs.
type Jobs interface {
	// Admit writes a new job, unless its id or its idempotency key is taken: then it gives the job that took it and its body's hash.
	Admit(ctx context.Context, a Admission) (taken *Taken, err error)
	// Taken gives the job of its tenant that has an admission's id or key already; nil where there is none. It changes nothing.
	Taken(ctx context.Context, a Admission) (*Taken, error)
	// Open gives all jobs that have not ended, the oldest first.
	Open(ctx context.Context) ([]Entry, error)
	// OpenOf gives those of some jobs that have not ended, the oldest first.
	OpenOf(ctx context.Context, ids []string) ([]Entry, error)
	// Lease begins attempts of queued jobs that nobody wants canceled. specs[i] is the spec, in JSON, of the job of leases[i], nil where that
	// attempt was not begun.
	Lease(ctx context.Context, leases []Lease) (specs [][]byte, err error)
	// Running notes that attempts have started their first step, at a time.
	Running(ctx context.Context, held []jobs.Held, at time.Time) error
	// Finish ends a leased job for good, with its final event. Where the job is to be canceled and the result is a success, it ends
	// all the same as it ended: the cancel came too late.
	Finish(ctx context.Context, h jobs.Held, state jobs.State, r jobs.Result, final jobs.Event) (bool, error)
	// Requeue gives a leased job back to the queue, for another attempt.
	Requeue(ctx context.Context, h jobs.Held, r Retry, event jobs.Event) (bool, error)
	// EndQueued ends a queued job for good: canceled, expired, dead.
	EndQueued(ctx context.Context, id string, attempt int, state jobs.State, r jobs.Result, final jobs.Event) (bool, error)
	// RequestCancel notes that a job is to be canceled, and gives it. ErrNotFound if there is none.
	RequestCancel(ctx context.Context, tenant, id string) (jobs.Job, error)
	// Get gives a job with its spec and its attempts. ErrNotFound if there is none.
	Get(ctx context.Context, tenant, id string) (jobs.Job, error)
	// List gives jobs without specs, newest first, and where to go on.
	List(ctx context.Context, tenant string, q jobs.ListRequest) (jobs.ListReply, error)

	// Outcomes tells of those of a tenant's jobs that there are.
	Outcomes(ctx context.Context, tenant string, ids []string) (map[string]Outcome, error)

	// Redrive admits a job that repeats a dead one of its tenant, which then says so. Where that is not dead, or has been repeated
	// already, it writes nothing and gives false; so it does where the new job's id or key is taken, and by which job.
	Redrive(ctx context.Context, dead string, a Admission) (taken *Taken, ok bool, err error)
	// Drop makes a dead job one that has ended, as its last attempt did, and tells whether it was a dead one of the tenant.
	Drop(ctx context.Context, tenant, id string) (bool, error)

	// Outbox gives events that were committed and may not have been published, the oldest first, those whose ids are greater than after; 0 is
	// all. Published forgets them.
	Outbox(ctx context.Context, after int64, limit int) ([]Outgoing, error)
	Published(ctx context.Context, ids []int64) error

	// Forget deletes jobs that ended before a time and that no open one depends on, with their idempotency keys and attempts; batches
	// that ended before it; and workers that were last seen before it, have no jobs and are told nothing: at most limit of each. It gives
	// how many jobs it deleted; where that is limit, there may be more.
	Forget(ctx context.Context, before time.Time, limit int) (int, error)
}

// ErrNotFound is returned for what is not there.
var ErrNotFound = errors.New("not found")

// ErrUnavailable is wrapped by the errors of a database that cannot be reached, or does not answer in time. What was to be written may be
// there or not.
var ErrUnavailable = errors.New("the database cannot be reached")

// Admission is a new job.
type Admission struct {
	Job  jobs.Job // with its Spec
	Hash string   // of the spec's body
	Key  string   // idempotency key; empty for none
	// KeyBefore is what a dispatcher of before may have stored of Key: a job of this body that has that key is taken for one that has Key. Empty
	// for none.
	KeyBefore string
	// KeyUntil is how long the key is remembered, ExpiresAt how long the job may be queued.
	KeyUntil, ExpiresAt time.Time
	Entry               Entry
}

// Taken is the job that has an id or a key already. Nothing of it is given where it is another tenant's.
type Taken struct {
	Job  jobs.Job
	Hash string
	// Arriving says that it is of a batch that is being written and may come to nothing. Nothing else of it is given.
	Arriving bool
}

// Entry is what the dispatcher keeps in memory of a job that has not ended.
type Entry struct {
	ID, Tenant, Image string
	State             jobs.State
	Priority          int
	Resources         jobs.Resources
	Network           string // what a worker has to offer of networks for it, joined by commas; empty for nothing
	Pool, Requires    string // the spec's pool, and its labels as jobs.Required gives them
	Key               string // of the spec's concurrency, with KeyLimit; empty for none
	KeyLimit          int
	DependsOn         []string // the spec's, those that have ended too
	Batch             string   // that it came in with; empty for none
	Bytes             int      // of its spec, as it is kept
	RedriveOf         string   // the dead job that it repeats; empty for none
	Rules             bool     // the spec has rules for what follows an attempt
	AcceptedAt        time.Time
	ExpiresAt         time.Time // of the queue TTL, which is for the first attempt and counts from when the job may run
	NotBefore         time.Time // of a new job its spec's run_at
	Attempt           int
	Epoch             int64
	Worker            string // has it, or had it last
	Session           int64
	InfraLeft         int      // further attempts that our own failures may cost
	UserLeft          int      // further attempts that the program's own endings may cost
	FailedOn          []string // workers on which attempts ended by our failure
	Cancel            bool
	LeasedAt          time.Time
}

// Lease is an attempt that begins.
type Lease struct {
	jobs.Held
	Worker  string
	Session int64
	At      time.Time
}

// Retry is what a job that goes back to the queue has from then on, and the attempt that has ended.
type Retry struct {
	NotBefore           time.Time
	InfraLeft, UserLeft int
	FailedOn            []string
	Attempt             jobs.Attempt
}

// Outgoing is an event in the outbox.
type Outgoing struct {
	ID    int64
	Event jobs.Event
	// Batch has ended, and Event is empty; nil for a job's event.
	Batch *jobs.Batch
	// Dead says that the job also belongs into the dead-letter queue.
	Dead bool
}
