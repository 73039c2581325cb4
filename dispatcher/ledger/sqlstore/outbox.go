package sqlstore

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// Outbox implements ledger.Store.
func (s *Store) Outbox(ctx context.Context, after int64, limit int) (list []ledger.Outgoing, err error) {
	err = s.read.each(ctx, func(row Row) error {
		var o ledger.Outgoing
		var b []byte
		var batch bool
		if err := row.Scan(&o.ID, &b, &o.Dead, &batch); err != nil {
			return err
		}
		var into any = &o.Event
		if batch {
			o.Batch = new(jobs.Batch)
			into = o.Batch
		}
		if err := json.Unmarshal(b, into); err != nil {
			return fmt.Errorf("outbox %d: %w", o.ID, err)
		}
		list = append(list, o)
		return nil
	}, `SELECT id, event, dead, batch FROM outbox WHERE id > ? ORDER BY id LIMIT ?`, after, limit)
	return list, err
}

// Published implements ledger.Store.
func (s *Store) Published(ctx context.Context, ids []int64) error {
	if len(ids) == 0 {
		return nil
	}
	return s.write.do(ctx, op{do: func(tx *tx) error {
		list := make([]*Stmt, len(ids))
		for i, id := range ids {
			list[i] = &Stmt{Query: `DELETE FROM outbox WHERE id = ?`, Args: []any{id}}
		}
		return tx.all(list...)
	}})
}
