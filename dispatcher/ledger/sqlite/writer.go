package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// writer commits what many ask for together: while one transaction is being made durable, the next collects. Every fsync then pays for
// all that came meanwhile.
type writer struct {
	conn  *sql.Conn            // the only one that writes
	stmts map[string]*sql.Stmt // prepared on conn, by their text: run's
	ops   chan *op
	end   chan struct{} // closed when run has returned
}

// op is one operation on a transaction. It may run more than once: when another of its batch fails, each runs alone.
type op struct {
	do   func(ctx context.Context, tx transaction) error
	done chan error
}

// maxBatch bounds a transaction, and with it how long its first operation waits.
const maxBatch = 512

var errClosed = errors.New("ledger closed")

// write runs do in a transaction and returns when that is durable. Once handed in, it is not given up when ctx ends: the caller would
// not know whether it happened.
func (w *writer) write(ctx context.Context, do func(ctx context.Context, tx transaction) error) error {
	o := &op{do: do, done: make(chan error, 1)}
	select {
	case w.ops <- o:
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

// run commits batches until ctx ends.
func (w *writer) run(ctx context.Context) {
	defer close(w.end)
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-w.ops:
			batch := append(make([]*op, 0, 16), o)
		collect:
			for len(batch) < maxBatch {
				select {
				case o := <-w.ops:
					batch = append(batch, o)
				default:
					break collect
				}
			}
			w.commit(context.WithoutCancel(ctx), batch)
		}
	}
}

// commit makes a batch durable, and tells each of its operations.
func (w *writer) commit(ctx context.Context, batch []*op) {
	err := w.transact(ctx, batch)
	if err != nil && len(batch) > 1 {
		for _, o := range batch { // one of them spoiled it for all: each on its own
			o.done <- w.transact(ctx, []*op{o})
		}
		return
	}
	for _, o := range batch {
		o.done <- err
	}
}

func (w *writer) transact(ctx context.Context, batch []*op) (err error) {
	tx := transaction{w}
	defer func() {
		if err != nil {
			_, _ = tx.exec(ctx, `ROLLBACK`) // fails where SQLite has rolled back by itself, as it does when the disk is full
		}
	}()
	if _, err := tx.exec(ctx, `BEGIN IMMEDIATE`); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	for _, o := range batch {
		if err := o.do(ctx, tx); err != nil {
			return err
		}
	}
	if _, err := tx.exec(ctx, `COMMIT`); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// transaction is what an operation may do.
type transaction struct{ w *writer }

// prepared gives a statement of the writer's connection, which is parsed once: its text is one of the few in this package.
func (tx transaction) prepared(ctx context.Context, query string) (*sql.Stmt, error) {
	if s := tx.w.stmts[query]; s != nil {
		return s, nil
	}
	s, err := tx.w.conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	tx.w.stmts[query] = s
	return s, nil
}

// exec runs a statement and gives how many rows it changed.
func (tx transaction) exec(ctx context.Context, query string, args ...any) (int64, error) {
	s, err := tx.prepared(ctx, query) //nolint:sqlclosecheck // the writer closes it
	if err != nil {
		return 0, err
	}
	r, err := s.ExecContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// scan runs a query for one row; sql.ErrNoRows says that there is none.
func (tx transaction) scan(ctx context.Context, query string, into func(row *sql.Row) error, args ...any) error {
	s, err := tx.prepared(ctx, query) //nolint:sqlclosecheck // the writer closes it
	if err != nil {
		return err
	}
	return into(s.QueryRowContext(ctx, args...))
}

// close ends the connection, after run has returned.
func (w *writer) close() error {
	var errs []error
	for _, s := range w.stmts {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, w.conn.Close())...)
}
