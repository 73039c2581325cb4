package postgres_test

import (
	"encoding/hex"
	"fmt"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/postgres"
	"github.com/paddockvm/paddock/dispatcher/webhook/webhooktest"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/pgtest"
)

func TestWebhooks(t *testing.T) {
	server := pgtest.Start(t)
	webhooktest.TestStore(t, func(t *testing.T) webhooktest.Rig {
		url := server.Database(t)
		s, err := postgres.Open(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		if _, err := s.Lead(t.Context(), "test", time.Hour); err != nil {
			t.Fatal(err)
		}
		database, _, _ := strings.Cut(path.Base(url), "?")
		return webhooktest.Rig{Store: s, AddHook: func(h ledger.Hook) { addHook(t, s, server, database, h) }}
	})
}

// addHook admits a job with what the hook says of it, and puts the hook in beside the ledger.
func addHook(t *testing.T, s ledger.Store, server *pgtest.Server, database string, h ledger.Hook) {
	t.Helper()
	id, now := jobs.NewID(), time.Now()
	spec := &jobs.Spec{Image: "base", Labels: h.Labels, Callbacks: h.Callbacks}
	if _, err := s.Admit(t.Context(), ledger.Admission{
		Job:   jobs.Job{ID: id, Tenant: h.Tenant, Labels: h.Labels, Batch: h.Batch, Spec: spec},
		Entry: ledger.Entry{ID: id, Tenant: h.Tenant, Batch: h.Batch, Image: "base", State: jobs.StateQueued, AcceptedAt: now, ExpiresAt: now},
	}); err != nil {
		t.Fatal(err)
	}
	server.Exec(t, database, fmt.Sprintf(`INSERT INTO hooks (tenant, type, job, body) VALUES ('%s', '%s', '%s', '\x%s')`, h.Tenant, h.Type, id, hex.EncodeToString(h.Event)))
}
