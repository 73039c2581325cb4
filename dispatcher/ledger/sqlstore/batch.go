package sqlstore

import (
	"context"
	"fmt"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// AdmitBatch implements ledger.Store.
func (s *Store) AdmitBatch(ctx context.Context, b ledger.BatchAdmission) (got ledger.Admitted, err error) {
	list := make([]admitted, len(b.Jobs))
	for i, a := range b.Jobs {
		a.Job.Batch, a.Entry.Batch = b.ID, b.ID
		if list[i], err = newAdmitted(a); err != nil {
			return got, fmt.Errorf("job %d: %w", i, err)
		}
	}
	err = s.write.do(ctx, op{alone: true, do: func(tx *tx) (err error) {
		got = ledger.Admitted{Each: make([]*ledger.Taken, len(list))}
		return admitBatch(tx, b, list, &got)
	}})
	return got, err
}

func admitBatch(tx *tx, b ledger.BatchAdmission, list []admitted, got *ledger.Admitted) error {
	insert := &Stmt{
		Query: `INSERT INTO batches (id, tenant, total, accepted_at, hash, key, until) VALUES (?, ?, 0, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		Args:  []any{b.ID, b.Tenant, micros(b.AcceptedAt), b.Hash, b.Key, micros(b.KeyUntil)},
	}
	free := &Stmt{Query: `UPDATE batches SET key = '' WHERE tenant = ? AND key = ? AND key <> '' AND until < ?`, Args: []any{b.Tenant, b.Key, micros(b.AcceptedAt)}}
	if err := tx.all(free, insert); err != nil {
		return err
	}
	if insert.Rows == 0 {
		return takenBatch(tx, b, list, got)
	}
	fresh, err := admitAll(tx, list, got.Each)
	if err != nil {
		return err
	}
	for i, t := range got.Each {
		if b.Atomic && t != nil && t.Hash != list[i].Hash {
			return ledger.ErrConflict
		}
	}
	got.Batch = jobs.Batch{ID: b.ID, Tenant: b.Tenant, Total: fresh, AcceptedAt: b.AcceptedAt}
	if fresh > 0 {
		_, err := tx.exec(`UPDATE batches SET total = ? WHERE id = ?`, fresh, b.ID)
		return err
	}
	got.Batch.EndedAt = b.AcceptedAt
	hooked := false
	_, err = tx.scan(func(row Row) error { return row.Scan(&hooked) },
		`UPDATE batches SET ended_at = accepted_at WHERE id = ? RETURNING EXISTS (SELECT 1 FROM endpoints WHERE endpoints.tenant = batches.tenant AND enabled)`, b.ID)
	if err != nil {
		return err
	}
	return tx.batchEnded(got.Batch, hooked)
}

// TakenBatch implements ledger.Store.
func (s *Store) TakenBatch(ctx context.Context, b ledger.BatchAdmission) (got ledger.Admitted, err error) {
	list := make([]admitted, len(b.Jobs))
	for i, a := range b.Jobs {
		list[i].Admission = a
	}
	err = s.write.do(ctx, op{alone: true, do: func(tx *tx) (err error) { // behind what is being written
		got = ledger.Admitted{Each: make([]*ledger.Taken, len(list))}
		return takenBatch(tx, b, list, &got)
	}})
	got.Taken = got.Batch.ID != ""
	return got, err
}

// takenBatch finds the batch that has the id or the key, and the jobs that have those of the new batch's.
func takenBatch(tx *tx, b ledger.BatchAdmission, list []admitted, got *ledger.Admitted) error {
	scan := func(row Row) error { return scanBatch(row, &got.Batch, &got.Hash) }
	byKey := &Stmt{Query: `SELECT ` + batchColumns + `, hash FROM batches WHERE tenant = ? AND key = ? AND key <> '' AND until >= ?`, Args: []any{b.Tenant, b.Key, micros(b.AcceptedAt)}, Scan: scan}
	if err := tx.all(byKey); err != nil {
		return err
	}
	got.Taken = true
	if byKey.Rows == 0 {
		if found, err := tx.scan(scan, `SELECT `+batchColumns+`, hash FROM batches WHERE tenant = ? AND id = ?`, b.Tenant, b.ID); err != nil || !found {
			return err // another tenant's: nothing of it is shown
		}
	}
	var stmts []*Stmt
	for i := range list {
		n, each := &list[i], &got.Each[i]
		stmts = append(stmts, takenStmt(each, `id = ? AND tenant = ?`, n.Entry.ID, n.Entry.Tenant))
		if n.Key != "" {
			stmts = append(stmts, n.before(each), takenStmt(each, byItsKey, n.Entry.Tenant, n.Key))
		}
	}
	return tx.chunks(stmts)
}

// admitAll admits jobs as Admit does, all of them a step at a time, and gives how many were new.
func admitAll(tx *tx, list []admitted, each []*ledger.Taken) (fresh int, err error) {
	before := make([]*Stmt, len(list))
	for i := range list {
		before[i] = list[i].before(&each[i])
	}
	if err := tx.chunks(before); err != nil {
		return 0, err
	}
	keys := make([]*Stmt, len(list))
	for i := range list {
		if n := &list[i]; n.Key != "" && each[i] == nil {
			keys[i] = &Stmt{Query: takeKey, Args: n.keyArgs()}
		}
	}
	if err := tx.chunks(keys); err != nil {
		return 0, err
	}
	rows := make([]*Stmt, len(list))
	for i := range list {
		if each[i] == nil && (keys[i] == nil || keys[i].Rows == 1) {
			rows[i] = &Stmt{Query: insertJob, Args: list[i].args()}
		}
	}
	if err := tx.chunks(rows); err != nil {
		return 0, err
	}
	var rest []*Stmt
	for i := range list {
		n := &list[i]
		switch {
		case each[i] != nil:
		case rows[i] == nil:
			rest = append(rest, takenStmt(&each[i], byItsKey, n.Entry.Tenant, n.Key))
		case rows[i].Rows == 1:
			fresh++
			rest = append(rest, n.depends()...)
		default:
			each[i] = &ledger.Taken{}
			rest = append(rest, takenStmt(&each[i], `id = ? AND tenant = ?`, n.Entry.ID, n.Entry.Tenant))
			if n.Key != "" {
				rest = append(rest, &Stmt{Query: giveKeyBack, Args: []any{n.Entry.Tenant, n.Key}})
			}
		}
	}
	return fresh, tx.chunks(rest)
}

const batchColumns = `id, tenant, total, ended, ok, accepted_at, ended_at`

func scanBatch(row Row, b *jobs.Batch, more ...any) error {
	var accepted, ended int64
	err := row.Scan(append([]any{&b.ID, &b.Tenant, &b.Total, &b.Ended, &b.OK, &accepted, &ended}, more...)...)
	b.AcceptedAt, b.EndedAt = fromMicros(accepted), fromMicros(ended)
	return err
}

// Batch implements ledger.Store.
func (s *Store) Batch(ctx context.Context, tenant, id string) (b jobs.Batch, err error) {
	found := false
	err = s.read.each(ctx, func(row Row) error { found = true; return scanBatch(row, &b) }, `SELECT `+batchColumns+` FROM batches WHERE tenant = ? AND id = ?`, tenant, id)
	if err == nil && !found {
		err = ledger.ErrNotFound
	}
	return b, err
}

// Batches implements ledger.Store.
func (s *Store) Batches(ctx context.Context, tenant, before string, limit int) (list []jobs.Batch, err error) {
	if before == "" {
		before = "~" // greater than all ids
	}
	err = s.read.each(ctx, func(row Row) error {
		var b jobs.Batch
		err := scanBatch(row, &b)
		list = append(list, b)
		return err
	}, `SELECT `+batchColumns+` FROM batches WHERE tenant = ? AND id < ? ORDER BY id DESC LIMIT ?`, tenant, before, limit)
	return list, err
}

// CancelBatch implements ledger.Store.
func (s *Store) CancelBatch(ctx context.Context, tenant, id string) (open []string, err error) {
	err = s.write.do(ctx, op{alone: true, do: func(tx *tx) error {
		open = nil
		_, err := tx.scan(func(row Row) error {
			var job string
			err := row.Scan(&job)
			open = append(open, job)
			return err
		}, `UPDATE jobs SET cancel = TRUE WHERE batch = ? AND batch <> '' AND tenant = ? AND ended_at = 0 RETURNING id`, id, tenant)
		return err
	}})
	return open, err
}
