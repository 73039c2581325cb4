package sqlite_test

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlstore"
	"github.com/paddockvm/paddock/jobs"
)

// counting is a connection that knows how many deliveries its largest transaction has changed.
type counting struct {
	db       *sql.DB
	now      int64
	most, in atomic.Int64 // in is all of them
}

func (c *counting) Run(ctx context.Context, list []*sqlstore.Stmt) error {
	for _, st := range list {
		if strings.HasPrefix(st.Query, "BEGIN") {
			c.now = 0
		}
		if err := c.run(ctx, st); err != nil {
			return err
		}
		if strings.HasPrefix(st.Query, "UPDATE deliveries") {
			c.now += st.Rows
			c.in.Add(st.Rows)
			c.most.Store(max(c.most.Load(), c.now))
		}
	}
	return nil
}

func (c *counting) run(ctx context.Context, st *sqlstore.Stmt) error {
	if st.Scan == nil {
		r, err := c.db.ExecContext(ctx, st.Query, st.Args...)
		if err == nil {
			st.Rows, err = r.RowsAffected()
		}
		return err
	}
	rows, err := c.db.QueryContext(ctx, st.Query, st.Args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := st.Scan(rows); err != nil {
			return err
		}
		st.Rows++
	}
	return rows.Err()
}

func (c *counting) Lost() bool   { return false }
func (c *counting) Close() error { return c.db.Close() }

// What a tenant may ask of all its deliveries at once, however many they are, is done a few at a time: all else that is written goes between.
func TestManyDeliveries(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ledger.db")
	s, err := sqlite.Open(t.Context(), file) // for its schema
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open := func() *sql.DB {
		db, err := sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(5000)")
		if err != nil {
			t.Fatal(err)
		}
		db.SetMaxOpenConns(1)
		return db
	}
	c := &counting{db: open()}
	s = sqlstore.Open(sqlstore.Database{
		Connect: func(context.Context) (sqlstore.Conn, error) { return c, nil }, Read: open(),
		Dialect: sqlstore.Dialect{
			Bind: func(q string) string { return q }, Begin: `BEGIN IMMEDIATE`, Exclusive: true,
			Error: func(err error) error { return err }, Again: func(error) bool { return false },
		},
	})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	const many = 1000
	now := time.Now().Truncate(time.Microsecond)
	e := ledger.Endpoint{ID: jobs.NewID(), Tenant: "t", Enabled: true, CreatedAt: now}
	if _, err := s.AddEndpoint(t.Context(), e, 9); err != nil {
		t.Fatal(err)
	}
	insert := &sqlstore.Stmt{
		Query: `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
			INSERT INTO deliveries (id, tenant, target, endpoint, url, event, job, batch, format, body, state, step, created_at, next_at)
			SELECT printf('%04d', i), 't', ?, ?, '', '', '', '', '', '', 'pending', 0, ?, ? FROM n`,
		Args: []any{many, e.ID, e.ID, now.UnixMicro(), now.UnixMicro()},
	}
	if err := c.run(t.Context(), insert); err != nil {
		t.Fatal(err)
	}
	enable := func(on bool) error {
		_, err := s.ChangeEndpoint(t.Context(), "t", e.ID, func(e *ledger.Endpoint) { e.Enabled, e.DisabledAt = on, now })
		return err
	}
	replay := func() error {
		targets, n, err := s.Redeliver(t.Context(), "t", jobs.RedeliverRequest{Since: now}, now)
		if err == nil && (n != many || len(targets) != 1 || targets[0].Target != e.ID) {
			err = fmt.Errorf("%d replayed, of %v", n, targets)
		}
		return err
	}
	for _, what := range []struct {
		name string
		do   func() error
	}{
		{"disable", func() error { return enable(false) }},
		{"enable", func() error { return enable(true) }},
		{"replay", replay},
		{"disabled by an answer", func() error {
			return s.DeliveryTried(t.Context(), ledger.DeliveryTry{Tenant: "t", ID: "0001", Endpoint: e.ID, State: jobs.DeliveryPending, Change: func(e *ledger.Endpoint) bool {
				e.Enabled, e.DisabledAt = false, now
				return true
			}})
		}},
		{"enable again", func() error { return enable(true) }},
		{"replay again", replay},
		{"remove", func() error {
			_, err := s.RemoveEndpoint(t.Context(), "t", e.ID, now)
			return err
		}},
	} {
		if err := what.do(); err != nil {
			t.Fatalf("%s: %v", what.name, err)
		}
		if n := c.most.Swap(0); n > 300 {
			t.Errorf("%s changes %d deliveries in one transaction", what.name, n)
		}
	}
	if n := c.in.Load(); n < 5*many {
		t.Errorf("%d changes of deliveries, want five of each of %d", n, many)
	}
	left, err := s.PendingDeliveries(t.Context(), e.ID, 1)
	if err != nil || len(left) > 0 {
		t.Errorf("pending: %v, %v", left, err)
	}
}
