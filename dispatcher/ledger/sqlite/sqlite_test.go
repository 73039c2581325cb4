package sqlite_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/ledgertest"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
	"github.com/paddockvm/paddock/test/leak"
)

func TestMain(m *testing.M) {
	if file := os.Getenv(crashFile); file != "" {
		os.Exit(crashing(file))
	}
	leak.VerifyTestMain(m)
}

func TestHalfway(t *testing.T) {
	dir := t.TempDir()
	ledgertest.Halfway(t, func(t *testing.T, commit func(do func() error) error) ledger.Store {
		s, err := sqlite.OpenCommitting(t.Context(), filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-"), "ledger.db"), commit)
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestStore(t *testing.T) {
	dir := t.TempDir()
	ledgertest.Run(t, func(t *testing.T) ledger.Store {
		s, err := sqlite.Open(t.Context(), filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-"), "ledger.db"))
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}
