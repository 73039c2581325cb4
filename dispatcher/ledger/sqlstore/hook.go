package sqlstore

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// hooked tells, of a row of jobs that is changed, whether webhooks are to be told.
const hooked = `hooks OR EXISTS (SELECT 1 FROM endpoints WHERE endpoints.tenant = jobs.tenant AND enabled)`

func hook(tenant, kind, job string, body []byte) *Stmt {
	return &Stmt{Query: `INSERT INTO hooks (tenant, type, job, body) VALUES (?, ?, ?, ?)`, Args: []any{tenant, kind, job, body}}
}

// batchEnded tells of a batch's end.
func (tx *tx) batchEnded(b jobs.Batch, hooked bool) error {
	body, err := json.Marshal(b)
	if err != nil {
		return err
	}
	list := []*Stmt{{Query: `INSERT INTO outbox (event, dead, batch) VALUES (?, FALSE, TRUE)`, Args: []any{body}}}
	if hooked {
		list = append(list, hook(b.Tenant, jobs.HookBatchEnded, b.ID, body))
	}
	return tx.all(list...)
}

// Hooks implements ledger.Store.
func (s *Store) Hooks(ctx context.Context, limit int) (list []ledger.Hook, err error) {
	err = s.read.each(ctx, func(row Row) error {
		var h ledger.Hook
		var labels, spec []byte
		if err := row.Scan(&h.ID, &h.Tenant, &h.Type, &h.Event, &h.Batch, &labels, &spec); err != nil {
			return err
		}
		var of jobs.Spec
		for _, part := range []struct {
			from []byte
			into any
		}{{labels, &h.Labels}, {spec, &of}} {
			if part.from != nil {
				if err := json.Unmarshal(part.from, part.into); err != nil {
					return fmt.Errorf("hook %d: %w", h.ID, err)
				}
			}
		}
		h.Callbacks = of.Callbacks
		list = append(list, h)
		return nil
	}, `SELECT hooks.id, hooks.tenant, type, body, coalesce(jobs.batch, ''), labels, CASE WHEN jobs.hooks THEN spec END
		FROM hooks LEFT JOIN jobs ON jobs.id = hooks.job ORDER BY hooks.id LIMIT ?`, limit)
	return list, err
}

// Hooked implements ledger.Store.
func (s *Store) Hooked() <-chan struct{} { return s.hooked }

// nudge says that there are hooks.
func (s *Store) nudge() {
	select {
	case s.hooked <- struct{}{}:
	default:
	}
}
