package sqlstore

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"reflect"
	"slices"

	"github.com/paddockvm/paddock/dispatcher/ledger"
)

// Import implements ledger.Store.
func (s *Store) Import(ctx context.Context, r io.Reader) error {
	in := &lines{in: bufio.NewReaderSize(r, 1<<20), sum: sha256.New()}
	begun := false
	return s.write.do(ctx, op{alone: true, do: func(tx *tx) error {
		if begun {
			return errors.New("the import was interrupted: it can be begun again")
		}
		begun = true
		return s.importAll(tx, in)
	}})
}

func (s *Store) importAll(tx *tx, in *lines) error {
	var h header
	if err := in.next(&h); err != nil {
		return fmt.Errorf("first line: %w", err)
	}
	if h.Format != format || h.Schema != s.schema {
		return fmt.Errorf("it is a %q of the schema %d, and this Paddock reads a %q of the schema %d", h.Format, h.Schema, format, s.schema)
	}
	for _, q := range s.dialect.Unhurried {
		if _, err := tx.exec(q); err != nil {
			return err
		}
	}
	all := tables()
	if len(h.Tables) != len(all) {
		return fmt.Errorf("it has %d tables, want %d", len(h.Tables), len(all))
	}
	for i := range all {
		if err := isEmpty(tx, &all[i]); err != nil {
			return err
		}
	}
	for i := range all {
		if err := s.importTable(tx, in, &all[i], h.Tables[i]); err != nil {
			return fmt.Errorf("table %s: %w", all[i].name, err)
		}
	}
	return in.end()
}

func isEmpty(tx *tx, t *table) error {
	if t.name == "counters" {
		return nil // of what was, and is gone
	}
	some, err := tx.scan(func(Row) error { return nil }, `SELECT 1 FROM `+t.name+` LIMIT 1`)
	if err == nil && some {
		err = fmt.Errorf("%w: there is something in the table %s", ledger.ErrNotEmpty, t.name)
	}
	return err
}

func (s *Store) importTable(tx *tx, in *lines, t *table, h headerTable) error {
	if h.Name != t.name || !slices.Equal(h.Columns, t.names()) {
		return fmt.Errorf("it has %s with the columns %q there, want %q", h.Name, h.Columns, t.names())
	}
	query := t.insert()
	var list []*Stmt
	for n := range h.Rows {
		row := t.values()
		if err := in.next(&row); err != nil {
			return fmt.Errorf("row %d of %d: %w", n+1, h.Rows, err)
		}
		if len(row) != len(t.columns) {
			return fmt.Errorf("row %d of %d has %d values", n+1, h.Rows, len(row))
		}
		for i := range row {
			if row[i] == nil && t.columns[i].kind == null {
				continue
			}
			if row[i] == nil && t.columns[i].kind == blob {
				row[i] = []byte{} // as it was exported from SQLite
				continue
			}
			v := reflect.ValueOf(row[i])
			if v.Kind() != reflect.Pointer || v.IsNil() {
				return fmt.Errorf("row %d of %d: %s is null", n+1, h.Rows, t.columns[i].name)
			}
			row[i] = v.Elem().Interface()
		}
		if list = append(list, &Stmt{Query: query, Args: row}); len(list) == 500 || n == h.Rows-1 {
			if err := tx.all(list...); err != nil {
				return err
			}
			list = list[:0]
		}
	}
	if !t.counts {
		return nil
	}
	return tx.all(s.dialect.SetLast(t.name, h.Last)...)
}

// lines reads lines of JSON and sums them up.
type lines struct {
	in  *bufio.Reader
	sum hash.Hash
}

func (l *lines) read() ([]byte, error) {
	b, err := l.in.ReadBytes('\n')
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

func (l *lines) next(into any) error {
	b, err := l.read()
	if err != nil {
		return err
	}
	l.sum.Write(b)
	return json.Unmarshal(b, into)
}

// end reads the last line.
func (l *lines) end() error {
	b, err := l.read()
	if err != nil {
		return fmt.Errorf("last line: %w", err)
	}
	var t trailer
	if err := json.Unmarshal(b, &t); err != nil {
		return fmt.Errorf("last line: %w", err)
	}
	if got := hex.EncodeToString(l.sum.Sum(nil)); got != t.SHA256 {
		return fmt.Errorf("the checksum of the lines is %s, and the last one says %s", got, t.SHA256)
	}
	if _, err := l.in.ReadByte(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the last line")
	}
	return nil
}
