// Package postgres keeps the ledger in a PostgreSQL database (14 or newer), which several dispatchers may have open; one of them leads.
// What a method says it has written survives the server's loss of power, as far as the server's own fsync does. The URL must lead to the
// server itself, or a pooler that keeps sessions: statements are prepared.
package postgres

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/paddockvm/paddock/dispatcher/ledger/sqlstore"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is a ledger.Store in a PostgreSQL database.
type Store = sqlstore.Store

const (
	// within bounds what the writer waits for an answer: a server that is there and says nothing is as good as none.
	within = 15 * time.Second
	// readWithin bounds what a reader waits for the next bytes of one: longer than statement_timeout, which the server keeps.
	readWithin = 20 * time.Second
	// connections that read at once, at most.
	readers = 8
)

// settings are those of each session, unless the URL has others. A transaction that its client has begun and left, because it was
// stopped or cut off, must not keep the leadership: it is ended long before.
func settings() map[string]string {
	return map[string]string{
		"application_name": "paddock", "statement_timeout": "10s", "lock_timeout": "5s", "idle_in_transaction_session_timeout": "5s", "synchronous_commit": "on",
	}
}

// Open opens the ledger that a URL names (postgres://user@host/database) and brings its schema up to date; several may do so at once.
func Open(ctx context.Context, url string) (*Store, error) {
	db, err := storage(ctx, url)
	if err != nil {
		return nil, err
	}
	return sqlstore.Open(db), nil //nolint:contextcheck // open until Close
}

func storage(ctx context.Context, url string) (db sqlstore.Database, err error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return db, fmt.Errorf("open ledger: %w", err) // pgx keeps the password out of it
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 5 * time.Second
	}
	for name, value := range settings() {
		if _, given := cfg.RuntimeParams[name]; !given {
			cfg.RuntimeParams[name] = value
		}
	}
	where := fmt.Sprintf("%s:%d/%s", cfg.Host, cfg.Port, cfg.Database)
	schema, err := migrate(ctx, *cfg.Copy())
	if err != nil {
		return db, fmt.Errorf("open ledger %s: %w", where, meaning(err))
	}
	reading := cfg.Copy()
	reading.RuntimeParams["default_transaction_read_only"] = "on"
	reading.DialFunc = heard(reading.DialFunc, readWithin)
	read := stdlib.OpenDB(*reading)
	read.SetMaxOpenConns(readers)
	read.SetMaxIdleConns(readers)
	b := &binder{}
	return sqlstore.Database{
		Connect: func(ctx context.Context) (sqlstore.Conn, error) { return connect(ctx, cfg, b) },
		Read:    read,
		Schema:  schema,
		Dialect: sqlstore.Dialect{
			Bind: b.bind, Begin: `BEGIN`, Share: ` FOR SHARE`,
			Keep:    `SELECT pg_advisory_xact_lock_shared(` + strconv.Itoa(writing) + `)`,
			Version: `SELECT max(version_id) FROM goose_db_version`,
			Now:     `CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)`, Error: meaning, Again: again,
			Snapshot:  &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true},
			Unhurried: []string{`SET LOCAL statement_timeout = 0`, `SET LOCAL idle_in_transaction_session_timeout = 0`},
			Last: func(table string) string {
				return `SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM ` + table + `_id_seq`
			},
			SetLast: setLast,
		},
	}, nil
}

// setLast makes a sequence go on after n.
func setLast(table string, n int64) []*sqlstore.Stmt {
	return []*sqlstore.Stmt{{Query: `SELECT setval(CAST(? AS regclass), ?, ?)`, Args: []any{table + "_id_seq", max(n, 1), n > 0}, Scan: func(sqlstore.Row) error { return nil }}}
}

// writing is an advisory lock, which nobody else in the database should use: who writes shares it until his transaction's end, who migrates has it for
// himself. So a migration sees all that was written before it, and who wrote that is outdated from then on.
const writing = 0x706164646f636b // "paddock"

// keeper has goose, where there is something to migrate, wait for those who write, and those wait for it.
type keeper struct{ lock.SessionLocker }

// SessionLock implements lock.SessionLocker. After an error what it has is given back with the connection.
func (k keeper) SessionLock(ctx context.Context, conn *sql.Conn) error {
	err := k.SessionLocker.SessionLock(ctx, conn)
	if err == nil {
		_, err = conn.ExecContext(ctx, `SELECT pg_advisory_lock($1)`, writing)
	}
	return err
}

// SessionUnlock implements lock.SessionLocker.
func (k keeper) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, `SELECT pg_advisory_unlock($1)`, writing)
	return errors.Join(err, k.SessionLocker.SessionUnlock(ctx, conn))
}

// migrate gives the schema's version.
func migrate(ctx context.Context, cfg pgx.ConnConfig) (schema int64, err error) {
	cfg.RuntimeParams = maps.Clone(cfg.RuntimeParams)
	cfg.RuntimeParams["statement_timeout"], cfg.RuntimeParams["lock_timeout"] = "0", "0" // a large ledger takes its time, and another may be at it
	cfg.RuntimeParams["idle_in_transaction_session_timeout"] = "0"
	db := stdlib.OpenDB(cfg)
	dir, err := fs.Sub(migrations, "migrations")
	if err == nil {
		schema, err = up(ctx, db, dir)
	}
	return schema, errors.Join(err, db.Close())
}

func up(ctx context.Context, db *sql.DB, dir fs.FS) (int64, error) {
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return 0, err
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, dir, goose.WithSessionLocker(keeper{locker}))
	if err != nil {
		return 0, err
	}
	if _, err := p.Up(ctx); err != nil {
		return 0, err
	}
	have, known, err := p.GetVersions(ctx)
	if err == nil && have > known { // goose has left it as it is, and we would write into what we do not know
		err = sqlstore.Outdated(have, known)
	}
	return known, err
}

// binder numbers parameters, each statement's once.
type binder struct{ known sync.Map }

func (b *binder) bind(query string) string {
	if s, ok := b.known.Load(query); ok {
		return s.(string)
	}
	parts := strings.Split(query, "?")
	var s strings.Builder
	s.WriteString(parts[0])
	for i, part := range parts[1:] {
		s.WriteString("$" + strconv.Itoa(i+1) + part)
	}
	b.known.Store(query, s.String())
	return s.String()
}
