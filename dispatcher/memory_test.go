package dispatcher_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
	"github.com/paddockvm/paddock/jobs"
)

// disk is what outlives a ledger: a file. It is in memory where the host has such a place, for a bubble's clock stands still meanwhile.
type disk struct {
	t    *testing.T
	file string
	db   *sql.DB // the tests' own
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "paddock-test-*") //nolint:usetesting // there is no fsync to wait for there
	if err == nil {
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
	} else {
		dir = t.TempDir()
	}
	d := &disk{t: t, file: filepath.Join(dir, "ledger.db")}
	if d.db, err = sql.Open("sqlite", "file:"+d.file+"?_pragma=busy_timeout(5000)"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.db.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// row is what the tests look at of a job.
type row struct {
	job jobs.Job // with its result
	ledger.Entry
}

// query reads the file beside whoever has the ledger open, or has died.
func (d *disk) query(scan func(rows *sql.Rows) error, query string) {
	d.t.Helper()
	if _, err := os.Stat(d.file); errors.Is(err, os.ErrNotExist) {
		return
	}
	rows, err := d.db.Query(query) //nolint:noctx // a file
	if err != nil {
		d.t.Error(err)
		return
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			d.t.Error(err)
		}
	}
	if err := rows.Err(); err != nil {
		d.t.Error(err)
	}
}

// rows are all jobs in the file.
func (d *disk) rows() map[string]*row {
	d.t.Helper()
	m := map[string]*row{}
	d.query(func(rows *sql.Rows) error {
		r := &row{}
		var result []byte
		err := rows.Scan(&r.ID, &r.Tenant, &r.State, &r.Attempt, &r.Epoch, &r.Worker, &r.Session, &r.InfraLeft, &r.Cancel, &result)
		if err == nil && result != nil {
			err = json.Unmarshal(result, &r.job.Result)
		}
		m[r.ID] = r
		return err
	}, `SELECT id, tenant, state, attempt, epoch, worker, session, infra_left, cancel, result FROM jobs`)
	return m
}

// out are the events in the outbox.
func (d *disk) out() (events []string) {
	d.t.Helper()
	d.query(func(rows *sql.Rows) error {
		var e string
		err := rows.Scan(&e)
		events = append(events, e)
		return err
	}, `SELECT CAST(event AS TEXT) FROM outbox`)
	return events
}

// sessions are the workers'.
func (d *disk) sessions() map[string]int64 {
	d.t.Helper()
	m := map[string]int64{}
	d.query(func(rows *sql.Rows) error {
		var name string
		var session int64
		err := rows.Scan(&name, &session)
		m[name] = session
		return err
	}, `SELECT name, session FROM workers`)
	return m
}

// memory is a ledger on a disk until it is closed; then it changes nothing any more, as if its process had died. Tests meet its operations
// by their names.
type memory struct {
	*disk
	hooks

	opening sync.Once
	// asked counts the jobs whose outcomes were asked for, and read those that were read as open ones.
	asked, read atomic.Int64
	ledger.Store
}

// do runs an operation, on a ledger that is opened for the first.
func (m *memory) do(op string, do func() error) error {
	return m.around(op, func() error { m.open(); return do() })
}

func (m *memory) open() {
	m.opening.Do(func() {
		s, err := sqlite.Open(context.Background(), m.file)
		if err != nil {
			panic(err) // a test's fault: a ledger that was not closed
		}
		m.Store = s
	})
}

func (m *memory) Close() error {
	m.open()
	return m.Store.Close()
}

func (m *memory) Admit(ctx context.Context, a ledger.Admission) (taken *ledger.Taken, err error) {
	err = m.do("admit", func() error { taken, err = m.Store.Admit(ctx, a); return err })
	return taken, err
}

func (m *memory) AdmitBatch(ctx context.Context, b ledger.BatchAdmission) (got ledger.Admitted, err error) {
	err = m.do("admit batch", func() error { got, err = m.Store.AdmitBatch(ctx, b); return err })
	return got, err
}

func (m *memory) Open(ctx context.Context) (list []ledger.Entry, err error) {
	err = m.do("open", func() error { list, err = m.Store.Open(ctx); return err })
	m.read.Add(int64(len(list)))
	return list, err
}

func (m *memory) OpenOf(ctx context.Context, ids []string) (list []ledger.Entry, err error) {
	err = m.do("open of", func() error { list, err = m.Store.OpenOf(ctx, ids); return err })
	m.read.Add(int64(len(list)))
	return list, err
}

func (m *memory) Lease(ctx context.Context, leases []ledger.Lease) (specs [][]byte, err error) {
	err = m.do("lease", func() error { specs, err = m.Store.Lease(ctx, leases); return err })
	return specs, err
}

func (m *memory) Running(ctx context.Context, held []jobs.Held, at time.Time) error {
	return m.do("running", func() error { return m.Store.Running(ctx, held, at) })
}

func (m *memory) Finish(ctx context.Context, h jobs.Held, state jobs.State, r jobs.Result, final jobs.Event) (ok bool, err error) {
	err = m.do("finish", func() error { ok, err = m.Store.Finish(ctx, h, state, r, final); return err })
	return ok, err
}

func (m *memory) Requeue(ctx context.Context, h jobs.Held, r ledger.Retry, event jobs.Event) (ok bool, err error) {
	err = m.do("requeue", func() error { ok, err = m.Store.Requeue(ctx, h, r, event); return err })
	return ok, err
}

func (m *memory) EndQueued(ctx context.Context, id string, attempt int, state jobs.State, r jobs.Result, final jobs.Event) (ok bool, err error) {
	err = m.do("end queued", func() error { ok, err = m.Store.EndQueued(ctx, id, attempt, state, r, final); return err })
	return ok, err
}

func (m *memory) RequestCancel(ctx context.Context, tenant, id string) (j jobs.Job, err error) {
	err = m.do("cancel", func() error { j, err = m.Store.RequestCancel(ctx, tenant, id); return err })
	return j, err
}

func (m *memory) Get(ctx context.Context, tenant, id string) (j jobs.Job, err error) {
	err = m.do("get", func() error { j, err = m.Store.Get(ctx, tenant, id); return err })
	return j, err
}

func (m *memory) List(ctx context.Context, tenant string, q jobs.ListRequest) (reply jobs.ListReply, err error) {
	err = m.do("list", func() error { reply, err = m.Store.List(ctx, tenant, q); return err })
	return reply, err
}

func (m *memory) Register(ctx context.Context, worker string, at time.Time) (session int64, err error) {
	err = m.do("register", func() error { session, err = m.Store.Register(ctx, worker, at); return err })
	return session, err
}

func (m *memory) Workers(ctx context.Context) (all []ledger.Worker, err error) {
	err = m.do("workers", func() error { all, err = m.Store.Workers(ctx); return err })
	return all, err
}

func (m *memory) Forget(ctx context.Context, before time.Time, limit int) (n int, err error) {
	err = m.do("forget", func() error { n, err = m.Store.Forget(ctx, before, limit); return err })
	return n, err
}

func (m *memory) Outcomes(ctx context.Context, tenant string, ids []string) (map[string]ledger.Outcome, error) {
	m.open()
	m.asked.Add(int64(len(ids)))
	return m.Store.Outcomes(ctx, tenant, ids)
}

func (m *memory) Outbox(ctx context.Context, after int64, limit int) (list []ledger.Outgoing, err error) {
	err = m.do("outbox", func() error { list, err = m.Store.Outbox(ctx, after, limit); return err })
	return list, err
}

func (m *memory) Published(ctx context.Context, ids []int64) error {
	return m.do("published", func() error { return m.Store.Published(ctx, ids) })
}
