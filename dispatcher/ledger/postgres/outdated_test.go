package postgres

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io"
	"io/fs"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/pgtest"
)

// The next version brings the schema up to date while a leader of this one writes and another stands by: the migration sees all that was
// written before it, nothing comes after it, and both are told why.
func TestOutdated(t *testing.T) {
	server := pgtest.Start(t)
	open := func(url string) *Store {
		t.Helper()
		s, err := Open(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	lead := func(s *Store) {
		t.Helper()
		if _, err := s.Lead(t.Context(), "test", time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	other := open(server.Database(t))
	lead(other)
	for range 3 {
		if err := admitOne(t.Context(), other); err != nil {
			t.Fatal(err)
		}
	}
	var moved bytes.Buffer
	if err := other.Export(t.Context(), &moved); err != nil {
		t.Fatal(err)
	}

	url := server.Database(t)
	leader, standby := open(url), open(url)
	lead(leader)
	db := database(t, url)
	writes, line := io.Pipe()
	imported, migrated := make(chan error, 1), make(chan error, 1)
	t.Cleanup(func() { _ = line.Close() })
	go func() { // a transaction that is as long as is wanted
		err := leader.Import(context.WithoutCancel(t.Context()), writes)
		_ = writes.CloseWithError(err)
		imported <- err
	}()
	write := func(b []byte) {
		t.Helper()
		if _, err := line.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	header := moved.Next(bytes.IndexByte(moved.Bytes(), '\n') + 1)
	write(header)
	until(t, db, `SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND granted`)
	go func() {
		_, err := up(context.WithoutCancel(t.Context()), db, nextMigrations(t))
		migrated <- err
	}()
	until(t, db, `SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted`)
	write(moved.Bytes())
	if err := line.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-imported, <-migrated); err != nil {
		t.Fatal(err)
	}

	for who, s := range map[string]*Store{"leader": leader, "standby": standby} {
		if _, err := s.Lead(t.Context(), who, time.Hour); !errors.Is(err, ledger.ErrOutdated) {
			t.Errorf("the %s leads: %v", who, err)
		}
	}
	if err := admitOne(t.Context(), leader); !errors.Is(err, ledger.ErrOutdated) {
		t.Errorf("the leader writes: %v", err)
	}
	if err := leader.Resign(t.Context()); err != nil {
		t.Error("resign:", err)
	}
	if s, err := Open(t.Context(), url); !errors.Is(err, ledger.ErrOutdated) {
		t.Errorf("opened: %v", err)
		if err == nil {
			_ = s.Close()
		}
	}
	var known, all, held int
	if err := db.QueryRow(`SELECT (SELECT count(*) FROM known_to_next), (SELECT count(*) FROM jobs), (SELECT count(*) FROM leader WHERE holder <> '')`).Scan(&known, &all, &held); err != nil {
		t.Fatal(err)
	}
	if known != 3 || all != 3 || held != 0 {
		t.Errorf("the migration has seen %d jobs of %d, of 3; %d lead", known, all, held)
	}
}

// nextMigrations are this version's, and one that changes no table which a writer has touched: those are locked in any case.
func nextMigrations(t *testing.T) fs.FS {
	t.Helper()
	next := fstest.MapFS{"09000_next.sql": {Data: []byte("-- +goose Up\nCREATE TABLE known_to_next AS SELECT id FROM jobs;\n")}}
	list, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range list {
		b, err := migrations.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		next[name[len("migrations/"):]] = &fstest.MapFile{Data: b}
	}
	return next
}

func database(t *testing.T, url string) *sql.DB {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	db := stdlib.OpenDB(*cfg)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// until asks until the answer is yes.
func until(t *testing.T, db *sql.DB, query string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		var yes bool
		if err := db.QueryRow(query).Scan(&yes); err != nil || time.Now().After(end) {
			t.Fatalf("waited a minute: %s: %v", query, err)
		}
		if yes {
			return
		}
	}
}

func admitOne(ctx context.Context, s *Store) error {
	id, now := jobs.NewID(), time.Now()
	_, err := s.Admit(ctx, ledger.Admission{
		Job:   jobs.Job{ID: id, Tenant: "t", Spec: &jobs.Spec{Image: "base"}},
		Entry: ledger.Entry{ID: id, Tenant: "t", Image: "base", State: jobs.StateQueued, AcceptedAt: now, ExpiresAt: now},
	})
	return err
}
