package ledgertest

import (
	"bytes"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// Older is an empty database whose schema is of an older version.
type Older struct {
	DB *sql.DB
	// Parameter gives the n-th parameter of a statement, from 1.
	Parameter func(n int) string
	// SetLast sets the last id that a table has counted.
	SetLast func(table string, n int64) error
	// Open closes the database, and opens the ledger in it.
	Open func(t *testing.T) ledger.Store
}

// Migrate fills a ledger, and for each version of the schema from first on that is older than newest a database with what that version keeps of
// it. Opened, which migrates it, a database must have the same as the first ledger, where that is of what the version kept, and work on.
func Migrate(t *testing.T, first, newest int64, open func(t *testing.T) ledger.Store, older func(t *testing.T, version int64) Older) {
	full := newSuite(t, open)
	full.fill()
	all, shown, told := readExport(t, full.exported()), full.everything(), full.webhooked()
	for _, h := range all.header.Tables {
		if len(all.rows[h.Name]) == 0 {
			t.Errorf("there is nothing in the table %s: nothing of it would be shown", h.Name)
		}
	}
	if all.header.Schema != newest {
		t.Fatalf("the schema's version is %d, and up to %d is tested", all.header.Schema, newest)
	}
	for version := first; version < newest; version++ {
		t.Run(fmt.Sprint("from ", version), func(t *testing.T) {
			o := older(t, version)
			kept := all.put(t, o)
			s := newSuite(t, o.Open)
			s.now = full.now
			got := readExport(t, s.exported())
			s.same("schema", newest, got.header.Schema)
			for _, h := range all.header.Tables {
				s.same("table "+h.Name, all.migrated(&h, kept), got.rows[h.Name])
			}
			s.same("the last ids", all.last(kept), got.last(kept))
			s.shows(shown, kept)
			if kept["deliveries"] != nil {
				s.same("webhooks", told, s.webhooked())
			}
			s.workOff()
		})
	}
}

// exportOf is an export, read. Its numbers are int64, its blobs as they are in JSON.
type exportOf struct {
	header struct {
		Schema int64
		Tables []tableOf
	}
	rows map[string][]map[string]any // by table; values by column
}

type tableOf struct {
	Name    string
	Columns []string
	Rows    int
	Last    int64
}

func readExport(t *testing.T, b []byte) *exportOf {
	t.Helper()
	e := &exportOf{rows: map[string][]map[string]any{}}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&e.header); err != nil {
		t.Fatal("export:", err)
	}
	for _, h := range e.header.Tables {
		for range h.Rows {
			var values []any
			if err := d.Decode(&values); err != nil {
				t.Fatalf("export of %s: %v", h.Name, err)
			}
			row := map[string]any{}
			for i, v := range values {
				if n, ok := v.(json.Number); ok {
					v, _ = n.Int64()
				}
				row[h.Columns[i]] = v
			}
			e.rows[h.Name] = append(e.rows[h.Name], row)
		}
	}
	return e
}

// put fills an older database, and gives the columns that it has, by table.
func (e *exportOf) put(t *testing.T, o Older) (kept map[string]map[string]bool) {
	t.Helper()
	kept = map[string]map[string]bool{}
	for _, h := range e.header.Tables {
		blobs := columnsOf(o.DB, h.Name)
		if blobs == nil {
			continue
		}
		kept[h.Name] = map[string]bool{}
		var names, places []string
		for _, c := range h.Columns {
			if _, has := blobs[c]; has {
				kept[h.Name][c] = true
				names, places = append(names, c), append(places, o.Parameter(len(names)+1))
			}
		}
		query := `INSERT INTO ` + h.Name + ` (` + strings.Join(names, ", ") + `) VALUES (` + strings.Join(places, ", ") + `)`
		if h.Name == "counters" {
			query += ` ON CONFLICT (name) DO UPDATE SET n = excluded.n`
		}
		for _, row := range e.rows[h.Name] {
			var args []any
			for _, c := range names {
				v := row[c]
				if s, ok := v.(string); ok && blobs[c] {
					b, err := base64.StdEncoding.DecodeString(s)
					if err != nil {
						t.Fatal(err)
					}
					v = b
				}
				args = append(args, v)
			}
			if _, err := o.DB.ExecContext(t.Context(), query, args...); err != nil {
				t.Fatalf("%s: %v", query, err)
			}
		}
		if h.Last > 0 {
			if err := o.SetLast(h.Name, h.Last); err != nil {
				t.Fatal(err)
			}
		}
	}
	if kept["jobs"] == nil {
		t.Fatal("this version has no jobs")
	}
	return kept
}

// columnsOf gives a table's columns, and which of them are blobs; nil where there is no such table.
func columnsOf(db *sql.DB, table string) map[string]bool {
	rows, err := db.Query(`SELECT * FROM ` + table + ` WHERE 1 = 0`)
	if err != nil {
		return nil
	}
	defer rows.Close()
	types, err := rows.ColumnTypes()
	if err != nil || rows.Err() != nil {
		return nil
	}
	columns := map[string]bool{}
	for _, c := range types {
		columns[c.Name()] = c.DatabaseTypeName() == "BLOB" || c.DatabaseTypeName() == "BYTEA"
	}
	return columns
}

// migrated are a table's rows as they are to be after a migration of what was kept of them.
func (e *exportOf) migrated(h *tableOf, kept map[string]map[string]bool) (rows []map[string]any) {
	if kept[h.Name] == nil && h.Name != "counters" {
		return nil
	}
	for _, full := range e.rows[h.Name] {
		row := map[string]any{}
		for c, v := range full {
			if !kept[h.Name][c] {
				v = made(h.Name+"."+c, full)
			}
			row[c] = v
		}
		rows = append(rows, row)
	}
	return rows
}

// made is what a migration makes of a column that was not there.
func made(column string, row map[string]any) any {
	switch column {
	case "jobs.ok", "jobs.dead", "counters.name", "counters.n": // from what was
		return row[column[strings.Index(column, ".")+1:]]
	case "jobs.spec_bytes":
		return int64(base64.StdEncoding.DecodedLen(len(row["spec"].(string))) - strings.Count(row["spec"].(string), "="))
	case "jobs.depends_on", "jobs.failed_on":
		return "[]"
	}
	switch row[column[strings.Index(column, ".")+1:]].(type) {
	case int64:
		return int64(0)
	case bool:
		return false
	default:
		return ""
	}
}

// last are the last ids that were counted, of tables that were kept.
func (e *exportOf) last(kept map[string]map[string]bool) map[string]int64 {
	last := map[string]int64{}
	for _, h := range e.header.Tables {
		if kept[h.Name] != nil {
			last[h.Name] = h.Last
		}
	}
	return last
}

// shows checks what the ledger shows against what the one showed from which it was filled.
func (s *suite) shows(want everything, kept map[string]map[string]bool) {
	s.Helper()
	got := s.everything()
	if kept["batches"] != nil { // jobs have had all of their columns since
		want.Workers = slices.Clone(want.Workers)
		for i := range want.Workers {
			if !kept["workers"]["offer"] {
				want.Workers[i].Offer = nil
			}
			if !kept["workers"]["drain_by"] {
				want.Workers[i].DrainBy = time.Time{}
			}
		}
		s.same("everything", want, got)
		return
	}
	s.same("jobs", want.Jobs, got.Jobs, gocmp.FilterPath(func(p gocmp.Path) bool {
		switch p.Last().String() {
		case ".Attempts", ".Batch", ".RedriveOf", ".RedrivenBy", ".RunAt":
			return true
		}
		return false
	}, gocmp.Ignore()))
	s.same("open jobs", len(want.Open), len(got.Open))
}

// workOff brings all to its end, as a dispatcher would, until nothing is left but what stays.
func (s *suite) workOff() {
	s.Helper()
	keyed := s.admission("t")
	keyed.Key = "key"
	if s.admit(keyed) == nil {
		s.Error("a key that was remembered is not any more")
	}
	for tenant, states := range map[string][]jobs.State{"t": {jobs.StateDead}, "other": {jobs.StateDead}} {
		for _, page := range s.pages(tenant, jobs.ListRequest{Limit: 1000, States: states}) {
			for _, j := range page {
				if j.RedrivenBy != "" {
					continue
				}
				if ok, err := s.Drop(s.ctx(), tenant, j.ID); err != nil || !ok {
					s.Errorf("drop of %s: %v, %v", j.ID, ok, err)
				}
			}
		}
	}
	for _, e := range s.entries() {
		h := jobs.Held{Job: e.ID, Attempt: e.Attempt, Epoch: e.Epoch}
		if e.State == jobs.StateQueued && e.Cancel {
			s.endQueued(e.ID, e.Attempt, true)
			continue
		}
		if e.State == jobs.StateQueued {
			h.Attempt, h.Epoch = e.Attempt+1, e.Epoch+1
			s.lease(h, true)
		}
		s.finish(h, true)
	}
	s.same("open jobs", []ledger.Entry(nil), s.entries())
	batches, err := s.Batches(s.ctx(), "t", "", 1000)
	if err != nil {
		s.Error("batches:", err)
	}
	for _, b := range batches {
		if b.Ended != b.Total || b.EndedAt.IsZero() {
			s.Errorf("the batch %s has ended %d of %d, at %v", b.ID, b.Ended, b.Total, b.EndedAt)
		}
	}
	for _, o := range s.outgoing(1000) {
		s.published(o.ID)
	}
	var spread []ledger.Spread
	hooks, err := s.Hooks(s.ctx(), 1000)
	if err != nil {
		s.Error("hooks:", err)
	}
	for _, h := range hooks {
		spread = append(spread, ledger.Spread{Hook: h.ID})
	}
	if err := s.webhooks().SpreadHooks(s.ctx(), spread); err != nil {
		s.Error("spread:", err)
	}
	if _, err := s.Forget(s.ctx(), s.now.Add(time.Hour), 1000); err != nil {
		s.Error("forget:", err)
	}
	left := s.everything()
	if len(left.Open)+len(left.Jobs)+len(left.Outbox)+len(left.Batches)+len(left.Hooks) > 0 {
		s.Errorf("there is left: %+v", left)
	}
}
