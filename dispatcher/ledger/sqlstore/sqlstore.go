// Package sqlstore is the ledger in SQL: every statement once, for the databases that dispatcher/ledger/sqlite and
// dispatcher/ledger/postgres open. It keeps to what both understand: parameters are ?, each used once; times are microseconds since 1970,
// 0 for never; truths are columns that stand in a condition by themselves; what is not asked for by SQL is JSON.
//
// All writes go through one goroutine and one connection: see writer.go. It imports ledger and jobs, and no database's driver.
package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
)

// Database is what a Store needs of a database whose schema is up to date. The Store closes it.
type Database struct {
	// Connect gives a connection for the one who writes. It is called again when the last one was lost.
	Connect func(ctx context.Context) (Conn, error)
	// Read gives connections for those who read.
	Read *sql.DB
	// Release gives back the rest, when all else is closed; nil for nothing.
	Release func() error
	// Schema is the version of the schema.
	Schema  int64
	Dialect Dialect
}

// Dialect is in what databases differ.
type Dialect struct {
	// Bind gives a statement, which has ? for its parameters, as the database wants it.
	Bind func(query string) string
	// Begin begins a transaction that writes.
	Begin string
	// Exclusive says that nobody else can write while the database is open.
	Exclusive bool
	// Share follows a SELECT whose rows nobody may change until the transaction's end; empty where nobody can.
	Share string
	// Keep keeps the schema as it is until the transaction's end, and waits for who changes it; Version is a query for its version. Empty where
	// nobody else can change it.
	Keep, Version string
	// Now is the time by the database's clock, in microseconds.
	Now string
	// Snapshot begins a transaction that sees one moment all along; nil where each does.
	Snapshot *sql.TxOptions
	// Unhurried are statements that let a transaction take its time.
	Unhurried []string
	// Last is a query for the last id that a table has counted, SetLast what sets it.
	Last    func(table string) string
	SetLast func(table string, n int64) []*Stmt
	// Error gives an error its meaning: what the database could not be reached for wraps ledger.ErrUnavailable.
	Error func(err error) error
	// Again tells of errors after which nothing of the transaction is there and it may go well at the next try.
	Again func(err error) bool
}

// Conn is a connection that writes. It is used by one goroutine.
type Conn interface {
	// Run runs statements in their order until one of them fails, together where that costs less than one after the other.
	Run(ctx context.Context, list []*Stmt) error
	// Lost tells that the connection is of no more use; whether its last transaction was committed is then unknown.
	Lost() bool
	Close() error
}

// Stmt is a statement and what came of it.
type Stmt struct {
	Query string // with ? for parameters
	Args  []any
	// Scan is called for each row of the answer; nil for a statement that gives none.
	Scan func(row Row) error
	// Rows is how many rows it changed, or gave.
	Rows int64
}

// Row is one row of an answer.
type Row interface{ Scan(into ...any) error }

// Store is a ledger.Store in a database.
type Store struct {
	write *writer
	read  *reader
	stop  context.CancelFunc
	// hooked has a token when there are hooks.
	hooked  chan struct{}
	batches arrivals

	dialect Dialect
	schema  int64
	release func() error
	closing sync.Once
	closed  error // what closing gave
}

var _ ledger.Store = (*Store)(nil)

// Open gives the ledger in a database.
func Open(db Database) *Store {
	run, stop := context.WithCancel(context.Background())
	s := &Store{write: newWriter(db), read: &reader{db: db.Read, dialect: db.Dialect}, stop: stop, hooked: make(chan struct{}, 1), batches: newArrivals(), release: db.Release, dialect: db.Dialect, schema: db.Schema}
	go s.write.run(run)
	return s
}

// Close ends the ledger. What was not handed in yet is refused. Closing again does nothing.
func (s *Store) Close() error {
	s.stop()
	<-s.write.end
	s.closing.Do(func() {
		errs := []error{s.read.db.Close(), s.write.close()} // the statements go with their connections
		if s.release != nil {
			errs = append(errs, s.release())
		}
		s.closed = errors.Join(errs...)
	})
	return s.closed
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}
