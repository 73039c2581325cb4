package sqlite

import (
	"context"
	"database/sql"
	"errors"

	"github.com/paddockvm/paddock/dispatcher/ledger/sqlstore"
)

// conn is the connection that writes. Its statements are parsed once: their texts are the few in sqlstore.
type conn struct {
	conn  *sql.Conn
	stmts map[string]*sql.Stmt // by their text
}

func (f *opening) connect(ctx context.Context) (sqlstore.Conn, error) {
	c, err := f.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return &conn{conn: c, stmts: map[string]*sql.Stmt{}}, nil
}

// Run implements sqlstore.Conn.
func (c *conn) Run(ctx context.Context, list []*sqlstore.Stmt) error {
	for _, st := range list {
		if err := c.run(ctx, st); err != nil {
			return err
		}
	}
	return nil
}

func (c *conn) run(ctx context.Context, st *sqlstore.Stmt) error {
	s := c.stmts[st.Query]
	if s == nil {
		var err error
		if s, err = c.conn.PrepareContext(ctx, st.Query); err != nil {
			return err
		}
		c.stmts[st.Query] = s
	}
	if st.Scan == nil {
		r, err := s.ExecContext(ctx, st.Args...)
		if err != nil {
			return err
		}
		st.Rows, err = r.RowsAffected()
		return err
	}
	rows, err := s.QueryContext(ctx, st.Args...)
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // Err tells
	for rows.Next() {
		if err := st.Scan(rows); err != nil {
			return err
		}
		st.Rows++
	}
	return rows.Err()
}

// Lost implements sqlstore.Conn.
func (c *conn) Lost() bool { return false }

// Close implements sqlstore.Conn.
func (c *conn) Close() error {
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, c.conn.Close())...)
}
