package sqlstore

import (
	"context"
	"fmt"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
)

// Terms of a writer that are none.
const (
	neverLed = 0
	resigned = -1
)

// fence is the statement that keeps the leader's row as it is until the transaction's end, and gives its term. nil where there is nobody
// to be kept out.
func (w *writer) fence(term *int64) (*Stmt, error) {
	if w.term == neverLed && w.dialect.Exclusive {
		return nil, nil
	}
	if w.term <= neverLed {
		return nil, ledger.ErrNotLeader
	}
	return &Stmt{Query: `SELECT term FROM leader` + w.dialect.Share, Scan: func(row Row) error { return row.Scan(term) }}, nil
}

// Lead implements ledger.Store. A new term is the time, in microseconds, as far as that is larger than the last: where the database is
// restored to before an election, no term that began after that is given a second time.
func (s *Store) Lead(ctx context.Context, holder string, ttl time.Duration) (term int64, err error) {
	w := s.write
	take := `UPDATE leader SET term = CASE WHEN term = ? THEN term WHEN term < ` + w.dialect.Now + ` THEN ` + w.dialect.Now + ` ELSE term + 1 END, holder = ?, ttl = ?, renewed = ` + w.dialect.Now + `
		WHERE term = ? OR holder = '' OR renewed + ttl < ` + w.dialect.Now + ` OR renewed - ttl > ` + w.dialect.Now + ` OR ? RETURNING term`
	who := ""
	err = w.do(ctx, op{lead: true, do: func(tx *tx) error {
		mine := w.term
		if mine <= neverLed {
			mine = resigned // which no row has
		}
		won, err := tx.scan(func(row Row) error { return row.Scan(&term) }, take, mine, holder, ttl.Microseconds(), mine, w.dialect.Exclusive)
		if err != nil || won {
			return err
		}
		if _, err := tx.scan(func(row Row) error { return row.Scan(&who) }, `SELECT holder FROM leader`); err != nil {
			return err
		}
		return fmt.Errorf("%w: %q", ledger.ErrNotLeader, who)
	}, committed: func() { w.term = term }})
	return term, err
}

// Resign implements ledger.Store.
func (s *Store) Resign(ctx context.Context) error {
	w := s.write
	return w.do(ctx, op{lead: true, resign: true, do: func(tx *tx) error {
		_, err := tx.exec(`UPDATE leader SET holder = '', renewed = 0 WHERE term = ?`, w.term)
		return err
	}, committed: func() { w.term = resigned }})
}

// Outdated is the error for a schema of a version that this Paddock does not know.
func Outdated(have, known int64) error {
	return fmt.Errorf("%w: its schema has the version %d, and this one knows %d", ledger.ErrOutdated, have, known)
}

// keep are the statements that keep the schema as it is until the transaction's end, and give its version. None where nobody else can change it.
func (w *writer) keep(version *int64) []*Stmt {
	if w.dialect.Keep == "" {
		return nil
	}
	return []*Stmt{
		{Query: w.dialect.Keep, Scan: func(Row) error { return nil }},
		{Query: w.dialect.Version, Scan: func(row Row) error { return row.Scan(version) }}, // by itself: it is to see what Keep has waited for
	}
}
