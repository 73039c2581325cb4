package sqlstore

import (
	"context"
	"encoding/json"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// admitted is an admission as it goes into the database.
type admitted struct {
	ledger.Admission
	spec, labels, dependsOn []byte
}

func newAdmitted(a ledger.Admission) (n admitted, err error) {
	n.Admission = a
	if n.spec, err = json.Marshal(a.Job.Spec); err != nil {
		return n, err
	}
	if n.labels, err = json.Marshal(a.Job.Labels); err != nil {
		return n, err
	}
	n.dependsOn, err = listed(a.Entry.DependsOn)
	return n, err
}

// listed gives a list as it is kept.
func listed(list []string) ([]byte, error) {
	if len(list) == 0 {
		return []byte("[]"), nil
	}
	return json.Marshal(list)
}

// What operations touch.
func ofJob(id string) string          { return "job " + id }
func ofKey(tenant, key string) string { return "key " + tenant + " " + key }
func (n *admitted) touches() (l []string) {
	l = []string{ofJob(n.Entry.ID)}
	for _, key := range []string{n.Key, n.KeyBefore} {
		if key != "" {
			l = append(l, ofKey(n.Entry.Tenant, key))
		}
	}
	return l
}

// Admit implements ledger.Store.
func (s *Store) Admit(ctx context.Context, a ledger.Admission) (taken *ledger.Taken, err error) {
	n, err := newAdmitted(a)
	if err != nil {
		return nil, err
	}
	err = s.write.do(ctx, op{touches: n.touches(), do: func(tx *tx) (err error) {
		taken, err = n.admit(tx)
		return err
	}})
	return taken, err
}

// Taken implements ledger.Store.
func (s *Store) Taken(ctx context.Context, a ledger.Admission) (taken *ledger.Taken, err error) {
	n := admitted{Admission: a}
	list := []*Stmt{n.before(&taken, "")}
	if n.Key != "" {
		list = append(list, takenStmt(&taken, "", byItsKey+` AND ? <= (SELECT until FROM idempotency WHERE tenant = ? AND key = ?)`,
			a.Entry.Tenant, n.Key, micros(a.Job.AcceptedAt), a.Entry.Tenant, n.Key))
	}
	for _, st := range append(list, takenStmt(&taken, "", `id = ? AND tenant = ?`, a.Entry.ID, a.Entry.Tenant)) {
		if err = s.read.run(ctx, st); err != nil || taken != nil {
			break
		}
	}
	return taken, err
}

func (n *admitted) admit(tx *tx) (taken *ledger.Taken, err error) {
	e := &n.Entry
	if st := n.before(&taken, ""); st != nil {
		if err := tx.all(st); err != nil || taken != nil {
			return taken, err
		}
	}
	if n.Key != "" {
		got, err := tx.exec(takeKey, n.keyArgs()...)
		if err != nil {
			return nil, err
		}
		if got == 0 {
			st := takenStmt(&taken, "", byItsKey, e.Tenant, n.Key)
			err := tx.all(st)
			return taken, err
		}
	}
	got, err := tx.exec(insertJob, n.args()...)
	if err != nil {
		return nil, err
	}
	if got == 1 {
		return nil, tx.all(n.depends()...)
	}
	taken = &ledger.Taken{} // where it is another tenant's
	list := []*Stmt{takenStmt(&taken, "", `id = ? AND tenant = ?`, e.ID, e.Tenant)}
	if n.Key != "" {
		list = append(list, &Stmt{Query: giveKeyBack, Args: []any{e.Tenant, n.Key}})
	}
	err = tx.all(list...)
	return taken, err
}

// takeKey takes an idempotency key that is free, or was until now.
const takeKey = `INSERT INTO idempotency (tenant, key, job, until) VALUES (?, ?, ?, ?)
	ON CONFLICT (tenant, key) DO UPDATE SET job = excluded.job, until = excluded.until WHERE idempotency.until < ?`

// giveKeyBack undoes takeKey; a key that was free before stays so.
const giveKeyBack = `DELETE FROM idempotency WHERE tenant = ? AND key = ?`

func (n *admitted) keyArgs() []any {
	return []any{n.Entry.Tenant, n.Key, n.Entry.ID, micros(n.KeyUntil), micros(n.Job.AcceptedAt)}
}

const insertJob = `INSERT INTO jobs (id, tenant, state, image, priority, vcpus, memory_mib, network, infra_left, labels, hash, spec, accepted_at, expires_at,
	not_before, run_at, pool, requires, conc_key, conc_limit, depends_on, rules, user_left, batch, spec_bytes, redrive_of, hooks)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`

func (n *admitted) args() []any {
	e := &n.Entry
	return []any{
		e.ID, e.Tenant, string(e.State), e.Image, e.Priority, e.Resources.VCPUs, e.Resources.MemoryMiB, e.Network, e.InfraLeft, string(n.labels), n.Hash, n.spec,
		micros(e.AcceptedAt), micros(e.ExpiresAt), micros(e.NotBefore), micros(n.Job.RunAt), e.Pool, e.Requires, e.Key, e.KeyLimit, string(n.dependsOn), e.Rules,
		e.UserLeft, e.Batch, e.Bytes, e.RedriveOf, n.Job.Spec != nil && len(n.Job.Spec.Callbacks) > 0,
	}
}

// depends are the statements that keep what a new job depends on.
func (n *admitted) depends() (list []*Stmt) {
	for _, id := range n.Entry.DependsOn {
		list = append(list, &Stmt{Query: `INSERT INTO depends (job, needs) VALUES (?, ?) ON CONFLICT DO NOTHING`, Args: []any{n.Entry.ID, id}})
	}
	return list
}

// byItsKey is the condition of a job that has an idempotency key.
const byItsKey = `id = (SELECT job FROM idempotency WHERE tenant = ? AND key = ?)`

// before finds the job of this body that a dispatcher of before has taken with the key; nil where none can have.
func (n *admitted) before(into **ledger.Taken, own string) *Stmt {
	if n.KeyBefore == "" {
		return nil
	}
	return takenStmt(into, own, `id = (SELECT job FROM idempotency WHERE tenant = ? AND key = ? AND until >= ?) AND hash = ?`,
		n.Entry.Tenant, n.KeyBefore, micros(n.Job.AcceptedAt), n.Hash)
}

// takenStmt finds the job of a condition, for one of a batch, own, or of none; into stays as it is where there is none.
func takenStmt(into **ledger.Taken, own, where string, args ...any) *Stmt {
	return &Stmt{Query: `SELECT ` + jobColumns + `, hash, batch IN ` + incoming + ` FROM jobs WHERE ` + where, Args: args, Scan: func(row Row) error {
		var t ledger.Taken
		err := scanJob(row, &t.Job, &t.Hash, &t.Arriving)
		if t.Arriving && t.Job.Batch != own {
			t.Job, t.Hash = jobs.Job{}, ""
		} else {
			t.Arriving = false
		}
		*into = &t
		return err
	}}
}
