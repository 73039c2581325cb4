package postgres_test

import (
	"path/filepath"
	"testing"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/ledgertest"
	"github.com/paddockvm/paddock/dispatcher/ledger/postgres"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
	"github.com/paddockvm/paddock/test/pgtest"
)

// TestMove: from SQLite to PostgreSQL and back nothing is lost, and nothing else comes.
func TestMove(t *testing.T) {
	server := pgtest.Start(t)
	file := func(t *testing.T) ledger.Store {
		t.Helper()
		s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "ledger.db"))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	database := func(t *testing.T) ledger.Store {
		t.Helper()
		s, err := postgres.Open(t.Context(), server.Database(t))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ledgertest.Move(t, file, database, file, database)
}
