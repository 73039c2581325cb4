package sqlstore

import (
	"context"
	"time"
)

// oldJobs are those that ended before a time, without those that open ones depend on.
const oldJobs = `SELECT id FROM jobs WHERE ended_at > 0 AND ended_at < ? AND NOT EXISTS
	(SELECT 1 FROM depends JOIN jobs AS waits ON waits.id = depends.job WHERE depends.needs = jobs.id AND waits.ended_at = 0) ORDER BY ended_at, id LIMIT ?`

// Forget implements ledger.Store.
func (s *Store) Forget(ctx context.Context, before time.Time, limit int) (forgotten int, err error) {
	err = s.write.do(ctx, op{alone: true, do: func(tx *tx) error {
		var old []string
		_, err := tx.scan(func(row Row) error {
			var id string
			err := row.Scan(&id)
			old = append(old, id)
			return err
		}, oldJobs, micros(before), limit)
		if err != nil {
			return err
		}
		var list, gone []*Stmt
		for _, id := range old {
			for _, q := range []string{
				`DELETE FROM idempotency WHERE job = ?`, `DELETE FROM attempts WHERE job = ?`, `DELETE FROM depends WHERE job = ?`,
			} {
				list = append(list, &Stmt{Query: q, Args: []any{id}})
			}
			gone = append(gone, &Stmt{Query: `DELETE FROM jobs WHERE id = ?`, Args: []any{id}})
		}
		list = append(list, gone...)
		list = append(list, &Stmt{Query: `DELETE FROM batches WHERE id IN (SELECT id FROM batches WHERE ended_at > 0 AND ended_at < ? ORDER BY ended_at, id LIMIT ?)`,
			Args: []any{micros(before), limit}})
		list = append(list, &Stmt{Query: `DELETE FROM workers WHERE name IN (SELECT name FROM workers WHERE seen < ? AND NOT cordoned AND NOT draining
			AND name NOT IN (SELECT worker FROM jobs WHERE ended_at = 0) ORDER BY name LIMIT ?)`, Args: []any{micros(before), limit}})
		if err := tx.chunks(list); err != nil {
			return err
		}
		forgotten = 0
		for _, st := range gone {
			forgotten += int(st.Rows)
		}
		return nil
	}})
	return forgotten, err
}
