package sqlstore_test

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlstore"
	"github.com/paddockvm/paddock/jobs"
)

// Whoever lists what has not ended, or what is dead, does not wait for all to be read that has ended well, nor who lists what runs for all that waits; nor is a page ever sorted.
func TestListsByIndex(t *testing.T) {
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
	for _, c := range []struct {
		index string
		q     jobs.ListRequest
	}{
		{"jobs_list", jobs.ListRequest{}},
		{"jobs_list", jobs.ListRequest{States: []jobs.State{jobs.StateEnded, jobs.StateDead}}},
		{"jobs_list", jobs.ListRequest{States: []jobs.State{jobs.StateRunning, jobs.StateEnded}}},
		{"jobs_dead", jobs.ListRequest{States: []jobs.State{jobs.StateDead}}},
		{"jobs_held", jobs.ListRequest{States: []jobs.State{jobs.StateRunning}}},
		{"jobs_held", jobs.ListRequest{States: []jobs.State{jobs.StateLeased, jobs.StateRunning}}},
		{"jobs_open", jobs.ListRequest{States: []jobs.State{jobs.StateQueued}}},
		{"jobs_open", jobs.ListRequest{States: []jobs.State{jobs.StateQueued, jobs.StateRunning}}},
		{"jobs_open", jobs.ListRequest{States: []jobs.State{jobs.StateQueued, jobs.StateLeased, jobs.StateRunning}}},
		{"jobs_batch", jobs.ListRequest{Batch: "b"}},
		{"jobs_batch", jobs.ListRequest{Batch: "b", States: []jobs.State{jobs.StateEnded}}},
		{"jobs_batch", jobs.ListRequest{Batch: "b", States: []jobs.State{jobs.StateRunning}}},
		{"jobs_batch", jobs.ListRequest{Batch: "b", States: []jobs.State{jobs.StateDead}}},
	} {
		for _, before := range []string{"", "x"} {
			c.q.Before, c.q.Limit = before, 50
			query, args := sqlstore.Listing("t", c.q)
			if plan := planOf(t, db, query, args...); !strings.Contains(plan, "USING INDEX "+c.index+" ") || strings.Contains(plan, "ORDER BY") {
				t.Errorf("%+v: want the index %s, and its order:\n%s", c.q, c.index, plan)
			}
		}
	}
}

func planOf(t *testing.T, db *sql.DB, query string, args ...any) (plan string) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `EXPLAIN QUERY PLAN `+query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		plan += fmt.Sprintln(detail)
	}
	if rows.Err() != nil {
		t.Fatal(rows.Err())
	}
	return plan
}
