package sqlstore

import (
	"context"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
)

func ofWorker(name string) string { return "worker " + name }

// Register implements ledger.Store. Sessions are counted apart from the workers, which are forgotten.
func (s *Store) Register(ctx context.Context, worker string, at time.Time) (session int64, err error) {
	err = s.write.do(ctx, op{touches: []string{"sessions", ofWorker(worker)}, do: func(tx *tx) error {
		_, err := tx.scan(func(row Row) error { return row.Scan(&session) }, `UPDATE counters SET n = n + 1 WHERE name = 'session' RETURNING n`)
		if err != nil {
			return err
		}
		_, err = tx.exec(`INSERT INTO workers (name, session, seen) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET session = excluded.session, seen = excluded.seen`,
			worker, session, micros(at))
		return err
	}})
	return session, err
}

// Seen implements ledger.Store.
func (s *Store) Seen(ctx context.Context, list []ledger.Seen) error {
	if len(list) == 0 {
		return nil
	}
	touches, stmts := make([]string, len(list)), make([]*Stmt, len(list))
	for i, w := range list {
		touches[i] = ofWorker(w.Worker)
	}
	return s.write.do(ctx, op{touches: touches, do: func(tx *tx) error {
		for i, w := range list {
			stmts[i] = &Stmt{Query: `UPDATE workers SET seen = ? WHERE name = ?`, Args: []any{micros(w.At), w.Worker}}
			if w.Offer != nil {
				stmts[i] = &Stmt{Query: `UPDATE workers SET seen = ?, offer = ? WHERE name = ?`, Args: []any{micros(w.At), w.Offer, w.Worker}}
			}
		}
		return tx.all(stmts...)
	}})
}

// Workers implements ledger.Store.
func (s *Store) Workers(ctx context.Context) (list []ledger.Worker, err error) {
	err = s.read.each(ctx, func(row Row) error {
		var w ledger.Worker
		var seen, drainBy int64
		err := row.Scan(&w.Name, &w.Session, &seen, &w.Offer, &w.Cordoned, &w.Draining, &drainBy)
		w.Seen, w.DrainBy = fromMicros(seen), fromMicros(drainBy)
		if len(w.Offer) == 0 {
			w.Offer = nil
		}
		list = append(list, w)
		return err
	}, `SELECT name, session, seen, offer, cordoned, draining, drain_by FROM workers ORDER BY name`)
	return list, err
}

// Flag implements ledger.Store.
func (s *Store) Flag(ctx context.Context, worker string, f ledger.Flags) error {
	ok, err := s.write.changes(ctx, ofWorker(worker), `UPDATE workers SET cordoned = ?, draining = ?, drain_by = ? WHERE name = ?`,
		f.Cordoned, f.Draining, micros(f.DrainBy), worker)
	if err == nil && !ok {
		return ledger.ErrNotFound
	}
	return err
}

// Remove implements ledger.Store.
func (s *Store) Remove(ctx context.Context, worker string) (bool, error) {
	return s.write.changes(ctx, ofWorker(worker), `DELETE FROM workers WHERE name = ?`, worker)
}
