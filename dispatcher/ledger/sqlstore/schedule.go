package sqlstore

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

func ofSchedule(tenant, name string) string { return "schedule " + tenant + " " + name }

// PutSchedule implements ledger.Store.
func (s *Store) PutSchedule(ctx context.Context, tenant string, sc jobs.Schedule, b ledger.Bound) (time.Time, error) {
	next := micros(sc.NextAt)
	sc.NextAt, sc.LastAt, sc.LastJob, sc.Missed = time.Time{}, time.Time{}, "", 0
	data, err := json.Marshal(sc)
	if err != nil {
		return time.Time{}, err
	}
	err = s.write.do(ctx, op{touches: []string{"schedules of " + tenant, ofSchedule(tenant, sc.Name)}, do: func(tx *tx) error {
		if err := roomForSchedule(tx, tenant, sc.Name, len(data), b); err != nil {
			return err
		}
		if kept, err := keptTime(tx, tenant, sc); err != nil {
			return err
		} else if kept > 0 {
			next = kept
		}
		_, err := tx.exec(`INSERT INTO schedules (tenant, name, data, paused, next_at) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (tenant, name) DO UPDATE SET data = excluded.data, paused = excluded.paused, next_at = excluded.next_at`, tenant, sc.Name, data, sc.Paused, next)
		return err
	}})
	return fromMicros(next), err
}

func roomForSchedule(tx *tx, tenant, name string, size int, b ledger.Bound) error {
	var count int
	var bytes int64
	_, err := tx.scan(func(row Row) error { return row.Scan(&count, &bytes) },
		`SELECT count(*), coalesce(sum(length(data)), 0) FROM schedules WHERE tenant = ? AND name <> ?`, tenant, name)
	if err == nil && (count >= b.Count || bytes+int64(size) > b.Bytes) {
		err = ledger.ErrBound
	}
	return err
}

// keptTime gives the next time of a schedule whose times stay as they are; 0 where it has none that stays.
func keptTime(tx *tx, tenant string, sc jobs.Schedule) (next int64, err error) {
	var data []byte
	var paused bool
	was, err := tx.scan(func(row Row) error { return row.Scan(&data, &paused, &next) },
		`SELECT data, paused, next_at FROM schedules WHERE tenant = ? AND name = ?`, tenant, sc.Name)
	if err != nil || !was || paused {
		return 0, err
	}
	var old jobs.Schedule
	if err := json.Unmarshal(data, &old); err != nil || old.Cron != sc.Cron || old.TimeZone != sc.TimeZone {
		return 0, nil //nolint:nilerr // what cannot be read is replaced
	}
	return next, nil
}

const scheduleColumns = `name, data, next_at, last_at, last_job, missed`

func scanSchedule(row Row, sc *jobs.Schedule) error {
	var data []byte
	var next, last, missed int64
	var name, lastJob string
	if err := row.Scan(&name, &data, &next, &last, &lastJob, &missed); err != nil {
		return err
	}
	if err := json.Unmarshal(data, sc); err != nil {
		return fmt.Errorf("schedule %s: %w", name, err)
	}
	sc.NextAt, sc.LastAt, sc.LastJob, sc.Missed = fromMicros(next), fromMicros(last), lastJob, missed
	return nil
}

// schedules gives those of a condition.
func (s *Store) schedules(ctx context.Context, where string, args ...any) (list []jobs.Schedule, err error) {
	err = s.read.each(ctx, func(row Row) error {
		var sc jobs.Schedule
		err := scanSchedule(row, &sc)
		list = append(list, sc)
		return err
	}, `SELECT `+scheduleColumns+` FROM schedules WHERE `+where, args...)
	return list, err
}

// Schedule implements ledger.Store.
func (s *Store) Schedule(ctx context.Context, tenant, name string) (jobs.Schedule, error) {
	list, err := s.schedules(ctx, `tenant = ? AND name = ?`, tenant, name)
	if err != nil {
		return jobs.Schedule{}, err
	}
	if len(list) == 0 {
		return jobs.Schedule{}, ledger.ErrNotFound
	}
	return list[0], nil
}

// Schedules implements ledger.Store.
func (s *Store) Schedules(ctx context.Context, tenant string) ([]jobs.Schedule, error) {
	return s.schedules(ctx, `tenant = ? ORDER BY name`, tenant)
}

// DueSchedules implements ledger.Store.
func (s *Store) DueSchedules(ctx context.Context, now time.Time, limit int) (list []ledger.DueSchedule, err error) {
	err = s.read.each(ctx, func(row Row) error {
		var due ledger.DueSchedule
		err := row.Scan(&due.Tenant, &due.Name)
		list = append(list, due)
		return err
	}, `SELECT tenant, name FROM schedules WHERE NOT paused AND next_at <= ? ORDER BY next_at, tenant, name LIMIT ?`, micros(now), limit)
	return list, err
}

// DeleteSchedule implements ledger.Store.
func (s *Store) DeleteSchedule(ctx context.Context, tenant, name string) (bool, error) {
	return s.write.changes(ctx, ofSchedule(tenant, name), `DELETE FROM schedules WHERE tenant = ? AND name = ?`, tenant, name)
}

// Fired implements ledger.Store.
func (s *Store) Fired(ctx context.Context, tenant, name string, was, next time.Time, job string, missed int64) (bool, error) {
	return s.write.changes(ctx, ofSchedule(tenant, name), `UPDATE schedules SET next_at = ?, last_at = ?, last_job = CASE WHEN ? THEN ? ELSE last_job END, missed = missed + ?
		WHERE tenant = ? AND name = ? AND next_at = ? AND NOT paused`, micros(next), micros(was), job != "", job, missed, tenant, name, micros(was))
}
