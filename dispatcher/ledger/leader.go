package ledger

import (
	"context"
	"errors"
	"time"
)

// Leadership is over all handles of one ledger: one at a time leads, and only what it writes is taken. A handle that leads, or has led,
// checks in each transaction that its term is still the last one: after another has begun to lead nothing of it is written any more, not
// even what was on its way. Then, and before it leads, each operation that writes gives ErrNotLeader, and nothing has changed.
//
// A newer Paddock may bring the ledger's schema up to date while older handles have it open. From then on each operation of theirs that writes,
// and Lead, gives ErrOutdated, and nothing has changed: they would write into what they do not know. Resign goes on to work.
//
// A ledger that nobody else can open meanwhile, as one in a file, has no other handles: there an operation before the first Lead writes.
type Leadership interface {
	// Lead begins to lead, or stays the leader for another ttl: until then nobody else becomes it. holder tells people who leads. The term
	// is the same as long as the handle leads, and larger than all before when it begins to. ErrNotLeader, with who leads, where another does.
	// Time is the database's.
	Lead(ctx context.Context, holder string, ttl time.Duration) (term int64, err error)
	// Resign lets another lead at once.
	Resign(ctx context.Context) error
}

// ErrNotLeader is returned for what only the leader may do.
var ErrNotLeader = errors.New("another dispatcher leads")

// ErrOutdated is returned to who has a ledger open whose schema a newer Paddock has brought up to date.
var ErrOutdated = errors.New("a newer Paddock has brought the ledger up to date")
