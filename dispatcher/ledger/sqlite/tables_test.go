package sqlite_test

import (
	"bytes"
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
)

// TestExportHasAllTables: a table that a migration makes is moved too, or stands here with a reason.
func TestExportHasAllTables(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ledger.db")
	s, err := sqlite.Open(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var out bytes.Buffer
	if err := s.Export(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Query(`SELECT name FROM sqlite_master WHERE type = 'table'`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		switch name {
		case "goose_db_version", "sqlite_sequence": // in the header
		case "leader": // of the database, not of what is in it
		default:
			if !bytes.Contains(out.Bytes(), fmt.Appendf(nil, "%q", name)) {
				t.Errorf("the table %s is not exported", name)
			}
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
}
