package sqlstore

import (
	"context"
	"fmt"
	"sync"

	"github.com/paddockvm/paddock/dispatcher/ledger"
)

// A batch is written in pieces, each an operation of its own, so that others' operations have their turn between them: ten thousand jobs take
// hundreds of milliseconds. Its row says that it is incoming until the last piece; as long as it does, its jobs hold their ids and keys and are
// there for nobody. What nobody writes any more is removed: by AdmitBatch where it has found a conflict, else by DropIncoming.

// incoming are the batches that are not written yet, and arrived is the condition that a job is not of one.
const (
	incoming = `(SELECT id FROM batches WHERE incoming)`
	arrived  = `batch NOT IN ` + incoming
)

const (
	// pieceStmts bounds the statements of a piece: about 10 ms of them.
	pieceStmts = 500
	// pieceBytes bounds its specs.
	pieceBytes = 1 << 20
	// pieceJobs bounds the jobs of an operation on jobs of a batch that takes one to three statements for each.
	pieceJobs = 250
)

// pieces gives where the pieces of a list end.
func pieces(list []admitted) (ends []int) {
	stmts, bytes := 0, 0
	for i := range list {
		n := &list[i]
		own := 1 + len(n.Entry.DependsOn)
		for _, key := range []string{n.Key, n.KeyBefore} {
			if key != "" {
				own++
			}
		}
		if i > 0 && (stmts+own > pieceStmts || bytes+len(n.spec) > pieceBytes) {
			ends = append(ends, i)
			stmts, bytes = 0, 0
		}
		stmts, bytes = stmts+own, bytes+len(n.spec)
	}
	return append(ends, len(list))
}

// arrivals are the batches that are being written.
type arrivals struct {
	turn chan struct{} // one token: of the operations that wait for the writer one is a piece

	mu    sync.Mutex // guards what follows
	terms map[string]int64
	lanes map[string]*lane
}

// lane is of a tenant: of its batches that are more than a piece one is written at a time, so that a repeat finds the first one whole.
type lane struct {
	token chan struct{}
	users int
}

func newArrivals() arrivals {
	return arrivals{turn: make(chan struct{}, 1), terms: map[string]int64{}, lanes: map[string]*lane{}}
}

// enter waits until no other large batch of a tenant is being written.
func (a *arrivals) enter(ctx context.Context, tenant string) (leave func(), err error) {
	a.mu.Lock()
	l := a.lanes[tenant]
	if l == nil {
		l = &lane{token: make(chan struct{}, 1)}
		a.lanes[tenant] = l
	}
	l.users++
	a.mu.Unlock()
	gone := func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(a.lanes, tenant)
		}
	}
	select {
	case l.token <- struct{}{}:
		return func() { <-l.token; gone() }, nil
	case <-ctx.Done():
		gone()
		return nil, context.Cause(ctx)
	}
}

// begin notes that a batch is being written in a term.
func (a *arrivals) begin(id string, term int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.terms[id] = term
}

func (a *arrivals) end(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.terms, id)
}

// in tells whether a batch is being written in a term: in another one whoever led since has removed it, or will.
func (a *arrivals) in(id string, term int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	began, ok := a.terms[id]
	return ok && began == term
}

// piece runs an operation on a batch when it is its turn.
func (s *Store) piece(ctx context.Context, do func(tx *tx) error) error {
	select {
	case s.batches.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.batches.turn }()
	return s.write.do(ctx, op{alone: true, do: do})
}

// errGone is for a batch whose term is over while it is being written.
var errGone = fmt.Errorf("%w: the term has ended in which the batch was begun", ledger.ErrNotLeader)

// DropIncoming implements ledger.Store.
func (s *Store) DropIncoming(ctx context.Context) error {
	for left := true; left; {
		err := s.piece(ctx, func(tx *tx) error {
			id := ""
			_, err := tx.scan(func(row Row) error {
				var one string
				err := row.Scan(&one)
				if !s.batches.in(one, s.write.term) {
					id = one
				}
				return err
			}, `SELECT id FROM batches WHERE incoming`)
			if left = id != ""; err != nil || !left {
				return err
			}
			_, err = dropSome(tx, id)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// dropSome removes some jobs of a batch, and the batch after the last: whole is true then.
func dropSome(tx *tx, id string) (whole bool, err error) {
	var list []*Stmt
	_, err = tx.scan(func(row Row) error {
		var job string
		err := row.Scan(&job)
		for _, q := range []string{`DELETE FROM idempotency WHERE job = ?`, `DELETE FROM depends WHERE job = ?`, `DELETE FROM jobs WHERE id = ?`} {
			list = append(list, &Stmt{Query: q, Args: []any{job}})
		}
		return err
	}, `SELECT id FROM jobs WHERE batch = ? AND batch <> '' ORDER BY id DESC LIMIT ?`, id, pieceJobs)
	if err != nil {
		return false, err
	}
	if len(list) == 0 {
		_, err := tx.exec(`DELETE FROM batches WHERE id = ? AND incoming`, id)
		return true, err
	}
	return false, tx.chunks(list)
}

// drop removes a batch that this AdmitBatch has begun in a term, and gives why where that is known and all is gone.
func (s *Store) drop(ctx context.Context, id string, term int64, why error) error {
	for whole := false; !whole; {
		err := s.piece(ctx, func(tx *tx) (err error) {
			if s.write.term != term {
				return errGone
			}
			whole, err = dropSome(tx, id)
			return err
		})
		if err != nil {
			return fmt.Errorf("give up the batch (%v): %w", why, err) //nolint:errorlint // not why, after which nothing is left
		}
	}
	return why
}
