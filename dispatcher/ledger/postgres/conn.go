package postgres

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlstore"
)

// conn is the connection that writes. pgx prepares its statements once.
type conn struct {
	conn *pgx.Conn
	bind *binder
}

func connect(ctx context.Context, cfg *pgx.ConnConfig, b *binder) (sqlstore.Conn, error) {
	c, err := pgx.ConnectConfig(ctx, cfg.Copy())
	if err != nil {
		return nil, err
	}
	return &conn{conn: c, bind: b}, nil
}

// Run implements sqlstore.Conn: one round trip for all.
func (c *conn) Run(ctx context.Context, list []*sqlstore.Stmt) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var b pgx.Batch
	for _, st := range list {
		b.Queue(c.bind.bind(st.Query), texts(st.Args)...)
	}
	results := c.conn.SendBatch(ctx, &b)
	for _, st := range list {
		if err := answer(results, st); err != nil {
			_ = results.Close() // says the same
			return err
		}
	}
	return results.Close()
}

// texts gives arguments with what PostgreSQL takes for no text replaced by U+FFFD, as JSON has it: a reason from outside must not keep a
// job from ending.
func texts(args []any) []any {
	for i, a := range args {
		if s, ok := a.(string); ok && (!utf8.ValidString(s) || strings.ContainsRune(s, 0)) {
			args = slices.Clone(args)
			args[i] = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
		}
	}
	return args
}

func answer(results pgx.BatchResults, st *sqlstore.Stmt) error {
	if st.Scan == nil {
		tag, err := results.Exec()
		st.Rows = tag.RowsAffected()
		return err
	}
	rows, err := results.Query()
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := st.Scan(rows); err != nil {
			return err
		}
		st.Rows++
	}
	return rows.Err()
}

// Lost implements sqlstore.Conn. A connection whose transaction could not be rolled back is of no use either.
func (c *conn) Lost() bool { return c.conn.IsClosed() || c.conn.PgConn().TxStatus() != 'I' }

// Close implements sqlstore.Conn.
func (c *conn) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return c.conn.Close(ctx)
}

// Codes of errors (https://www.postgresql.org/docs/current/errcodes-appendix.html).
const (
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
)

// again tells of errors after which PostgreSQL itself says that the transaction may be tried again.
func again(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (e.Code == serializationFailure || e.Code == deadlockDetected)
}

// meaning tells what cannot be done now, but perhaps later, from what is wrong.
func meaning(err error) error {
	if err == nil || !unavailable(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ledger.ErrUnavailable, err)
}

func unavailable(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		for _, class := range []string{
			"08",    // connection exceptions
			"53",    // no disk, no memory, too many connections
			"57P",   // shut down, crashed, starting
			"57014", // statement_timeout
			"55P03", // lock_timeout
			"25P03", // idle_in_transaction_session_timeout
			"25006", // a replica, which cannot write: what leads to the server has not moved yet
			"58",    // the server's own I/O
			"XX",    // internal errors
			"40",    // tried often enough
		} {
			if strings.HasPrefix(e.Code, class) {
				return true
			}
		}
		return false
	}
	for _, is := range []error{driver.ErrBadConn, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, context.DeadlineExceeded} {
		if errors.Is(err, is) {
			return true
		}
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	_, ok := errors.AsType[net.Error](err)
	return ok || strings.Contains(err.Error(), "conn closed")
}
