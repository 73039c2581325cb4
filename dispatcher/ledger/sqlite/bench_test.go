package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/ledgertest"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
)

func BenchmarkStore(b *testing.B) {
	ledgertest.Bench(b, func(b *testing.B) ledger.Store {
		b.Helper()
		s, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "ledger.db"))
		if err != nil {
			b.Fatal(err)
		}
		return s
	})
}
