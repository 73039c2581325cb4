package sqlite_test

import (
	"database/sql"
	"os"
	"path/filepath"
	"testing"

	"github.com/pressly/goose/v3"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/ledgertest"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
)

// TestMigrate: each migration is run over a file that is full.
func TestMigrate(t *testing.T) {
	open := func(t *testing.T, file string) ledger.Store {
		t.Helper()
		s, err := sqlite.Open(t.Context(), file)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	file := func(t *testing.T) string { return filepath.Join(t.TempDir(), "ledger.db") }
	ledgertest.Migrate(t, 1, 11, func(t *testing.T) ledger.Store { return open(t, file(t)) }, func(t *testing.T, version int64) ledgertest.Older {
		name := file(t)
		db, err := sql.Open("sqlite", name)
		if err != nil {
			t.Fatal(err)
		}
		p, err := goose.NewProvider(goose.DialectSQLite3, db, os.DirFS("migrations"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.UpTo(t.Context(), version); err != nil {
			t.Fatal(err)
		}
		return ledgertest.Older{
			DB:        db,
			Parameter: func(int) string { return "?" },
			SetLast: func(table string, n int64) error {
				_, err := db.Exec(`UPDATE sqlite_sequence SET seq = ? WHERE name = ?`, n, table)
				return err
			},
			Open: func(t *testing.T) ledger.Store {
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				return open(t, name)
			},
		}
	})
}
