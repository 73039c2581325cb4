package sqlstore

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/paddockvm/paddock/jobs"
)

// namedAtOnce is how many jobs are read at a time in search of objects: a statement's time is bounded.
const namedAtOnce = 500

// NamedObjects implements ledger.Store. The view has the jobs whose spec or result has an object in it, by an index.
func (s *Store) NamedObjects(ctx context.Context, do func(tenant string, ref jobs.ObjectRef)) error {
	files := func(tenant string, spec *jobs.Spec) {
		if spec == nil {
			return
		}
		for _, f := range spec.Files {
			if f.Object != nil {
				do(tenant, *f.Object)
			}
		}
	}
	last, n := "", 0
	job := func(row Row) error {
		var id, tenant string
		var state jobs.State
		var spec, result []byte
		if err := row.Scan(&id, &tenant, &state, &spec, &result); err != nil {
			return err
		}
		last, n = id, n+1
		var sp jobs.Spec
		var r jobs.Result
		if err := json.Unmarshal(spec, &sp); err != nil {
			return fmt.Errorf("spec of %s: %w", id, err)
		}
		if result != nil {
			if err := json.Unmarshal(result, &r); err != nil {
				return fmt.Errorf("result of %s: %w", id, err)
			}
		}
		if state != jobs.StateEnded {
			files(tenant, &sp)
		}
		for _, a := range r.Artifacts {
			if a.Object != nil {
				do(tenant, *a.Object)
			}
		}
		return nil
	}
	for {
		n = 0
		if err := s.read.each(ctx, job, `SELECT id, tenant, state, spec, result FROM object_jobs WHERE id > ? ORDER BY id LIMIT ?`, last, namedAtOnce); err != nil {
			return err
		}
		if n < namedAtOnce {
			break
		}
	}
	return s.read.each(ctx, func(row Row) error {
		var tenant string
		var data []byte
		if err := row.Scan(&tenant, &data); err != nil {
			return err
		}
		var sc jobs.Schedule
		if err := json.Unmarshal(data, &sc); err != nil {
			return fmt.Errorf("a schedule of %s: %w", tenant, err)
		}
		files(tenant, sc.Spec)
		return nil
	}, `SELECT tenant, data FROM schedules`)
}
