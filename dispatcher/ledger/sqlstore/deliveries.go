package sqlstore

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

func ofDelivery(id string) string { return "delivery " + id }

func insertDelivery(d *ledger.Delivery) *Stmt {
	return &Stmt{
		Query: `INSERT INTO deliveries (id, tenant, target, endpoint, url, event, job, batch, format, body, state, step, created_at, next_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		Args: []any{
			d.ID, d.Tenant, d.Target, d.Endpoint, d.URL, d.Event, d.Job, d.Batch, d.Format, []byte(d.Body), string(d.State), d.Step, micros(d.CreatedAt), micros(d.NextAt),
		},
	}
}

// AddDelivery keeps a delivery that no state change is behind.
func (s *Store) AddDelivery(ctx context.Context, d ledger.Delivery) error {
	return s.write.do(ctx, op{touches: []string{ofDelivery(d.ID)}, do: func(tx *tx) error { return tx.all(insertDelivery(&d)) }})
}

// DeliveryTargets gives what has pending deliveries.
func (s *Store) DeliveryTargets(ctx context.Context) (list []ledger.DeliveryTarget, err error) {
	err = s.read.each(ctx, func(row Row) error {
		var t ledger.DeliveryTarget
		var next int64
		err := row.Scan(&t.Target, &t.Tenant, &next)
		t.NextAt = fromMicros(next)
		list = append(list, t)
		return err
	}, `SELECT target, tenant, min(next_at) FROM deliveries WHERE ended_at = 0 GROUP BY target, tenant ORDER BY target`)
	return list, err
}

const deliveryColumns = `id, tenant, target, endpoint, url, event, job, batch, format, state, step, attempts, created_at, next_at, ended_at, error`

// scanDelivery reads a row of deliveryColumns and what follows.
func scanDelivery(row Row, d *ledger.Delivery, more ...any) error {
	var created, next, ended int64
	err := row.Scan(append([]any{
		&d.ID, &d.Tenant, &d.Target, &d.Endpoint, &d.URL, &d.Event, &d.Job, &d.Batch, &d.Format, &d.State, &d.Step, &d.Attempts, &created, &next, &ended, &d.Error,
	}, more...)...)
	d.CreatedAt, d.NextAt, d.EndedAt = fromMicros(created), fromMicros(next), fromMicros(ended)
	return err
}

// PendingDeliveries gives a target's pending deliveries with their bodies, those that are due first first.
func (s *Store) PendingDeliveries(ctx context.Context, target string, limit int) (list []ledger.Delivery, err error) {
	err = s.read.each(ctx, func(row Row) error {
		var d ledger.Delivery
		var body []byte
		err := scanDelivery(row, &d, &body)
		d.Body = string(body)
		list = append(list, d)
		return err
	}, `SELECT `+deliveryColumns+`, body FROM deliveries WHERE target = ? AND ended_at = 0 ORDER BY next_at, id LIMIT ?`, target, limit)
	return list, err
}

// DeliveryTried keeps a try and what became of the delivery; one that is pending no more only becomes delivered.
func (s *Store) DeliveryTried(ctx context.Context, t ledger.DeliveryTry) error {
	touches := []string{ofDelivery(t.ID)}
	if t.Endpoint != "" {
		touches = append(touches, ofEndpoint(t.Endpoint))
	}
	ended := int64(0)
	if t.State != jobs.DeliveryPending {
		ended = max(micros(t.Try.At), 1)
	}
	var disabled *ledger.Endpoint
	err := s.write.do(ctx, op{touches: touches, do: func(tx *tx) error {
		disabled = nil
		try := t.Try
		found, err := tx.scan(func(row Row) error { return row.Scan(&try.Attempt) },
			`UPDATE deliveries SET attempts = attempts + 1 WHERE id = ? AND tenant = ? RETURNING attempts`, t.ID, t.Tenant)
		if err != nil || !found {
			return err
		}
		data, err := json.Marshal(try)
		if err != nil {
			return err
		}
		list := []*Stmt{
			{Query: `INSERT INTO delivery_tries (delivery, n, data) VALUES (?, ?, ?)`, Args: []any{t.ID, try.Attempt, data}},
			{
				Query: `UPDATE deliveries SET state = ?, next_at = ?, step = ?, error = ?, ended_at = ? WHERE id = ? AND (ended_at = 0 OR ?)`,
				Args:  []any{string(t.State), micros(t.NextAt), t.Step, try.Error, ended, t.ID, t.State == jobs.DeliveryDelivered},
			},
		}
		var e ledger.Endpoint
		if t.Endpoint != "" {
			list = append(list, &Stmt{
				Query: `SELECT ` + endpointColumns + ` FROM endpoints WHERE id = ?`, Args: []any{t.Endpoint}, Scan: func(row Row) error { return scanEndpoint(row, &e) },
			})
		}
		if err := tx.all(list...); err != nil || e.ID == "" || !t.Change(&e) {
			return err
		}
		if !e.Enabled {
			disabled = &e
		}
		return keepEndpoint(tx, &e)
	}})
	if err == nil && disabled != nil {
		s.untold(ctx, disabled)
	}
	return err
}

// Delivery gives a delivery with its tries and its body; ledger.ErrNoWebhook if there is none.
func (s *Store) Delivery(ctx context.Context, tenant, id string) (d ledger.Delivery, err error) {
	err = s.read.each(ctx, func(row Row) error {
		var body []byte
		err := scanDelivery(row, &d, &body)
		d.Body = string(body)
		return err
	}, `SELECT `+deliveryColumns+`, body FROM deliveries WHERE id = ? AND tenant = ?`, id, tenant)
	if err != nil {
		return d, err
	}
	if d.ID == "" {
		return d, ledger.ErrNoWebhook
	}
	err = s.read.each(ctx, func(row Row) error {
		var data []byte
		var t jobs.Try
		if err := row.Scan(&data); err != nil {
			return err
		}
		if err := json.Unmarshal(data, &t); err != nil {
			return fmt.Errorf("tries of delivery %s: %w", id, err)
		}
		d.Tries = append(d.Tries, t)
		return nil
	}, `SELECT data FROM delivery_tries WHERE delivery = ? ORDER BY n`, id)
	return d, err
}

// Deliveries gives deliveries without tries and bodies, the newest first, at most limit and one more where there is one.
func (s *Store) Deliveries(ctx context.Context, tenant string, q jobs.DeliveriesRequest) (list []ledger.Delivery, err error) {
	where, args := endpointIs(q.Endpoint)
	args = append([]any{tenant}, args...)
	if q.Job != "" {
		where, args = where+` AND job = ?`, append(args, q.Job)
	}
	if q.Before != "" {
		where, args = where+` AND id < ?`, append(args, q.Before)
	}
	err = s.read.each(ctx, func(row Row) error {
		var d ledger.Delivery
		err := scanDelivery(row, &d)
		list = append(list, d)
		return err
	}, `SELECT `+deliveryColumns+` FROM deliveries WHERE tenant = ?`+where+inDeliveryStates(q.States)+` ORDER BY id DESC LIMIT ?`, append(args, q.Limit+1)...)
	return list, err
}

// Redeliver makes deliveries pending, due at a time and at the beginning of the schedule, where their endpoints are there and enabled. It gives
// their targets, and how many deliveries they are, also with an error: then these are some of them.
func (s *Store) Redeliver(ctx context.Context, tenant string, q jobs.RedeliverRequest, at time.Time) (targets []ledger.DeliveryTarget, n int, err error) {
	if q.ID != "" {
		return s.redeliver(ctx, tenant, []string{q.ID}, ``, at, nil)
	}
	where, args := endpointIs(q.Endpoint)
	for last := ""; ; { // those that fail meanwhile are not met again
		var ids []string
		err := s.read.each(ctx, func(row Row) error {
			err := row.Scan(&last)
			ids = append(ids, last)
			return err
		}, `SELECT id FROM deliveries WHERE tenant = ?`+where+` AND state = 'failed' AND created_at >= ? AND id > ? ORDER BY id LIMIT ?`,
			append(append([]any{tenant}, args...), micros(q.Since), last, deliveriesAtOnce)...)
		if err != nil || len(ids) == 0 {
			return targets, n, err
		}
		var more int
		if targets, more, err = s.redeliver(ctx, tenant, ids, ` AND state = 'failed'`, at, targets); err != nil {
			return targets, n, err
		}
		n += more
	}
}

// redeliver makes deliveries pending that are as where says, and gives how many, and their targets besides others.
func (s *Store) redeliver(ctx context.Context, tenant string, ids []string, where string, at time.Time, known []ledger.DeliveryTarget) (targets []ledger.DeliveryTarget, n int, err error) {
	err = s.write.do(ctx, op{alone: true, do: func(tx *tx) error {
		targets, n = slices.Clone(known), 0
		list := make([]*Stmt, len(ids))
		for i, id := range ids {
			list[i] = &Stmt{Query: `UPDATE deliveries SET state = 'pending', step = 0, error = '', ended_at = 0, next_at = ? WHERE id = ? AND tenant = ?` + where + `
				AND (endpoint = '' OR endpoint IN (SELECT endpoints.id FROM endpoints WHERE endpoints.enabled)) RETURNING target`, Args: []any{micros(at), id, tenant}, Scan: func(row Row) error {
				var target string
				if err := row.Scan(&target); err != nil {
					return err
				}
				n++
				if !slices.ContainsFunc(targets, func(t ledger.DeliveryTarget) bool { return t.Target == target }) {
					targets = append(targets, ledger.DeliveryTarget{Target: target, Tenant: tenant, NextAt: at})
				}
				return nil
			}}
		}
		return tx.all(list...)
	}})
	if err != nil {
		return known, 0, err
	}
	return targets, n, nil
}

// ForgetDeliveries deletes deliveries that ended before a time, with their tries, at most limit, and gives how many.
func (s *Store) ForgetDeliveries(ctx context.Context, before time.Time, limit int) (n int, err error) {
	var old []string
	err = s.read.each(ctx, func(row Row) error {
		var id string
		err := row.Scan(&id)
		old = append(old, id)
		return err
	}, `SELECT id FROM deliveries WHERE ended_at > 0 AND ended_at < ? ORDER BY ended_at, id LIMIT ?`, micros(before), limit)
	if err != nil || len(old) == 0 {
		return 0, err
	}
	touches := make([]string, len(old))
	for i, id := range old {
		touches[i] = ofDelivery(id)
	}
	err = s.write.do(ctx, op{touches: touches, do: func(tx *tx) error {
		gone, tries := make([]*Stmt, len(old)), []*Stmt{}
		for i, id := range old { // but not what has been replayed meanwhile
			gone[i] = &Stmt{Query: `DELETE FROM deliveries WHERE id = ? AND ended_at > 0`, Args: []any{id}}
		}
		if err := tx.all(gone...); err != nil {
			return err
		}
		n = 0
		for i, st := range gone {
			if st.Rows == 1 {
				n++
				tries = append(tries, &Stmt{Query: `DELETE FROM delivery_tries WHERE delivery = ?`, Args: []any{old[i]}})
			}
		}
		return tx.all(tries...)
	}})
	return n, err
}
