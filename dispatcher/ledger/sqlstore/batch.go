package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// AdmitBatch implements ledger.Store.
func (s *Store) AdmitBatch(ctx context.Context, b ledger.BatchAdmission) (got ledger.Admitted, err error) {
	a := arrival{s: s, b: b, list: make([]admitted, len(b.Jobs))}
	for i, j := range b.Jobs {
		j.Job.Batch, j.Entry.Batch = b.ID, b.ID
		if a.list[i], err = newAdmitted(j); err != nil {
			return got, fmt.Errorf("job %d: %w", i, err)
		}
	}
	taken, err := a.write(ctx)
	if err != nil || !taken {
		return a.got, err
	}
	got, err = s.TakenBatch(ctx, b)
	got.Taken = true // of another tenant's nothing is shown
	return got, err
}

// arrival is a batch that is being written.
type arrival struct {
	s     *Store
	b     ledger.BatchAdmission
	list  []admitted
	got   ledger.Admitted
	begun bool
	term  int64 // in which its first piece was written
}

// write writes the batch, unless its id or key is taken.
func (a *arrival) write(ctx context.Context) (taken bool, err error) {
	ends := pieces(a.list)
	if len(ends) > 1 {
		leave, err := a.s.batches.enter(ctx, a.b.Tenant)
		if err != nil {
			return false, err
		}
		defer leave()
	}
	defer func() {
		if a.begun {
			a.s.batches.end(a.b.ID)
		}
	}()
	a.got.Each = make([]*ledger.Taken, len(a.list))
	from, total := 0, 0
	for _, end := range ends {
		fresh, conflict := 0, false
		err := a.s.piece(ctx, func(tx *tx) (err error) {
			fresh, conflict = 0, false
			clear(a.got.Each[from:end])
			if from > 0 && a.s.write.term != a.term {
				return errGone
			}
			if from == 0 {
				if taken, err = a.begin(tx); err != nil || taken {
					return err
				}
			}
			fresh, err = admitAll(tx, a.b.ID, a.list[from:end], a.got.Each[from:end])
			if conflict = err == nil && a.conflict(from, end); err != nil || conflict || end < len(a.list) {
				return err
			}
			return a.complete(tx, total+fresh)
		})
		if err != nil || taken {
			return taken, err
		}
		ctx = context.WithoutCancel(ctx) // who has begun ends it: else it would have to be removed
		if conflict {
			if err := a.s.drop(ctx, a.b.ID, a.term, ledger.ErrConflict); !errors.Is(err, ledger.ErrConflict) {
				return false, err
			}
			return false, errors.Join(a.s.lookUp(ctx, a.list[end:], a.got.Each[end:]), ledger.ErrConflict)
		}
		from, total = end, total+fresh
	}
	return false, nil
}

// begin writes the batch's row, which says that it is incoming.
func (a *arrival) begin(tx *tx) (taken bool, err error) {
	b := &a.b
	insert := &Stmt{
		Query: `INSERT INTO batches (id, tenant, total, accepted_at, hash, key, until, incoming) VALUES (?, ?, 0, ?, ?, ?, ?, TRUE) ON CONFLICT DO NOTHING`,
		Args:  []any{b.ID, b.Tenant, micros(b.AcceptedAt), b.Hash, b.Key, micros(b.KeyUntil)},
	}
	free := &Stmt{Query: `UPDATE batches SET key = '' WHERE tenant = ? AND key = ? AND key <> '' AND until < ?`, Args: []any{b.Tenant, b.Key, micros(b.AcceptedAt)}}
	if err := tx.all(free, insert); err != nil || insert.Rows == 0 {
		return insert.Rows == 0, err
	}
	a.begun, a.term = true, a.s.write.term
	a.s.batches.begin(b.ID, a.term)
	return false, nil
}

// conflict tells whether the batch can not be taken for what others have.
func (a *arrival) conflict(from, end int) bool {
	for i := from; i < end && a.b.Atomic; i++ {
		if t := a.got.Each[i]; t != nil && t.Hash != a.list[i].Hash {
			return true
		}
	}
	return false
}

// complete has the batch and its jobs be there.
func (a *arrival) complete(tx *tx, total int) error {
	b := &a.b
	a.got.Batch = jobs.Batch{ID: b.ID, Tenant: b.Tenant, Total: total, AcceptedAt: b.AcceptedAt}
	if total == 0 {
		a.got.Batch.EndedAt = b.AcceptedAt
	}
	hooked := false
	whole, err := tx.scan(func(row Row) error { return row.Scan(&hooked) }, `UPDATE batches SET total = ?, ended_at = ?, incoming = FALSE WHERE id = ? AND incoming
		RETURNING EXISTS (SELECT 1 FROM endpoints WHERE endpoints.tenant = batches.tenant AND enabled)`, total, micros(a.got.Batch.EndedAt), b.ID)
	switch {
	case err != nil || total > 0 && whole:
		return err
	case !whole:
		return errGone
	}
	return tx.batchEnded(a.got.Batch, hooked)
}

// TakenBatch implements ledger.Store.
func (s *Store) TakenBatch(ctx context.Context, b ledger.BatchAdmission) (got ledger.Admitted, err error) {
	got, coming, err := s.findBatch(ctx, b)
	if coming && err == nil { // who writes it has the lane, unless it is small
		var leave func()
		if leave, err = s.batches.enter(ctx, b.Tenant); err != nil {
			return got, err
		}
		leave()
		got, coming, err = s.findBatch(ctx, b)
	}
	if coming && err == nil {
		err = ledger.ErrArriving
	}
	if got.Each = make([]*ledger.Taken, len(b.Jobs)); err != nil || !got.Taken {
		return got, err
	}
	list := make([]admitted, len(b.Jobs))
	for i, a := range b.Jobs {
		list[i].Admission = a
	}
	return got, s.lookUp(ctx, list, got.Each)
}

// findBatch finds the batch that has the id or the key, behind what is being written; coming tells that it is not there yet.
func (s *Store) findBatch(ctx context.Context, b ledger.BatchAdmission) (got ledger.Admitted, coming bool, err error) {
	err = s.write.do(ctx, op{alone: true, do: func(tx *tx) error {
		got, coming = ledger.Admitted{}, false
		scan := func(row Row) error { return scanBatch(row, &got.Batch, &got.Hash, &coming) }
		found, err := tx.scan(scan, `SELECT `+batchColumns+`, hash, incoming FROM batches WHERE tenant = ? AND key = ? AND key <> '' AND until >= ?`,
			b.Tenant, b.Key, micros(b.AcceptedAt))
		if err == nil && !found {
			found, err = tx.scan(scan, `SELECT `+batchColumns+`, hash, incoming FROM batches WHERE tenant = ? AND id = ?`, b.Tenant, b.ID)
		}
		got.Taken = found
		return err
	}})
	if coming {
		got = ledger.Admitted{}
	}
	return got, coming, err
}

// lookUp finds the jobs that have the ids or the keys of others.
func (s *Store) lookUp(ctx context.Context, list []admitted, each []*ledger.Taken) error {
	for from := 0; from < len(list); from += pieceJobs {
		end := min(from+pieceJobs, len(list))
		err := s.piece(ctx, func(tx *tx) error {
			clear(each[from:end])
			var stmts []*Stmt
			for i := from; i < end; i++ {
				n := &list[i]
				stmts = append(stmts, takenStmt(&each[i], "", `id = ? AND tenant = ?`, n.Entry.ID, n.Entry.Tenant))
				if n.Key != "" {
					stmts = append(stmts, n.before(&each[i], ""), takenStmt(&each[i], "", byItsKey, n.Entry.Tenant, n.Key))
				}
			}
			return tx.chunks(stmts)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// admitAll admits jobs of a batch as Admit does, all of them a step at a time, and gives how many were new.
func admitAll(tx *tx, batch string, list []admitted, each []*ledger.Taken) (fresh int, err error) {
	before := make([]*Stmt, len(list))
	for i := range list {
		before[i] = list[i].before(&each[i], batch)
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
			rest = append(rest, takenStmt(&each[i], batch, byItsKey, n.Entry.Tenant, n.Key))
		case rows[i].Rows == 1:
			fresh++
			rest = append(rest, n.depends()...)
		default:
			each[i] = &ledger.Taken{}
			rest = append(rest, takenStmt(&each[i], batch, `id = ? AND tenant = ?`, n.Entry.ID, n.Entry.Tenant))
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
	err = s.read.each(ctx, func(row Row) error { found = true; return scanBatch(row, &b) }, `SELECT `+batchColumns+` FROM batches WHERE tenant = ? AND id = ? AND NOT incoming`, tenant, id)
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
	}, `SELECT `+batchColumns+` FROM batches WHERE tenant = ? AND id < ? AND NOT incoming ORDER BY id DESC LIMIT ?`, tenant, before, limit)
	return list, err
}

// CancelBatch implements ledger.Store.
func (s *Store) CancelBatch(ctx context.Context, tenant, id string) (open []string, err error) {
	for last, more := "", true; more; {
		var some []string
		err := s.piece(ctx, func(tx *tx) error {
			some = nil
			_, err := tx.scan(func(row Row) error {
				var job string
				err := row.Scan(&job)
				some = append(some, job)
				return err
			}, `UPDATE jobs SET cancel = TRUE WHERE id IN (SELECT id FROM jobs WHERE batch = ? AND batch <> '' AND tenant = ? AND ended_at = 0 AND id > ? AND `+arrived+`
				ORDER BY id LIMIT ?) RETURNING id`, id, tenant, last, pieceJobs)
			return err
		})
		if err != nil {
			return nil, err
		}
		if more = len(some) == pieceJobs; more {
			last = slices.Max(some)
		}
		open = append(open, some...)
	}
	return open, nil
}
