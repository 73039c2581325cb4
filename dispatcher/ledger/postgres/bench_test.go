package postgres_test

import (
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/ledgertest"
	"github.com/paddockvm/paddock/dispatcher/ledger/postgres"
	"github.com/paddockvm/paddock/test/pgtest"
)

func BenchmarkStore(b *testing.B) {
	server := pgtest.Start(b)
	ledgertest.Bench(b, func(b *testing.B) ledger.Store {
		b.Helper()
		s, err := postgres.Open(b.Context(), server.Database(b))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Lead(b.Context(), "bench", time.Hour); err != nil {
			b.Fatal(err)
		}
		return s
	})
}
