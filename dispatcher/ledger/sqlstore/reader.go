package sqlstore

import (
	"context"
	"database/sql"
	"sync"
)

// reader reads what is committed. Its statements are parsed once for each connection: their texts are the few in this package.
type reader struct {
	db      *sql.DB
	dialect Dialect

	mu    sync.Mutex
	stmts map[string]*sql.Stmt // by their text
}

func (r *reader) prepared(ctx context.Context, query string) (*sql.Stmt, error) {
	r.mu.Lock()
	st := r.stmts[query]
	r.mu.Unlock()
	if st != nil {
		return st, nil
	}
	st, err := r.db.PrepareContext(ctx, r.dialect.Bind(query)) //nolint:sqlclosecheck // closed with the database, another's too that came first
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stmts == nil {
		r.stmts = map[string]*sql.Stmt{}
	}
	r.stmts[query] = st
	return st, nil
}

// run runs a statement that reads; nil is none.
func (r *reader) run(ctx context.Context, st *Stmt) error {
	if st == nil {
		return nil
	}
	return r.each(ctx, st.Scan, st.Query, st.Args...)
}

// each runs a query and gives each row of the answer to scan.
func (r *reader) each(ctx context.Context, scan func(row Row) error, query string, args ...any) (err error) {
	defer func() {
		if err != nil {
			err = r.dialect.Error(err)
		}
	}()
	st, err := r.prepared(ctx, query) //nolint:sqlclosecheck // closed with the database
	if err != nil {
		return err
	}
	rows, err := st.QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // Err tells
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
