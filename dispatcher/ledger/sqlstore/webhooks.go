package sqlstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// This file keeps webhook endpoints and the secrets of callbacks; deliveries.go what is sent. Both are for dispatcher/webhook.

// ofEndpoint and ofEndpoints are what operations touch.
func ofEndpoint(id string) string      { return "endpoint " + id }
func ofEndpoints(tenant string) string { return "endpoints " + tenant }

// AddEndpoint keeps a new endpoint, unless the tenant has most already: then it gives false.
func (s *Store) AddEndpoint(ctx context.Context, e ledger.Endpoint, most int) (added bool, err error) {
	data, err := json.Marshal(e)
	if err != nil {
		return false, err
	}
	err = s.write.do(ctx, op{touches: []string{ofEndpoints(e.Tenant)}, do: func(tx *tx) error {
		n := 0
		if _, err := tx.scan(func(row Row) error { return row.Scan(&n) }, `SELECT count(*) FROM endpoints WHERE tenant = ?`, e.Tenant); err != nil {
			return err
		}
		if added = n < most; !added {
			return nil
		}
		_, err := tx.exec(`INSERT INTO endpoints (id, tenant, enabled, data) VALUES (?, ?, ?, ?)`, e.ID, e.Tenant, e.Enabled, data)
		return err
	}})
	return added && err == nil, err
}

const endpointColumns = `id, tenant, enabled, data`

func scanEndpoint(row Row, e *ledger.Endpoint) error {
	var data []byte
	var id, tenant string
	var enabled bool
	if err := row.Scan(&id, &tenant, &enabled, &data); err != nil {
		return err
	}
	*e = ledger.Endpoint{}
	if err := json.Unmarshal(data, e); err != nil {
		return fmt.Errorf("endpoint %s: its row cannot be read", id) // its text holds secrets
	}
	e.ID, e.Tenant, e.Enabled = id, tenant, enabled
	return nil
}

// Endpoint gives one of a tenant's endpoints; ledger.ErrNoWebhook if there is none.
func (s *Store) Endpoint(ctx context.Context, tenant, id string) (e ledger.Endpoint, err error) {
	err = s.read.each(ctx, func(row Row) error { return scanEndpoint(row, &e) }, `SELECT `+endpointColumns+` FROM endpoints WHERE id = ? AND tenant = ?`, id, tenant)
	if err == nil && e.ID == "" {
		err = ledger.ErrNoWebhook
	}
	return e, err
}

// Endpoints gives all of a tenant's endpoints, the oldest first.
func (s *Store) Endpoints(ctx context.Context, tenant string) (list []ledger.Endpoint, err error) {
	err = s.read.each(ctx, func(row Row) error {
		var e ledger.Endpoint
		err := scanEndpoint(row, &e)
		list = append(list, e)
		return err
	}, `SELECT `+endpointColumns+` FROM endpoints WHERE tenant = ? ORDER BY id`, tenant)
	return list, err
}

// ChangeEndpoint changes an endpoint and gives what it is then. Where it is enabled no more, its pending deliveries fail.
func (s *Store) ChangeEndpoint(ctx context.Context, tenant, id string, change func(*ledger.Endpoint)) (e ledger.Endpoint, err error) {
	found := false
	err = s.write.do(ctx, op{touches: []string{ofEndpoint(id)}, do: func(tx *tx) (err error) {
		found, err = tx.scan(func(row Row) error { return scanEndpoint(row, &e) }, `SELECT `+endpointColumns+` FROM endpoints WHERE id = ? AND tenant = ?`, id, tenant)
		if err != nil || !found {
			return err
		}
		change(&e)
		return keepEndpoint(tx, &e)
	}})
	if err == nil && !found {
		err = ledger.ErrNoWebhook
	}
	if err == nil {
		s.untold(ctx, &e)
	}
	return e, err
}

func keepEndpoint(tx *tx, e *ledger.Endpoint) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = tx.exec(`UPDATE endpoints SET enabled = ?, data = ? WHERE id = ?`, e.Enabled, data, e.ID)
	return err
}

// untold ends what an endpoint that is not enabled was still to be told.
func (s *Store) untold(ctx context.Context, e *ledger.Endpoint) {
	if !e.Enabled {
		s.failPending(ctx, e.ID, "the endpoint is disabled: "+e.DisabledReason, e.DisabledAt)
	}
}

// deliveriesAtOnce bounds a transaction's: a tenant may have hundreds of thousands, and nobody's jobs come in, or end, meanwhile.
const deliveriesAtOnce = 200

// failPending ends what an endpoint was still to be told that is there no more, or not enabled, some at a time. What is left where that fails
// fails by itself when its turn comes.
func (s *Store) failPending(ctx context.Context, target, why string, at time.Time) {
	for failed := int64(deliveriesAtOnce); failed == deliveriesAtOnce; {
		err := s.write.do(ctx, op{touches: []string{ofEndpoint(target)}, do: func(tx *tx) (err error) {
			failed, err = tx.exec(`UPDATE deliveries SET state = 'failed', error = ?, ended_at = ?, next_at = 0
				WHERE ended_at = 0 AND id IN (SELECT id FROM deliveries WHERE target = ? AND ended_at = 0 ORDER BY next_at, id LIMIT ?)
				AND NOT EXISTS (SELECT 1 FROM endpoints WHERE endpoints.id = ? AND enabled)`, why, max(micros(at), 1), target, deliveriesAtOnce, target)
			return err
		}})
		if err != nil {
			return
		}
	}
}

// RemoveEndpoint gives what was removed. Its pending deliveries fail.
func (s *Store) RemoveEndpoint(ctx context.Context, tenant, id string, at time.Time) (e ledger.Endpoint, err error) {
	found := false
	err = s.write.do(ctx, op{touches: []string{ofEndpoint(id), ofEndpoints(tenant)}, do: func(tx *tx) (err error) {
		found, err = tx.scan(func(row Row) error { return scanEndpoint(row, &e) }, `DELETE FROM endpoints WHERE id = ? AND tenant = ? RETURNING `+endpointColumns, id, tenant)
		return err
	}})
	if err == nil && !found {
		err = ledger.ErrNoWebhook
	}
	if err == nil {
		s.failPending(ctx, id, "the endpoint was removed", at)
	}
	return e, err
}

const callbackSecrets = `SELECT data FROM callback_secrets WHERE tenant = ?`

func scanSecrets(row Row, list *[]ledger.Secret) error {
	var data []byte
	if err := row.Scan(&data); err != nil {
		return err
	}
	if json.Unmarshal(data, list) != nil {
		return errors.New("callback secrets: a row cannot be read") // its text holds secrets
	}
	return nil
}

// CallbackSecrets gives the secrets of a tenant's callbacks; none where none were made.
func (s *Store) CallbackSecrets(ctx context.Context, tenant string) (list []ledger.Secret, err error) {
	err = s.read.each(ctx, func(row Row) error { return scanSecrets(row, &list) }, callbackSecrets, tenant)
	return list, err
}

// ChangeCallbackSecrets changes the secrets of a tenant's callbacks and gives what they are then.
func (s *Store) ChangeCallbackSecrets(ctx context.Context, tenant string, change func([]ledger.Secret) []ledger.Secret) (list []ledger.Secret, err error) {
	err = s.write.do(ctx, op{touches: []string{"callback secrets " + tenant}, do: func(tx *tx) error {
		list = nil
		if _, err := tx.scan(func(row Row) error { return scanSecrets(row, &list) }, callbackSecrets, tenant); err != nil {
			return err
		}
		list = change(list)
		data, err := json.Marshal(list)
		if err != nil {
			return err
		}
		_, err = tx.exec(`INSERT INTO callback_secrets (tenant, data) VALUES (?, ?) ON CONFLICT (tenant) DO UPDATE SET data = excluded.data`, tenant, data)
		return err
	}})
	return list, err
}

// SpreadHooks takes hooks away and keeps their deliveries; a hook that is not there any more has none.
func (s *Store) SpreadHooks(ctx context.Context, list []ledger.Spread) error {
	if len(list) == 0 {
		return nil
	}
	touches := make([]string, len(list))
	for i, l := range list {
		touches[i] = fmt.Sprint("hook ", l.Hook)
	}
	return s.write.do(ctx, op{touches: touches, do: func(tx *tx) error {
		gone := make([]*Stmt, len(list))
		for i, l := range list {
			gone[i] = &Stmt{Query: `DELETE FROM hooks WHERE id = ?`, Args: []any{l.Hook}}
		}
		if err := tx.all(gone...); err != nil {
			return err
		}
		var add []*Stmt
		for i, l := range list {
			if gone[i].Rows == 0 {
				continue
			}
			for _, d := range l.Deliveries {
				add = append(add, insertDelivery(&d))
			}
		}
		return tx.all(add...)
	}})
}

// endpointIs is the condition that a delivery is for an endpoint, as requests name it.
func endpointIs(endpoint string) (where string, args []any) {
	switch endpoint {
	case "":
		return ``, nil
	case jobs.CallbacksID:
		return ` AND endpoint = ''`, nil
	}
	return ` AND endpoint = ?`, []any{endpoint}
}

// inDeliveryStates is the condition that a delivery is in one of some states.
func inDeliveryStates(want []jobs.DeliveryState) string {
	if len(want) == 0 {
		return ``
	}
	var in []string
	for _, st := range []jobs.DeliveryState{jobs.DeliveryPending, jobs.DeliveryDelivered, jobs.DeliveryFailed} {
		for _, w := range want {
			if st == w {
				in = append(in, `'`+string(st)+`'`)
				break
			}
		}
	}
	if len(in) == 0 {
		return ` AND 1 = 0`
	}
	return ` AND state IN (` + strings.Join(in, `, `) + `)`
}
