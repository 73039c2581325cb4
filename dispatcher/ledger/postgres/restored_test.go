package postgres_test

import (
	"errors"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/postgres"
	"github.com/paddockvm/paddock/test/pgtest"
)

// The database is put back to what it was before an election: its term is no other leader's, and who won it writes nothing any more.
func TestRestored(t *testing.T) {
	server := pgtest.Start(t)
	url := server.Database(t) // test1
	open := func() *postgres.Store {
		s, err := postgres.Open(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	lead := func(s *postgres.Store, who string) int64 {
		term, err := s.Lead(t.Context(), who, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return term
	}
	first, lost, next := open(), open(), open()
	lead(first, "first")
	if err := first.Resign(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Exec(t, "test1", `CREATE TABLE backup AS SELECT * FROM leader`)
	of := lead(lost, "lost")
	if _, err := lost.Register(t.Context(), "w", time.Now()); err != nil {
		t.Fatal("the leader cannot write:", err)
	}
	server.Exec(t, "test1", `UPDATE leader SET (holder, term, renewed, ttl) = (SELECT holder, term, renewed, ttl FROM backup)`)
	if term := lead(next, "next"); term == of {
		t.Errorf("the term %d was given twice", term)
	}
	if _, err := lost.Register(t.Context(), "w", time.Now()); !errors.Is(err, ledger.ErrNotLeader) {
		t.Errorf("a write of a term that the database knows nothing of: %v", err)
	}
}
