package postgres_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/ledgertest"
	"github.com/paddockvm/paddock/dispatcher/ledger/postgres"
	"github.com/paddockvm/paddock/test/pgtest"
)

// TestMigrate: each migration is run over a database that is full.
func TestMigrate(t *testing.T) {
	server := pgtest.Start(t)
	open := func(t *testing.T, url string) ledger.Store {
		t.Helper()
		s, err := postgres.Open(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ledgertest.Migrate(t, 4, 11, func(t *testing.T) ledger.Store { return open(t, server.Database(t)) }, func(t *testing.T, version int64) ledgertest.Older {
		url := server.Database(t)
		cfg, err := pgx.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		db := stdlib.OpenDB(*cfg)
		p, err := goose.NewProvider(goose.DialectPostgres, db, os.DirFS("migrations"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.UpTo(t.Context(), version); err != nil {
			t.Fatal(err)
		}
		return ledgertest.Older{
			DB:        db,
			Parameter: func(n int) string { return fmt.Sprint("$", n) },
			SetLast: func(table string, n int64) error {
				_, err := db.Exec(`SELECT setval($1::regclass, $2)`, table+"_id_seq", n)
				return err
			},
			Open: func(t *testing.T) ledger.Store {
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				return open(t, url)
			},
		}
	})
}
