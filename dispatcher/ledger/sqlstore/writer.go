package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
)

// writer commits what many ask for together: while one transaction is being made durable, the next collects. Every fsync then pays for
// all that came meanwhile.
//
// Within a transaction, operations that touch nothing in common go in step: the next statements of each are run together, which is one
// round trip to a database that is another process. What comes of it is the same as one after the other.
type writer struct {
	connect func(ctx context.Context) (Conn, error)
	dialect Dialect
	schema  int64 // the version of the schema that it knows
	conn    Conn  // run's; nil where there is none at the moment
	term    int64 // run's: in which it leads, or has led; see leader.go
	ops     chan *op
	end     chan struct{} // closed when run has returned
}

// op is one operation on a transaction. It may run more than once: when another of its group fails, each runs alone.
type op struct {
	// touches names what it reads to decide, and what it changes: two that name the same go one after the other.
	touches []string
	// alone is of an operation that goes in step with no other.
	alone bool
	// lead is of an operation on the leadership itself: it needs none, and has a transaction of its own.
	lead bool
	// resign is of one that gives the leadership up, which who is outdated may do.
	resign bool
	do     func(tx *tx) error
	// committed is called by the writer when all is durable; nil for nothing.
	committed func()
	done      chan error
}

const (
	// maxGroup bounds a transaction, and with it how long its first operation waits.
	maxGroup = 512
	// maxTries bounds how often a transaction is begun again that the database has given up for another's sake.
	maxTries = 5
)

var errClosed = errors.New("ledger closed")

func newWriter(db Database) *writer {
	return &writer{connect: db.Connect, dialect: db.Dialect, schema: db.Schema, ops: make(chan *op, maxGroup), end: make(chan struct{})}
}

// do runs an operation in a transaction and returns when that is durable. Once handed in, it is not given up when ctx ends: the caller
// would not know whether it happened.
func (w *writer) do(ctx context.Context, o op) error {
	o.done = make(chan error, 1)
	select {
	case w.ops <- &o:
	case <-w.end:
		return errClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-o.done:
		return err
	case <-w.end:
		select {
		case err := <-o.done:
			return err
		default:
			return errClosed
		}
	}
}

// run commits groups until ctx ends.
func (w *writer) run(ctx context.Context) {
	defer close(w.end)
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-w.ops:
			w.commit(context.WithoutCancel(ctx), w.collect(o))
		}
	}
}

// collect gives an operation and all that wait behind it.
func (w *writer) collect(o *op) []*op {
	group := append(make([]*op, 0, 16), o)
	for len(group) < maxGroup {
		select {
		case o := <-w.ops:
			group = append(group, o)
		default:
			return group
		}
	}
	return group
}

// commit makes a group durable, and tells each of its operations.
func (w *writer) commit(ctx context.Context, group []*op) {
	if i := slices.IndexFunc(group, func(o *op) bool { return o.lead }); i >= 0 && len(group) > 1 {
		for _, part := range [][]*op{group[:i], group[i : i+1], group[i+1:]} {
			if len(part) > 0 {
				w.commit(ctx, part)
			}
		}
		return
	}
	err := w.transact(ctx, group)
	if err != nil && len(group) > 1 && !forAll(err) {
		for _, o := range group { // one of them spoiled it for all: each on its own
			o.done <- w.transact(ctx, []*op{o})
		}
		return
	}
	for _, o := range group {
		o.done <- err
	}
}

// forAll tells of errors that none of a group's operations would be without.
func forAll(err error) bool {
	return errors.Is(err, ledger.ErrUnavailable) || errors.Is(err, ledger.ErrNotLeader) || errors.Is(err, ledger.ErrOutdated)
}

// transact commits a group, or nothing of it. Where the connection was lost that may be unknown.
func (w *writer) transact(ctx context.Context, group []*op) error {
	for try := 1; ; try++ {
		err := w.try(ctx, group)
		if err == nil {
			for _, o := range group {
				if o.committed != nil {
					o.committed()
				}
			}
			return nil
		}
		if w.conn != nil && w.conn.Lost() {
			_ = w.conn.Close() // it has failed already
			w.conn = nil
		}
		if try == maxTries || !w.dialect.Again(err) {
			return w.dialect.Error(err)
		}
		time.Sleep(time.Duration(try) * time.Millisecond) // whoever it was given up for needs a moment
	}
}

func (w *writer) try(ctx context.Context, group []*op) (err error) {
	if w.conn == nil {
		if w.conn, err = w.connect(ctx); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
	}
	step := &stepper{ctx: ctx, conn: w.conn, first: []*Stmt{{Query: w.dialect.Begin}}}
	if !group[0].resign {
		var version int64
		step.first = append(step.first, w.keep(&version)...)
		step.outdated = func() error {
			if version > w.schema {
				return Outdated(version, w.schema)
			}
			return nil
		}
	}
	if !group[0].lead {
		var term int64
		fence, err := w.fence(&term)
		if err != nil {
			return err
		}
		if fence != nil {
			step.first = append(step.first, fence)
			step.fenced = func() bool { return term != w.term }
		}
	}
	defer func() {
		if err != nil && step.first == nil {
			_ = w.conn.Run(ctx, []*Stmt{{Query: `ROLLBACK`}}) // fails where SQLite has rolled back by itself, as it does when the disk is full
		}
	}()
	for rest := group; len(rest) > 0; {
		var wave []*op
		wave, rest = apart(rest)
		if err := step.through(wave); err != nil {
			return err
		}
	}
	if step.first != nil {
		return nil // they had nothing to write
	}
	if err := w.conn.Run(ctx, []*Stmt{{Query: `COMMIT`}}); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// apart takes from a list the operations that touch nothing in common with each other, nor with one before them that has to wait.
func apart(list []*op) (wave, rest []*op) {
	if len(list) == 1 || list[0].alone {
		return list[:1], list[1:]
	}
	touched := make(map[string]bool, 2*len(list))
	for i, o := range list {
		if o.alone {
			return wave, append(rest, list[i:]...)
		}
		if slices.ContainsFunc(o.touches, func(t string) bool { return touched[t] }) {
			rest = append(rest, o)
		} else {
			wave = append(wave, o)
		}
		for _, t := range o.touches {
			touched[t] = true
		}
	}
	return wave, rest
}

// stepper runs operations of one transaction.
type stepper struct {
	ctx   context.Context //nolint:containedctx // of one transaction
	conn  Conn
	first []*Stmt // what goes before the first statement; nil when it has gone
	// outdated gives ErrOutdated, when first has gone, where the schema is newer; nil where that does not matter.
	outdated func() error
	// fenced tells, when first has gone, that another leads; nil where there is no other.
	fenced func() bool
}

// through runs operations to their ends.
func (s *stepper) through(wave []*op) (err error) {
	walks := make([]*walk, len(wave))
	for i, o := range wave {
		walks[i] = begin(o)
	}
	defer func() {
		for _, k := range walks {
			k.stop()
		}
	}()
	for len(walks) > 0 {
		list, going := s.first, walks[:0]
		for i, k := range walks {
			next, ok := k.next()
			if k.err != nil {
				walks = append(going, walks[i:]...)
				return k.err
			}
			if ok {
				list, going = append(list, next...), append(going, k)
			}
		}
		walks = going
		if len(list) == len(s.first) {
			continue
		}
		began := s.first != nil
		s.first = nil
		err = s.conn.Run(s.ctx, list)
		if began && s.outdated != nil {
			if err := s.outdated(); err != nil { // which may be why a statement has failed
				return err
			}
		}
		if err != nil {
			return err
		}
		if began && s.fenced != nil && s.fenced() {
			return ledger.ErrNotLeader
		}
	}
	return nil
}

// walk is an operation on its way: next goes on to its next statements, which must have been run when it is called again.
type walk struct {
	next func() ([]*Stmt, bool)
	stop func()
	err  error // the operation's, when next gives no more
}

func begin(o *op) *walk {
	k := &walk{}
	k.next, k.stop = iter.Pull(func(yield func([]*Stmt) bool) { k.err = o.do(&tx{yield}) })
	return k
}

// tx is what an operation may do.
type tx struct{ yield func([]*Stmt) bool }

// errStopped ends an operation whose transaction failed at another's statement, or its own.
var errStopped = errors.New("the transaction has failed")

// all runs statements in their order.
func (tx *tx) all(list ...*Stmt) error {
	if len(list) > 0 && !tx.yield(list) {
		return errStopped
	}
	return nil
}

// exec runs a statement and gives how many rows it changed.
func (tx *tx) exec(query string, args ...any) (int64, error) {
	st := &Stmt{Query: query, Args: args}
	err := tx.all(st)
	return st.Rows, err
}

// scan runs a statement that gives a row at most, and tells whether it did.
func (tx *tx) scan(into func(row Row) error, query string, args ...any) (bool, error) {
	st := &Stmt{Query: query, Args: args, Scan: into}
	err := tx.all(st)
	return st.Rows > 0, err
}

// chunks runs statements, those that there are, many at a time but not all: they can be ten thousand.
func (tx *tx) chunks(list []*Stmt) error {
	for chunk := range slices.Chunk(slices.DeleteFunc(slices.Clone(list), func(st *Stmt) bool { return st == nil }), 500) {
		if err := tx.all(chunk...); err != nil {
			return err
		}
	}
	return nil
}

// changes runs one statement as an operation that touches one thing, and tells whether it changed something.
func (w *writer) changes(ctx context.Context, what, query string, args ...any) (changed bool, err error) {
	err = w.do(ctx, op{touches: []string{what}, do: func(tx *tx) error {
		n, err := tx.exec(query, args...)
		changed = n > 0
		return err
	}})
	return changed && err == nil, err
}

// close ends the connection, after run has returned.
func (w *writer) close() error {
	if w.conn == nil {
		return nil
	}
	return w.conn.Close()
}
