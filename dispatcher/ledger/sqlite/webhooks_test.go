package sqlite_test

import (
	"database/sql"
	"path/filepath"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
	"github.com/paddockvm/paddock/dispatcher/webhook/webhooktest"
	"github.com/paddockvm/paddock/jobs"
)

func TestWebhooks(t *testing.T) {
	webhooktest.TestStore(t, func(t *testing.T) webhooktest.Rig {
		file := filepath.Join(t.TempDir(), "ledger.db")
		s, err := sqlite.Open(t.Context(), file)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		return webhooktest.Rig{Store: s, AddHook: func(h ledger.Hook) { addHook(t, s, file, h) }}
	})
}

// addHook admits a job with what the hook says of it, and puts the hook in beside the ledger.
func addHook(t *testing.T, s ledger.Store, file string, h ledger.Hook) {
	t.Helper()
	id, now := jobs.NewID(), time.Now()
	spec := &jobs.Spec{Image: "base", Labels: h.Labels, Callbacks: h.Callbacks}
	if _, err := s.Admit(t.Context(), ledger.Admission{
		Job:   jobs.Job{ID: id, Tenant: h.Tenant, Labels: h.Labels, Batch: h.Batch, Spec: spec},
		Entry: ledger.Entry{ID: id, Tenant: h.Tenant, Batch: h.Batch, Image: "base", State: jobs.StateQueued, AcceptedAt: now, ExpiresAt: now},
	}); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(`INSERT INTO hooks (tenant, type, job, body) VALUES (?, ?, ?, ?)`, h.Tenant, h.Type, id, h.Event); err != nil {
		t.Fatal(err)
	}
}
