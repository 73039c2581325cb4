package ledger

import (
	"context"
	"time"
)

// Fleet are the operations on workers.
type Fleet interface {
	// Register gives a worker a new session, larger than all before. What it was told stays as it was.
	Register(ctx context.Context, worker string, at time.Time) (session int64, err error)
	// Seen notes when workers that have sessions were last heard of, and what they offer, which the store does not look into.
	Seen(ctx context.Context, list []Seen) error
	// Workers gives all, by their names.
	Workers(ctx context.Context) ([]Worker, error)
	// Flag says what a worker is told. ErrNotFound if there is none of that name.
	Flag(ctx context.Context, worker string, f Flags) error
	// Remove forgets a worker, and tells whether there was one. It may register again.
	Remove(ctx context.Context, worker string) (bool, error)
}

// Seen is a sign of life.
type Seen struct {
	Worker string
	At     time.Time
	Offer  []byte // what it offers from now on; nil for what it did
}

// Worker is what is kept of a worker.
type Worker struct {
	Name    string
	Session int64
	Seen    time.Time
	Offer   []byte // nil where nobody has said
	Flags
}

// Flags are what a worker is told.
type Flags struct {
	Cordoned bool      // is to be given no jobs
	Draining bool      // is to end when it has none
	DrainBy  time.Time // when what it still has is given to others; zero for never
}
