package postgres

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/test/pgtest"
)

// A server that stands still ends a read that nothing else bounds; one that answers late, or whose connection was idle, does not; and a
// context ends it before.
func TestSilentServer(t *testing.T) {
	s := pgtest.Start(t)
	cfg, err := pgx.ParseConfig(s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	const within = 3 * time.Second // a server on a busy machine may take one or two to say something
	cfg.DialFunc = heard(cfg.DialFunc, within)
	db := stdlib.OpenDB(*cfg)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	read := func(ctx context.Context) error {
		var n sql.NullString
		return db.QueryRowContext(ctx, `SELECT CAST(pg_sleep(0.5) AS TEXT)`).Scan(&n)
	}
	if err := read(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(within + time.Second)
	if err := read(t.Context()); err != nil {
		t.Fatalf("after an idle time: %v", err)
	}
	s.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
	defer cancel()
	if err := read(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a read that its context has ended: %v", err)
	}
	s.Resume()
	if err := read(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Pause()
	defer s.Resume()
	start := time.Now()
	if err := meaning(read(t.Context())); !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("a read from a server that stands still: %v", err)
	}
	if took := time.Since(start); took < within {
		t.Errorf("it ended after %v, before %v", took, within)
	}
}
