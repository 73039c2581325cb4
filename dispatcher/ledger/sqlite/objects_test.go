package sqlite_test

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
)

// TestObjectsByIndex: which jobs name objects is asked often, and of many jobs.
func TestObjectsByIndex(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ledger.db")
	s, err := sqlite.Open(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var a, b, c int
	var plan string
	if err := db.QueryRow(`EXPLAIN QUERY PLAN SELECT id, tenant, state, spec, result FROM object_jobs WHERE id > 'x' ORDER BY id LIMIT 500`).Scan(&a, &b, &c, &plan); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(plan, "jobs_objects") {
		t.Errorf("the index is not used: %s", plan)
	}
}
