// Package ledger says what the dispatcher asks of its database: the truth about every job. One narrow Store of whole operations, each
// one transaction; dispatcher/ledger/sqlite keeps it in a file.
package ledger

import (
	"context"
	"errors"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Store keeps jobs. Every transition is a compare-and-set on (state, attempt, epoch): it gives false, and changes nothing, where the
// attempt is not the job's current one. When a method returns without error its effect is durable. Methods may be called concurrently.
type Store interface {
	// Admit writes a new job, unless its id or its idempotency key is taken: then it gives the job that took it and its body's hash.
	Admit(ctx context.Context, a Admission) (taken *Taken, err error)
	// Open gives all jobs that have not ended, the oldest first.
	Open(ctx context.Context) ([]Entry, error)
	// Lease begins attempts of queued jobs that nobody wants canceled; ok[i] tells of leases[i].
	Lease(ctx context.Context, leases []Lease) (ok []bool, err error)
	// Running notes that attempts have started their first step.
	Running(ctx context.Context, held []jobs.Held) error
	// Finish ends a leased job for good, with its final event. Where the job is to be canceled and the result is a success, it ends
	// all the same as it ended: the cancel came too late.
	Finish(ctx context.Context, h jobs.Held, state jobs.State, r jobs.Result, final jobs.Event) (bool, error)
	// Requeue gives a leased job back to the queue, for one of its infra retries.
	Requeue(ctx context.Context, h jobs.Held, notBefore time.Time, event jobs.Event) (bool, error)
	// EndQueued ends a queued job for good: canceled, expired, dead.
	EndQueued(ctx context.Context, id string, attempt int, state jobs.State, r jobs.Result, final jobs.Event) (bool, error)
	// RequestCancel notes that a job is to be canceled, and gives it. ErrNotFound if there is none.
	RequestCancel(ctx context.Context, tenant, id string) (jobs.Job, error)
	// Get gives a job with its spec. ErrNotFound if there is none.
	Get(ctx context.Context, tenant, id string) (jobs.Job, error)
	// List gives jobs without specs, newest first, and where to go on.
	List(ctx context.Context, tenant string, q jobs.ListRequest) (jobs.ListReply, error)

	// Register gives a worker a new session, larger than all before.
	Register(ctx context.Context, worker string) (session int64, err error)
	// Sessions are workers' current sessions, of those that have jobs at least.
	Sessions(ctx context.Context) (map[string]int64, error)

	// Outbox gives events that were committed and may not have been published, the oldest first. Published forgets them.
	Outbox(ctx context.Context, limit int) ([]Outgoing, error)
	Published(ctx context.Context, ids []int64) error

	// Forget deletes jobs that ended before a time, with their idempotency keys, and workers that have no jobs: at most limit of each.
	// It gives how many jobs it deleted; where that is limit, there may be more.
	Forget(ctx context.Context, before time.Time, limit int) (int, error)

	Close() error
}

// ErrNotFound is returned for a job that is not there.
var ErrNotFound = errors.New("no such job")

// Admission is a new job.
type Admission struct {
	Job  jobs.Job // with its Spec
	Hash string   // of the spec's body
	Key  string   // idempotency key; empty for none
	// KeyUntil is how long the key is remembered, ExpiresAt how long the job may be queued.
	KeyUntil, ExpiresAt time.Time
	Entry               Entry
}

// Taken is the job that has an id or a key already.
type Taken struct {
	Job  jobs.Job
	Hash string
}

// Entry is what the dispatcher keeps in memory of a job that has not ended.
type Entry struct {
	ID, Tenant, Image string
	State             jobs.State
	Priority          int
	Resources         jobs.Resources
	Network           string // what a worker has to offer of networks for it, joined by commas; empty for nothing
	AcceptedAt        time.Time
	ExpiresAt         time.Time // of the queue TTL, which is for the first attempt
	NotBefore         time.Time
	Attempt           int
	Epoch             int64
	Worker            string // has it, or had it last
	Session           int64
	InfraLeft         int // further attempts that our own failures may cost
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

// Outgoing is an event in the outbox.
type Outgoing struct {
	ID    int64
	Event jobs.Event
	// Dead says that the job also belongs into the dead-letter queue.
	Dead bool
}
