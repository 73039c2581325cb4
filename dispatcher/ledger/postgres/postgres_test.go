package postgres_test

import (
	"sync"
	"testing"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/ledgertest"
	"github.com/paddockvm/paddock/dispatcher/ledger/postgres"
	"github.com/paddockvm/paddock/test/leak"
	"github.com/paddockvm/paddock/test/pgtest"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

// databases gives each test a database of its own, the same each time.
type databases struct {
	server *pgtest.Server
	mu     sync.Mutex
	urls   map[string]string
}

func (d *databases) of(t *testing.T) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.urls == nil {
		d.urls = map[string]string{}
	}
	if d.urls[t.Name()] == "" {
		d.urls[t.Name()] = d.server.Database(t)
	}
	return d.urls[t.Name()]
}

func (d *databases) open(t *testing.T) ledger.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), d.of(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	d := &databases{server: pgtest.Start(t)}
	t.Run("one", func(t *testing.T) { ledgertest.Run(t, d.open) })
	t.Run("shared", func(t *testing.T) { ledgertest.RunShared(t, d.open) })
}

func TestHalfway(t *testing.T) {
	d := &databases{server: pgtest.Start(t)}
	open := func(t *testing.T, commit func(do func() error) error) ledger.Store {
		t.Helper()
		s, err := postgres.OpenCommitting(t.Context(), d.of(t), commit)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	t.Run("one", func(t *testing.T) { ledgertest.Halfway(t, open) })
	t.Run("shared", func(t *testing.T) { ledgertest.HalfwayShared(t, open) })
}
