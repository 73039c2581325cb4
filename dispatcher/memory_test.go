package dispatcher_test

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/ledgertest"
	"github.com/paddockvm/paddock/jobs"
)

// disk is what outlives a ledger: the truth about every job, in memory, because a synctest bubble bears no real I/O.
type disk struct {
	mu       sync.Mutex
	rows     map[string]*row
	keys     map[[2]string]key
	sessions map[string]int64
	session  int64
	out      []ledger.Outgoing
	outID    int64
}

type row struct {
	job  jobs.Job
	hash string
	ledger.Entry
}

type key struct {
	job   string
	until time.Time
}

func newDisk() *disk {
	return &disk{rows: map[string]*row{}, keys: map[[2]string]key{}, sessions: map[string]int64{}}
}

// memory is a ledger.Store on a disk until it is closed; then it changes nothing any more, as if its process had died.
type memory struct {
	*disk
	closed bool // guarded by disk.mu
	hooks
}

var (
	_ ledger.Store = (*memory)(nil)

	errClosed = errors.New("ledger closed")
)

func TestMemory(t *testing.T) {
	var mu sync.Mutex
	disks := map[string]*disk{}
	ledgertest.Run(t, func(t *testing.T) ledger.Store {
		mu.Lock()
		defer mu.Unlock()
		if disks[t.Name()] == nil {
			disks[t.Name()] = newDisk()
		}
		return &memory{disk: disks[t.Name()]}
	})
}

// do runs an operation as one transaction.
func (m *memory) do(op string, change func()) error {
	return m.around(op, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.closed {
			return errClosed
		}
		change()
		return nil
	})
}

func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

// record is the job as the ledger shows it, without its spec.
func (r *row) record() jobs.Job {
	j := r.job
	j.State, j.Attempt, j.Worker, j.LeasedAt, j.CancelRequested, j.Spec = r.State, r.Attempt, r.Worker, r.LeasedAt, r.Cancel, nil
	return j
}

func (m *memory) Admit(_ context.Context, a ledger.Admission) (taken *ledger.Taken, err error) {
	err = m.do("admit", func() {
		k := [2]string{a.Entry.Tenant, a.Key}
		if by, ok := m.keys[k]; ok && a.Key != "" && !by.until.Before(a.Job.AcceptedAt) {
			taken = &ledger.Taken{Job: m.rows[by.job].record(), Hash: m.rows[by.job].hash}
			return
		}
		if by := m.rows[a.Entry.ID]; by != nil {
			taken = &ledger.Taken{}
			if by.Tenant == a.Entry.Tenant {
				taken = &ledger.Taken{Job: by.record(), Hash: by.hash}
			}
			return
		}
		m.rows[a.Entry.ID] = &row{a.Job, a.Hash, a.Entry}
		if a.Key != "" {
			m.keys[k] = key{a.Entry.ID, a.KeyUntil}
		}
	})
	return taken, err
}

func (m *memory) Open(context.Context) (list []ledger.Entry, err error) {
	err = m.do("open", func() {
		for _, r := range m.rows {
			if !r.State.Terminal() {
				list = append(list, r.Entry)
			}
		}
		slices.SortFunc(list, func(a, b ledger.Entry) int {
			return cmp.Or(a.AcceptedAt.Compare(b.AcceptedAt), cmp.Compare(a.ID, b.ID))
		})
	})
	return list, err
}

func (m *memory) Lease(_ context.Context, leases []ledger.Lease) (ok []bool, err error) {
	err = m.do("lease", func() {
		ok = make([]bool, len(leases))
		for i, l := range leases {
			r := m.rows[l.Job]
			if r == nil || r.State != jobs.StateQueued || r.Attempt != l.Attempt-1 || r.Epoch >= l.Epoch || r.Cancel {
				continue
			}
			ok[i] = true
			r.State, r.Attempt, r.Epoch, r.Worker, r.Session, r.LeasedAt = jobs.StateLeased, l.Attempt, l.Epoch, l.Worker, l.Session, l.At
		}
	})
	return ok, err
}

// held gives the job whose current attempt it is; nil where it is not.
func (m *memory) held(h jobs.Held) *row {
	r := m.rows[h.Job]
	if r == nil || r.State.Terminal() || r.State == jobs.StateQueued || r.Attempt != h.Attempt || r.Epoch != h.Epoch {
		return nil
	}
	return r
}

func (m *memory) Running(_ context.Context, held []jobs.Held) error {
	return m.do("running", func() {
		for _, h := range held {
			if r := m.held(h); r != nil {
				r.State = jobs.StateRunning
			}
		}
	})
}

func (m *memory) tell(e jobs.Event, dead bool) {
	m.outID++
	m.out = append(m.out, ledger.Outgoing{ID: m.outID, Event: e, Dead: dead})
}

func (m *memory) end(r *row, state jobs.State, result jobs.Result, final jobs.Event) {
	r.State, r.job.Result, r.job.EndedAt = state, &result, result.EndedAt
	m.tell(final, state == jobs.StateDead)
}

func (m *memory) Finish(_ context.Context, h jobs.Held, state jobs.State, result jobs.Result, final jobs.Event) (ok bool, err error) {
	err = m.do("finish", func() {
		if r := m.held(h); r != nil {
			ok = true
			m.end(r, state, result, final)
		}
	})
	return ok, err
}

func (m *memory) Requeue(_ context.Context, h jobs.Held, notBefore time.Time, event jobs.Event) (ok bool, err error) {
	err = m.do("requeue", func() {
		r := m.held(h)
		if r == nil {
			return
		}
		ok = true
		r.State, r.NotBefore = jobs.StateQueued, notBefore
		r.InfraLeft--
		m.tell(event, false)
	})
	return ok, err
}

func (m *memory) EndQueued(_ context.Context, id string, attempt int, state jobs.State, result jobs.Result, final jobs.Event) (ok bool, err error) {
	err = m.do("end queued", func() {
		if r := m.rows[id]; r != nil && r.State == jobs.StateQueued && r.Attempt == attempt {
			ok = true
			m.end(r, state, result, final)
		}
	})
	return ok, err
}

func (m *memory) RequestCancel(_ context.Context, tenant, id string) (j jobs.Job, err error) {
	found := false
	err = m.do("cancel", func() {
		r := m.rows[id]
		if r == nil || r.Tenant != tenant {
			return
		}
		found = true
		r.Cancel = r.Cancel || !r.State.Terminal()
		j = r.record()
	})
	if err == nil && !found {
		err = ledger.ErrNotFound
	}
	return j, err
}

func (m *memory) Get(_ context.Context, tenant, id string) (j jobs.Job, err error) {
	found := false
	err = m.do("get", func() {
		if r := m.rows[id]; r != nil && r.Tenant == tenant {
			found = true
			j = r.record()
			j.Spec = r.job.Spec
		}
	})
	if err == nil && !found {
		err = ledger.ErrNotFound
	}
	return j, err
}

func (m *memory) List(_ context.Context, tenant string, q jobs.ListRequest) (reply jobs.ListReply, err error) {
	reply.Jobs = []jobs.Job{}
	err = m.do("list", func() {
		ids := slices.Sorted(maps.Keys(m.rows))
		for _, id := range slices.Backward(ids) {
			r := m.rows[id]
			if r.Tenant != tenant || q.Before != "" && id >= q.Before || len(q.States) > 0 && !slices.Contains(q.States, r.State) {
				continue
			}
			if len(reply.Jobs) == q.Limit {
				reply.Next = reply.Jobs[q.Limit-1].ID
				return
			}
			reply.Jobs = append(reply.Jobs, r.record())
		}
	})
	return reply, err
}

func (m *memory) Register(_ context.Context, worker string) (session int64, err error) {
	err = m.do("register", func() {
		m.session++
		m.sessions[worker] = m.session
		session = m.session
	})
	return session, err
}

func (m *memory) Sessions(context.Context) (all map[string]int64, err error) {
	err = m.do("sessions", func() { all = maps.Clone(m.sessions) })
	return all, err
}

func (m *memory) Forget(_ context.Context, before time.Time, limit int) (n int, err error) {
	err = m.do("forget", func() {
		busy := map[string]bool{}
		var old []*row
		for _, r := range m.rows {
			if !r.State.Terminal() {
				busy[r.Worker] = true
			} else if r.job.EndedAt.Before(before) {
				old = append(old, r)
			}
		}
		slices.SortFunc(old, func(a, b *row) int { return a.job.EndedAt.Compare(b.job.EndedAt) })
		n = min(limit, len(old))
		for _, r := range old[:n] {
			delete(m.rows, r.ID)
			maps.DeleteFunc(m.keys, func(_ [2]string, k key) bool { return k.job == r.ID })
		}
		left := limit
		maps.DeleteFunc(m.sessions, func(worker string, session int64) bool {
			idle := session < m.session && !busy[worker] && left > 0
			if idle {
				left--
			}
			return idle
		})
	})
	return n, err
}

func (m *memory) Outbox(_ context.Context, limit int) (list []ledger.Outgoing, err error) {
	err = m.do("outbox", func() { list = slices.Clone(m.out[:min(limit, len(m.out))]) })
	return list, err
}

func (m *memory) Published(_ context.Context, ids []int64) error {
	return m.do("published", func() {
		m.out = slices.DeleteFunc(m.out, func(o ledger.Outgoing) bool { return slices.Contains(ids, o.ID) })
	})
}
