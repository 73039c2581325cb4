package sqlstore

import (
	"bufio"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// header is an export's first line. Rows follow in the order of its tables, one a line: a list of the columns' values.
type header struct {
	Format string        `json:"format"`
	Schema int64         `json:"schema"`
	Tables []headerTable `json:"tables"`
}

type headerTable struct {
	Name    string   `json:"name"`
	Columns []string `json:"columns"`
	Rows    int64    `json:"rows"`
	// Last is the last id that was counted, of rows that are gone too.
	Last int64 `json:"last,omitempty"`
}

// trailer is an export's last line.
type trailer struct {
	SHA256 string `json:"sha256"` // of all lines before it
}

const format = "paddock ledger"

// Export implements ledger.Store.
func (s *Store) Export(ctx context.Context, w io.Writer) (err error) {
	tx, err := s.read.db.BeginTx(ctx, s.dialect.Snapshot)
	if err != nil {
		return s.dialect.Error(err)
	}
	defer func() { err = errors.Join(s.dialect.Error(err), tx.Rollback()) }() // it has written nothing
	for _, q := range s.dialect.Unhurried {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return err
		}
	}
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), 1<<16)
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	h := header{Format: format, Schema: s.schema}
	for _, t := range tables() {
		ht, err := s.describe(ctx, tx, &t)
		if err != nil {
			return fmt.Errorf("table %s: %w", t.name, err)
		}
		h.Tables = append(h.Tables, ht)
	}
	if err := lines.Encode(h); err != nil {
		return err
	}
	for _, t := range tables() {
		if err := exportRows(ctx, tx, &t, lines); err != nil {
			return fmt.Errorf("table %s: %w", t.name, err)
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	end, err := json.Marshal(trailer{hex.EncodeToString(sum.Sum(nil))})
	if err != nil {
		return err
	}
	_, err = w.Write(append(end, '\n'))
	return err
}

// describe counts a table's rows, and checks that all of its columns are moved.
func (s *Store) describe(ctx context.Context, tx *sql.Tx, t *table) (h headerTable, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT * FROM `+t.name+` WHERE 1 = 0`)
	if err != nil {
		return h, err
	}
	defer rows.Close() //nolint:errcheck // there are none
	have, err := rows.Columns()
	if err := errors.Join(err, rows.Err()); err != nil {
		return h, err
	}
	_ = rows.Close() // the transaction's connection is one
	h = headerTable{Name: t.name, Columns: t.names()}
	if want := slices.Sorted(slices.Values(h.Columns)); !slices.Equal(slices.Sorted(slices.Values(have)), want) {
		return h, fmt.Errorf("it has the columns %q, and %q would be moved", have, want)
	}
	if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM `+t.name).Scan(&h.Rows); err != nil {
		return h, err
	}
	if t.counts {
		err = tx.QueryRowContext(ctx, s.dialect.Last(t.name)).Scan(&h.Last)
	}
	return h, err
}

func exportRows(ctx context.Context, tx *sql.Tx, t *table, lines *json.Encoder) error {
	rows, err := tx.QueryContext(ctx, `SELECT `+strings.Join(t.names(), ", ")+` FROM `+t.name+` ORDER BY `+t.key)
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // Err tells
	into := t.values()
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		for i, c := range t.columns {
			if b, ok := into[i].(*[]byte); ok && c.kind == blob && *b == nil {
				*b = []byte{} // SQLite's driver gives nil for an empty one
			}
		}
		if err := lines.Encode(into); err != nil {
			return err
		}
	}
	return rows.Err()
}

// values are places for a row's values, which JSON writes and reads as they are in a line.
func (t *table) values() []any {
	into := make([]any, len(t.columns))
	for i, c := range t.columns {
		switch c.kind {
		case text:
			into[i] = new(string)
		case number:
			into[i] = new(int64)
		case truth:
			into[i] = new(bool)
		case blob, null:
			into[i] = new([]byte)
		}
	}
	return into
}
