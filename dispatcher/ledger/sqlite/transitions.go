package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// held is the fence: the attempt is the job's current one, and it has not ended.
const held = `id = ? AND attempt = ? AND epoch = ? AND state IN ('leased', 'running')`

// Lease implements ledger.Store.
func (s *Store) Lease(ctx context.Context, leases []ledger.Lease) (ok []bool, err error) {
	err = s.write.write(ctx, func(ctx context.Context, tx transaction) error {
		ok = make([]bool, len(leases))
		for i, l := range leases {
			n, err := tx.exec(ctx, `UPDATE jobs SET state = 'leased', attempt = ?, epoch = ?, worker = ?, session = ?, leased_at = ?
				WHERE id = ? AND state = 'queued' AND attempt = ? AND epoch < ? AND cancel = 0`,
				l.Attempt, l.Epoch, l.Worker, l.Session, micros(l.At), l.Job, l.Attempt-1, l.Epoch)
			if err != nil {
				return err
			}
			ok[i] = n == 1
		}
		return nil
	})
	return ok, err
}

// Running implements ledger.Store.
func (s *Store) Running(ctx context.Context, list []jobs.Held) error {
	return s.write.write(ctx, func(ctx context.Context, tx transaction) error {
		for _, h := range list {
			if _, err := tx.exec(ctx, `UPDATE jobs SET state = 'running' WHERE `+held, h.Job, h.Attempt, h.Epoch); err != nil {
				return err
			}
		}
		return nil
	})
}

// Finish implements ledger.Store.
func (s *Store) Finish(ctx context.Context, h jobs.Held, state jobs.State, r jobs.Result, final jobs.Event) (bool, error) {
	return s.transition(ctx, final, state == jobs.StateDead, &r, func(ctx context.Context, tx transaction, result []byte) (int64, error) {
		return tx.exec(ctx, `UPDATE jobs SET state = ?, result = ?, ended_at = ? WHERE `+held, state, result, micros(r.EndedAt), h.Job, h.Attempt, h.Epoch)
	})
}

// Requeue implements ledger.Store.
func (s *Store) Requeue(ctx context.Context, h jobs.Held, notBefore time.Time, event jobs.Event) (bool, error) {
	return s.transition(ctx, event, false, nil, func(ctx context.Context, tx transaction, _ []byte) (int64, error) {
		return tx.exec(ctx, `UPDATE jobs SET state = 'queued', not_before = ?, infra_left = infra_left - 1 WHERE `+held, micros(notBefore), h.Job, h.Attempt, h.Epoch)
	})
}

// EndQueued implements ledger.Store.
func (s *Store) EndQueued(ctx context.Context, id string, attempt int, state jobs.State, r jobs.Result, final jobs.Event) (bool, error) {
	return s.transition(ctx, final, state == jobs.StateDead, &r, func(ctx context.Context, tx transaction, result []byte) (int64, error) {
		return tx.exec(ctx, `UPDATE jobs SET state = ?, result = ?, ended_at = ? WHERE id = ? AND attempt = ? AND state = 'queued'`,
			state, result, micros(r.EndedAt), id, attempt)
	})
}

// transition changes a job and puts the event of it into the outbox, or does neither.
func (s *Store) transition(ctx context.Context, event jobs.Event, dead bool, r *jobs.Result, change func(context.Context, transaction, []byte) (int64, error)) (ok bool, err error) {
	var result []byte
	if r != nil {
		if result, err = json.Marshal(r); err != nil {
			return false, err
		}
	}
	out, err := json.Marshal(event)
	if err != nil {
		return false, err
	}
	err = s.write.write(ctx, func(ctx context.Context, tx transaction) error {
		n, err := change(ctx, tx, result)
		if ok = n == 1; err != nil || !ok {
			return err
		}
		_, err = tx.exec(ctx, `INSERT INTO outbox (event, dead) VALUES (?, ?)`, out, dead)
		return err
	})
	return ok && err == nil, err
}

// RequestCancel implements ledger.Store.
func (s *Store) RequestCancel(ctx context.Context, tenant, id string) (j jobs.Job, err error) {
	err = s.write.write(ctx, func(ctx context.Context, tx transaction) error {
		if _, err := tx.exec(ctx, `UPDATE jobs SET cancel = 1 WHERE id = ? AND tenant = ? AND state NOT IN ('ended', 'dead')`, id, tenant); err != nil {
			return err
		}
		j = jobs.Job{}
		return tx.scan(ctx, `SELECT `+jobColumns+` FROM jobs WHERE id = ? AND tenant = ?`, func(row *sql.Row) error { return scanJob(row, &j) }, id, tenant)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return j, ledger.ErrNotFound
	}
	return j, err
}

// Outbox implements ledger.Store.
func (s *Store) Outbox(ctx context.Context, limit int) (list []ledger.Outgoing, err error) {
	rows, err := s.outbox.QueryContext(ctx, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err tells
	for rows.Next() {
		var o ledger.Outgoing
		var b []byte
		if err := rows.Scan(&o.ID, &b, &o.Dead); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(b, &o.Event); err != nil {
			return nil, err
		}
		list = append(list, o)
	}
	return list, rows.Err()
}

// Published implements ledger.Store.
func (s *Store) Published(ctx context.Context, ids []int64) error {
	return s.write.write(ctx, func(ctx context.Context, tx transaction) error {
		for _, id := range ids {
			if _, err := tx.exec(ctx, `DELETE FROM outbox WHERE id = ?`, id); err != nil {
				return err
			}
		}
		return nil
	})
}

// Forget implements ledger.Store. The largest session stays: the next is larger than it.
func (s *Store) Forget(ctx context.Context, before time.Time, limit int) (forgotten int, err error) {
	err = s.write.write(ctx, func(ctx context.Context, tx transaction) error {
		const old = `SELECT id FROM jobs WHERE state IN ('ended', 'dead') AND ended_at < ? ORDER BY ended_at, id LIMIT ?`
		if _, err := tx.exec(ctx, `DELETE FROM idempotency WHERE job IN (`+old+`)`, micros(before), limit); err != nil {
			return err
		}
		n, err := tx.exec(ctx, `DELETE FROM jobs WHERE id IN (`+old+`)`, micros(before), limit)
		if err != nil {
			return err
		}
		forgotten = int(n)
		_, err = tx.exec(ctx, `DELETE FROM workers WHERE name IN (SELECT name FROM workers WHERE session < (SELECT max(session) FROM workers)
			AND name NOT IN (SELECT worker FROM jobs WHERE state NOT IN ('ended', 'dead')) LIMIT ?)`, limit)
		return err
	})
	return forgotten, err
}
