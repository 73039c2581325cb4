package sqlstore

import (
	"context"

	"github.com/paddockvm/paddock/dispatcher/ledger"
)

// Redrive implements ledger.Store.
func (s *Store) Redrive(ctx context.Context, dead string, a ledger.Admission) (taken *ledger.Taken, ok bool, err error) {
	a.Job.RedriveOf, a.Entry.RedriveOf = dead, dead
	n, err := newAdmitted(a)
	if err != nil {
		return nil, false, err
	}
	err = s.write.do(ctx, op{touches: append(n.touches(), ofJob(dead)), do: func(tx *tx) error {
		taken, ok = nil, false
		got, err := tx.exec(`UPDATE jobs SET redriven_by = ? WHERE id = ? AND tenant = ? AND dead AND redriven_by = ''`, a.Entry.ID, dead, a.Entry.Tenant)
		if err != nil || got == 0 {
			return err
		}
		if taken, err = n.admit(tx); err != nil {
			return err
		}
		if ok = taken == nil; ok {
			return nil
		}
		_, err = tx.exec(`UPDATE jobs SET redriven_by = '' WHERE id = ?`, dead)
		return err
	}})
	return taken, ok && err == nil, err
}

// Drop implements ledger.Store.
func (s *Store) Drop(ctx context.Context, tenant, id string) (bool, error) {
	return s.write.changes(ctx, ofJob(id), `UPDATE jobs SET state = 'ended', dead = FALSE WHERE id = ? AND tenant = ? AND dead`, id, tenant)
}

// Outcomes implements ledger.Store.
func (s *Store) Outcomes(ctx context.Context, tenant string, ids []string) (map[string]ledger.Outcome, error) {
	m := map[string]ledger.Outcome{}
	for some := range chunksOf(ids) {
		err := s.read.each(ctx, func(row Row) error {
			var id string
			var o ledger.Outcome
			err := row.Scan(&id, &o.Open, &o.OK)
			m[id] = o
			return err
		}, outcomes, append([]any{tenant}, some...)...)
		if err != nil {
			return nil, err
		}
	}
	return m, nil
}

const outcomes = `SELECT id, ended_at = 0, ok FROM jobs WHERE tenant = ? AND id IN ` + someIDs + ` AND ` + arrived
