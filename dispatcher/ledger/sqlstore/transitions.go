package sqlstore

import (
	"context"
	"encoding/json"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// held is the fence: the attempt is the job's current one, and it has not ended.
const held = `id = ? AND attempt = ? AND epoch = ? AND state IN ('leased', 'running')`

// Lease implements ledger.Store.
func (s *Store) Lease(ctx context.Context, leases []ledger.Lease) (specs [][]byte, err error) {
	if len(leases) == 0 {
		return nil, nil
	}
	touches := make([]string, len(leases))
	for i, l := range leases {
		touches[i] = ofJob(l.Job)
	}
	specs = make([][]byte, len(leases))
	err = s.write.do(ctx, op{touches: touches, do: func(tx *tx) error {
		clear(specs) // of a try that was given up
		list := make([]*Stmt, len(leases))
		for i, l := range leases {
			list[i] = &Stmt{Query: `UPDATE jobs SET state = 'leased', attempt = ?, epoch = ?, worker = ?, session = ?, leased_at = ?
				WHERE id = ? AND state = 'queued' AND attempt = ? AND epoch < ? AND NOT cancel RETURNING spec`,
				Args: []any{l.Attempt, l.Epoch, l.Worker, l.Session, micros(l.At), l.Job, l.Attempt - 1, l.Epoch},
				Scan: func(row Row) error { return row.Scan(&specs[i]) }}
		}
		return tx.all(list...)
	}})
	return specs, err
}

// Running implements ledger.Store.
func (s *Store) Running(ctx context.Context, list []jobs.Held, at time.Time) error {
	if len(list) == 0 {
		return nil
	}
	touches := make([]string, len(list))
	for i, h := range list {
		touches[i] = ofJob(h.Job)
	}
	told := false
	err := s.write.do(ctx, op{touches: touches, do: func(tx *tx) error {
		stmts, tell := make([]*Stmt, len(list)), []*Stmt(nil)
		for i, h := range list {
			stmts[i] = &Stmt{
				Query: `UPDATE jobs SET state = 'running' WHERE ` + held + ` AND state = 'leased' RETURNING tenant, worker, ` + hooked, Args: []any{h.Job, h.Attempt, h.Epoch},
				Scan: func(row Row) error {
					event := jobs.Event{Type: jobs.EventState, Job: h.Job, Attempt: h.Attempt, Time: at, State: jobs.StateRunning}
					var hooked bool
					if err := row.Scan(&event.Tenant, &event.Worker, &hooked); err != nil || !hooked {
						return err
					}
					body, err := json.Marshal(event)
					tell = append(tell, hook(event.Tenant, jobs.HookRunning, h.Job, body))
					return err
				},
			}
		}
		if err := tx.all(stmts...); err != nil {
			return err
		}
		told = len(tell) > 0
		return tx.all(tell...)
	}})
	if told {
		s.nudge()
	}
	return err
}

// Finish implements ledger.Store.
func (s *Store) Finish(ctx context.Context, h jobs.Held, state jobs.State, r jobs.Result, final jobs.Event) (bool, error) {
	return s.end(ctx, state, r, final, held, h.Job, h.Attempt, h.Epoch)
}

// EndQueued implements ledger.Store.
func (s *Store) EndQueued(ctx context.Context, id string, attempt int, state jobs.State, r jobs.Result, final jobs.Event) (bool, error) {
	return s.end(ctx, state, r, final, `id = ? AND attempt = ? AND state = 'queued'`, id, attempt)
}

// transition is a change of a job and the event of it.
type transition struct {
	change string // gives batch, and hooked
	args   []any
	event  jobs.Event
	out    []byte // the event
	hook   string // how webhooks call it
	dead   bool
	also   *Stmt        // what else is to be written then; nil for nothing
	ends   *jobs.Result // nil where the job goes on
}

const changed = ` RETURNING batch, ` + hooked

// end ends a job of which a condition holds; the first of its arguments is the job.
func (s *Store) end(ctx context.Context, state jobs.State, r jobs.Result, final jobs.Event, where string, args ...any) (bool, error) {
	result, err := json.Marshal(r)
	if err != nil {
		return false, err
	}
	set := []any{string(state), state == jobs.StateDead, result, endedAt(&r), r.Success()}
	return s.transact(ctx, args[0].(string), transition{
		change: `UPDATE jobs SET state = ?, dead = ?, result = ?, ended_at = ?, ok = ? WHERE ` + where + changed, args: append(set, args...),
		event: final, hook: jobs.HookEnded, dead: state == jobs.StateDead, ends: &r,
	})
}

// endedAt is never 0, which is not at all.
func endedAt(r *jobs.Result) int64 { return max(micros(r.EndedAt), 1) }

// Requeue implements ledger.Store.
func (s *Store) Requeue(ctx context.Context, h jobs.Held, r ledger.Retry, event jobs.Event) (bool, error) {
	attempt, err := json.Marshal(r.Attempt)
	if err != nil {
		return false, err
	}
	failedOn, err := listed(r.FailedOn)
	if err != nil {
		return false, err
	}
	return s.transact(ctx, h.Job, transition{
		change: `UPDATE jobs SET state = 'queued', not_before = ?, infra_left = ?, user_left = ?, failed_on = ? WHERE ` + held + changed,
		args:   []any{micros(r.NotBefore), r.InfraLeft, r.UserLeft, string(failedOn), h.Job, h.Attempt, h.Epoch},
		event:  event, hook: jobs.HookRequeued,
		also: &Stmt{Query: `INSERT INTO attempts (job, n, data) VALUES (?, ?, ?)`, Args: []any{h.Job, h.Attempt, attempt}},
	})
}

// transact changes a job, and writes all that goes with it, or does neither.
func (s *Store) transact(ctx context.Context, id string, t transition) (ok bool, err error) {
	if t.out, err = json.Marshal(t.event); err != nil {
		return false, err
	}
	told := false
	err = s.write.do(ctx, op{touches: []string{ofJob(id)}, do: func(tx *tx) (err error) {
		var batch string
		var hooked bool
		if ok, err = tx.scan(func(row Row) error { return row.Scan(&batch, &hooked) }, t.change, t.args...); err != nil || !ok {
			return err
		}
		told = hooked || batch != ""
		return t.tell(tx, id, batch, hooked)
	}})
	if told {
		s.nudge()
	}
	return ok && err == nil, err
}

// tell writes what goes with a change.
func (t *transition) tell(tx *tx, id, batch string, hooked bool) error {
	list := []*Stmt{{Query: `INSERT INTO outbox (event, dead) VALUES (?, ?)`, Args: []any{t.out, t.dead}}}
	if hooked {
		list = append(list, hook(t.event.Tenant, t.hook, id, t.out))
	}
	if t.also != nil {
		list = append(list, &Stmt{Query: t.also.Query, Args: t.also.Args})
	}
	var b jobs.Batch
	batchHooked := false
	if t.ends != nil && batch != "" {
		n := map[bool]int{true: 1}[t.ends.Success()]
		list = append(list, &Stmt{
			Query: `UPDATE batches SET ended = ended + 1, ok = ok + ?, ended_at = CASE WHEN ended + 1 = total THEN CAST(? AS BIGINT) ELSE ended_at END WHERE id = ?
				RETURNING ` + batchColumns + `, EXISTS (SELECT 1 FROM endpoints WHERE endpoints.tenant = batches.tenant AND enabled)`,
			Args: []any{n, endedAt(t.ends), batch}, Scan: func(row Row) error { return scanBatch(row, &b, &batchHooked) },
		})
	}
	if err := tx.all(list...); err != nil || b.ID == "" || b.Ended != b.Total {
		return err
	}
	return tx.batchEnded(b, batchHooked)
}

// RequestCancel implements ledger.Store.
func (s *Store) RequestCancel(ctx context.Context, tenant, id string) (j jobs.Job, err error) {
	found := false
	err = s.write.do(ctx, op{touches: []string{ofJob(id)}, do: func(tx *tx) (err error) {
		j = jobs.Job{}
		get := &Stmt{Query: `SELECT ` + jobColumns + ` FROM jobs WHERE id = ? AND tenant = ? AND ` + arrived, Args: []any{id, tenant}, Scan: func(row Row) error { return scanJob(row, &j) }}
		err = tx.all(&Stmt{Query: `UPDATE jobs SET cancel = TRUE WHERE id = ? AND tenant = ? AND state NOT IN ('ended', 'dead') AND ` + arrived, Args: []any{id, tenant}}, get)
		found = get.Rows > 0
		return err
	}})
	if err == nil && !found {
		return j, ledger.ErrNotFound
	}
	return j, err
}
