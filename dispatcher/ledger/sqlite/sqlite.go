// Package sqlite keeps the ledger in one SQLite file, in WAL mode with synchronous=FULL: what a method says it has written survives
// the power's loss. It is for one dispatcher at a time; the file's lock keeps a second one out.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/paddockvm/paddock/dispatcher/ledger/sqlstore"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is a ledger.Store in a file.
type Store = sqlstore.Store

// Open opens the ledger, makes it where it is missing, and brings its schema up to date.
func Open(ctx context.Context, file string) (*Store, error) {
	db, err := storage(ctx, file)
	if err != nil {
		return nil, err
	}
	return sqlstore.Open(db), nil //nolint:contextcheck // open until Close
}

func storage(ctx context.Context, file string) (db sqlstore.Database, err error) {
	f := &opening{}
	if err := f.open(ctx, file); err != nil {
		return db, errors.Join(fmt.Errorf("open ledger %s: %w", file, err), f.close())
	}
	return sqlstore.Database{Connect: f.connect, Read: f.read, Release: f.release, Schema: f.schema, Dialect: dialect()}, nil
}

func dialect() sqlstore.Dialect {
	return sqlstore.Dialect{
		Bind:  func(query string) string { return query },
		Begin: `BEGIN IMMEDIATE`, Exclusive: true, Now: `CAST(unixepoch('subsec') * 1000000 AS INTEGER)`,
		Last: func(table string) string {
			return `SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = '` + table + `'), 0)`
		},
		SetLast: func(table string, n int64) []*sqlstore.Stmt {
			return []*sqlstore.Stmt{
				{Query: `DELETE FROM sqlite_sequence WHERE name = ?`, Args: []any{table}},
				{Query: `INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)`, Args: []any{table, n}},
			}
		},
		Error: func(err error) error { return err },
		Again: func(error) bool { return false }, // the file's lock keeps all others out
	}
}

// opening is a file as far as it has been opened.
type opening struct {
	db, read *sql.DB // of the connection that writes, and of those that read
	lock     *os.File
	schema   int64
}

// open opens one thing after the other; on error, close closes those that are open.
func (f *opening) open(ctx context.Context, file string) (err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	if f.lock, err = os.OpenFile(file+".lock", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if err := syscall.Flock(int(f.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.New("another dispatcher has it")
	}
	dsn := "file:" + (&url.URL{Path: file}).EscapedPath() + "?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(ON)"
	if f.db, err = sql.Open("sqlite", dsn); err != nil {
		return err
	}
	f.db.SetMaxOpenConns(1)
	if f.schema, err = migrate(ctx, f.db); err != nil {
		return err
	}
	if f.read, err = sql.Open("sqlite", dsn+"&_pragma=query_only(ON)"); err != nil {
		return err
	}
	f.read.SetMaxOpenConns(4)
	return f.read.PingContext(ctx)
}

// release closes what is open besides read.
func (f *opening) release() error {
	var errs []error
	if f.db != nil {
		errs = append(errs, f.db.Close())
	}
	if f.lock != nil {
		errs = append(errs, f.lock.Close())
	}
	return errors.Join(errs...)
}

func (f *opening) close() error {
	var err error
	if f.read != nil {
		err = f.read.Close()
	}
	return errors.Join(err, f.release())
}

// migrate gives the schema's version.
func migrate(ctx context.Context, db *sql.DB) (int64, error) {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return 0, err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, dir)
	if err != nil {
		return 0, err
	}
	have, known, err := p.GetVersions(ctx)
	if err != nil {
		return 0, err
	}
	if have > known { // goose would leave it as it is, and we would write into what we do not know
		return 0, sqlstore.Outdated(have, known)
	}
	_, err = p.Up(ctx)
	return known, err
}
