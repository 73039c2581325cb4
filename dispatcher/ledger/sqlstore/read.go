package sqlstore

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

const jobColumns = `id, tenant, state, attempt, image, worker, labels, accepted_at, leased_at, ended_at, cancel, run_at, batch, redrive_of, redriven_by, result`

// scanJob reads a row of jobColumns and what follows.
func scanJob(row Row, j *jobs.Job, more ...any) error {
	var labels, result []byte
	var accepted, leased, ended, runAt int64
	err := row.Scan(append([]any{
		&j.ID, &j.Tenant, &j.State, &j.Attempt, &j.Image, &j.Worker, &labels, &accepted, &leased, &ended, &j.CancelRequested, &runAt, &j.Batch, &j.RedriveOf, &j.RedrivenBy,
		&result,
	}, more...)...)
	if err != nil {
		return err
	}
	j.AcceptedAt, j.LeasedAt, j.EndedAt, j.RunAt = fromMicros(accepted), fromMicros(leased), fromMicros(ended), fromMicros(runAt)
	if err := json.Unmarshal(labels, &j.Labels); err != nil {
		return fmt.Errorf("labels of %s: %w", j.ID, err)
	}
	if result != nil {
		j.Result = new(jobs.Result)
		if err := json.Unmarshal(result, j.Result); err != nil {
			return fmt.Errorf("result of %s: %w", j.ID, err)
		}
	}
	return nil
}

const entries = `SELECT id, tenant, image, state, priority, vcpus, memory_mib, network, pool, requires, conc_key, conc_limit, depends_on, batch, spec_bytes,
	redrive_of, rules, accepted_at, expires_at, not_before, attempt, epoch, worker, session, infra_left, user_left, failed_on, cancel, leased_at
	FROM jobs WHERE `

// Open implements ledger.Store.
func (s *Store) Open(ctx context.Context) ([]ledger.Entry, error) {
	list, err := s.entries(ctx, `ended_at = 0 AND `+arrived)
	slices.SortFunc(list, asAccepted)
	return list, err
}

func asAccepted(a, b ledger.Entry) int {
	return cmp.Or(a.AcceptedAt.Compare(b.AcceptedAt), strings.Compare(a.ID, b.ID))
}

// OpenOf implements ledger.Store.
func (s *Store) OpenOf(ctx context.Context, ids []string) (list []ledger.Entry, _ error) {
	for some := range chunksOf(ids) {
		l, err := s.entries(ctx, `id IN `+someIDs+` AND ended_at = 0 AND `+arrived, some...)
		if err != nil {
			return nil, err
		}
		list = append(list, l...)
	}
	slices.SortFunc(list, asAccepted)
	return list, nil
}

// someIDs stands in a statement for idsAtOnce ids, and chunksOf gives a list's as that statement's arguments: where there are fewer, the
// last again, because the statement is one.
const (
	someIDs   = `(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
	idsAtOnce = 16
)

func chunksOf(ids []string) iter.Seq[[]any] {
	return func(yield func([]any) bool) {
		for chunk := range slices.Chunk(ids, idsAtOnce) {
			args := make([]any, idsAtOnce)
			for i := range args {
				args[i] = chunk[min(i, len(chunk)-1)]
			}
			if !yield(args) {
				return
			}
		}
	}
}

// entries reads jobs as the dispatcher has them.
func (s *Store) entries(ctx context.Context, where string, args ...any) (list []ledger.Entry, err error) {
	err = s.read.each(ctx, func(row Row) error {
		var e ledger.Entry
		var accepted, expires, notBefore, leased int64
		var dependsOn, failedOn []byte
		err := row.Scan(&e.ID, &e.Tenant, &e.Image, &e.State, &e.Priority, &e.Resources.VCPUs, &e.Resources.MemoryMiB, &e.Network, &e.Pool, &e.Requires, &e.Key, &e.KeyLimit,
			&dependsOn, &e.Batch, &e.Bytes, &e.RedriveOf, &e.Rules, &accepted, &expires, &notBefore, &e.Attempt, &e.Epoch, &e.Worker, &e.Session, &e.InfraLeft, &e.UserLeft,
			&failedOn, &e.Cancel, &leased)
		if err != nil {
			return err
		}
		e.AcceptedAt, e.ExpiresAt, e.NotBefore, e.LeasedAt = fromMicros(accepted), fromMicros(expires), fromMicros(notBefore), fromMicros(leased)
		for _, l := range []struct {
			from []byte
			into *[]string
		}{{dependsOn, &e.DependsOn}, {failedOn, &e.FailedOn}} {
			if len(l.from) > len(`[]`) {
				if err := json.Unmarshal(l.from, l.into); err != nil {
					return fmt.Errorf("row of %s: %w", e.ID, err)
				}
			}
		}
		list = append(list, e)
		return nil
	}, entries+where, args...)
	return list, err
}

// Get implements ledger.Store.
func (s *Store) Get(ctx context.Context, tenant, id string) (j jobs.Job, err error) {
	found := false
	err = s.read.each(ctx, func(row Row) error {
		found = true
		var spec []byte
		if err := scanJob(row, &j, &spec); err != nil {
			return err
		}
		j.Spec = new(jobs.Spec)
		return json.Unmarshal(spec, j.Spec)
	}, `SELECT `+jobColumns+`, spec FROM jobs WHERE id = ? AND tenant = ? AND `+arrived, id, tenant)
	if err != nil {
		return j, err
	}
	if !found {
		return j, ledger.ErrNotFound
	}
	if first := j.Attempt == 1 && (j.State == jobs.StateLeased || j.State == jobs.StateRunning); j.Attempt == 0 || first {
		return j, nil // there can be none
	}
	err = s.read.each(ctx, func(row Row) error {
		var data []byte
		var a jobs.Attempt
		if err := row.Scan(&data); err != nil {
			return err
		}
		if err := json.Unmarshal(data, &a); err != nil {
			return fmt.Errorf("attempts of %s: %w", id, err)
		}
		j.Attempts = append(j.Attempts, a)
		return nil
	}, `SELECT data FROM attempts WHERE job = ? ORDER BY n`, id)
	return j, err
}

// states are all, in the order in which statements name them.
var states = []jobs.State{jobs.StateQueued, jobs.StateLeased, jobs.StateRunning, jobs.StateEnded, jobs.StateDead}

// List implements ledger.Store. Ids sort by the time of their making, so that they are the cursor.
func (s *Store) List(ctx context.Context, tenant string, q jobs.ListRequest) (jobs.ListReply, error) {
	reply := jobs.ListReply{Jobs: []jobs.Job{}}
	query, args := listing(tenant, q)
	err := s.read.each(ctx, func(row Row) error {
		var j jobs.Job
		if err := scanJob(row, &j); err != nil {
			return err
		}
		reply.Jobs = append(reply.Jobs, j)
		return nil
	}, query, args...)
	if len(reply.Jobs) > q.Limit {
		reply.Jobs = reply.Jobs[:q.Limit]
		reply.Next = reply.Jobs[q.Limit-1].ID
	}
	return reply, err
}

// listing is the statement that gives a page, and one job more where another follows.
func listing(tenant string, q jobs.ListRequest) (query string, args []any) {
	where, args := []string{`tenant = ?`, arrived}, []any{tenant}
	if q.Before != "" {
		where, args = append(where, `id < ?`), append(args, q.Before)
	}
	if len(q.States) > 0 {
		where = append(where, inStates(q.States))
	}
	switch { // each as an index has it
	case q.Batch != "":
		where, args = append(where, `batch = ? AND batch <> ''`), append(args, q.Batch)
	case within(q.States, leased):
		where = append(where, inStates(leased))
	case within(q.States, open):
		where = append(where, `ended_at = 0`)
	}
	return `SELECT ` + jobColumns + ` FROM jobs WHERE ` + strings.Join(where, ` AND `) + ` ORDER BY id DESC LIMIT ?`, append(args, q.Limit+1)
}

// leased are the states of jobs that workers have, open those of all that have not ended.
var leased, open = states[1:3], states[:3]

// within tells whether some states are asked for, and none but of those.
func within(asked, of []jobs.State) bool {
	return len(asked) > 0 && !slices.ContainsFunc(asked, func(st jobs.State) bool { return !slices.Contains(of, st) })
}

// inStates is the condition that a job is in one of some states. It names those that there are, so that an index can serve it.
func inStates(want []jobs.State) string {
	var in []string
	for _, st := range states {
		if slices.Contains(want, st) {
			in = append(in, `'`+string(st)+`'`)
		}
	}
	switch {
	case len(in) == 0:
		return `1 = 0`
	case len(in) == 1 && want[0] == jobs.StateDead:
		return `dead`
	}
	return `state IN (` + strings.Join(in, `, `) + `)`
}
