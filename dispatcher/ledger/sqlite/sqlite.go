// Package sqlite keeps the ledger in one SQLite file, in WAL mode with synchronous=FULL: what a method says it has written survives
// the power's loss. It is for one dispatcher at a time; the file's lock keeps a second one out.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is a ledger.Store in a file.
type Store struct {
	db    *sql.DB // of the writer's connection
	write *writer
	read  *sql.DB
	// get and outbox are read's, parsed once for each of its connections.
	get, outbox *sql.Stmt
	stop        context.CancelFunc
	lock        *os.File

	closing sync.Once
	closed  error // what closing gave
}

var _ ledger.Store = (*Store)(nil)

// Open opens the ledger, makes it where it is missing, and brings its schema up to date.
func Open(ctx context.Context, file string) (_ *Store, err error) {
	s := &Store{}
	if err := s.open(ctx, file); err != nil {
		return nil, errors.Join(fmt.Errorf("open ledger %s: %w", file, err), s.close())
	}
	run, stop := context.WithCancel(context.Background())
	s.stop = stop
	go s.write.run(run) //nolint:contextcheck // ends with Close, not with the call that opened
	return s, nil
}

// open opens one thing after the other; on error, close closes those that are open.
func (s *Store) open(ctx context.Context, file string) (err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	if s.lock, err = os.OpenFile(file+".lock", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if err := syscall.Flock(int(s.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.New("another dispatcher has it")
	}
	dsn := "file:" + (&url.URL{Path: file}).EscapedPath() + "?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(ON)"
	if s.db, err = sql.Open("sqlite", dsn); err != nil {
		return err
	}
	s.db.SetMaxOpenConns(1)
	if err := migrate(ctx, s.db); err != nil {
		return err
	}
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	s.write = &writer{conn: conn, stmts: map[string]*sql.Stmt{}, ops: make(chan *op, maxBatch), end: make(chan struct{})}
	if s.read, err = sql.Open("sqlite", dsn+"&_pragma=query_only(ON)"); err != nil {
		return err
	}
	s.read.SetMaxOpenConns(4)
	if s.get, err = s.read.PrepareContext(ctx, `SELECT `+jobColumns+`, spec FROM jobs WHERE id = ? AND tenant = ?`); err != nil {
		return err
	}
	s.outbox, err = s.read.PrepareContext(ctx, `SELECT id, event, dead FROM outbox ORDER BY id LIMIT ?`)
	return err
}

// close closes what is open; the statements go with their connections.
func (s *Store) close() error {
	var errs []error
	if s.read != nil {
		errs = append(errs, s.read.Close())
	}
	if s.write != nil {
		errs = append(errs, s.write.close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

func migrate(ctx context.Context, db *sql.DB) error {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, dir)
	if err != nil {
		return err
	}
	have, known, err := p.GetVersions(ctx)
	if err != nil {
		return err
	}
	if have > known { // goose would leave it as it is, and we would write into what we do not know
		return fmt.Errorf("its schema has the version %d, newer than this Paddock's %d", have, known)
	}
	_, err = p.Up(ctx)
	return err
}

// Close ends the ledger. What was not handed in yet is refused. Closing again does nothing.
func (s *Store) Close() error {
	s.stop()
	<-s.write.end
	s.closing.Do(func() { s.closed = s.close() })
	return s.closed
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}

// Admit implements ledger.Store.
func (s *Store) Admit(ctx context.Context, a ledger.Admission) (taken *ledger.Taken, err error) {
	spec, err := json.Marshal(a.Job.Spec)
	if err != nil {
		return nil, err
	}
	labels, err := json.Marshal(a.Job.Labels)
	if err != nil {
		return nil, err
	}
	e := a.Entry
	err = s.write.write(ctx, func(ctx context.Context, tx transaction) error {
		taken = nil
		if a.Key != "" {
			_, err := tx.exec(ctx, `DELETE FROM idempotency WHERE tenant = ? AND key = ? AND until < ?`, e.Tenant, a.Key, micros(a.Job.AcceptedAt))
			if err != nil {
				return err
			}
			n, err := tx.exec(ctx, `INSERT INTO idempotency (tenant, key, job, until) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`,
				e.Tenant, a.Key, e.ID, micros(a.KeyUntil))
			if err != nil {
				return err
			}
			if n == 0 {
				taken, err = takenBy(ctx, tx, `id = (SELECT job FROM idempotency WHERE tenant = ? AND key = ?)`, e.Tenant, a.Key)
				return err
			}
		}
		n, err := tx.exec(ctx, `INSERT INTO jobs (id, tenant, state, image, priority, vcpus, memory_mib, network, infra_left, labels, hash, spec, accepted_at, expires_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			e.ID, e.Tenant, e.State, e.Image, e.Priority, e.Resources.VCPUs, e.Resources.MemoryMiB, e.Network, e.InfraLeft, labels, a.Hash, spec,
			micros(e.AcceptedAt), micros(e.ExpiresAt))
		if err != nil || n == 1 {
			return err
		}
		if taken, err = takenBy(ctx, tx, `id = ? AND tenant = ?`, e.ID, e.Tenant); err != nil {
			return err
		}
		if taken == nil { // another tenant's: nothing of it is shown
			taken = &ledger.Taken{}
		}
		if a.Key != "" {
			_, err = tx.exec(ctx, `DELETE FROM idempotency WHERE tenant = ? AND key = ?`, e.Tenant, a.Key)
		}
		return err
	})
	return taken, err
}

func takenBy(ctx context.Context, tx transaction, where string, args ...any) (*ledger.Taken, error) {
	var t ledger.Taken
	err := tx.scan(ctx, `SELECT `+jobColumns+`, hash FROM jobs WHERE `+where, func(row *sql.Row) error { return scanJob(row, &t.Job, &t.Hash) }, args...)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return &t, err
}

const jobColumns = `id, tenant, state, attempt, image, worker, labels, accepted_at, leased_at, ended_at, cancel, result`

// scanJob reads a row of jobColumns and what follows.
func scanJob(row interface{ Scan(...any) error }, j *jobs.Job, more ...any) error {
	var labels, result []byte
	var accepted, leased, ended int64
	err := row.Scan(append([]any{&j.ID, &j.Tenant, &j.State, &j.Attempt, &j.Image, &j.Worker, &labels, &accepted, &leased, &ended, &j.CancelRequested, &result}, more...)...)
	if err != nil {
		return err
	}
	j.AcceptedAt, j.LeasedAt, j.EndedAt = fromMicros(accepted), fromMicros(leased), fromMicros(ended)
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

// Open implements ledger.Store.
func (s *Store) Open(ctx context.Context) (list []ledger.Entry, err error) {
	rows, err := s.read.QueryContext(ctx, `SELECT id, tenant, image, state, priority, vcpus, memory_mib, network, accepted_at, expires_at, not_before, attempt, epoch,
		worker, session, infra_left, cancel, leased_at FROM jobs WHERE state NOT IN ('ended', 'dead') ORDER BY accepted_at, id`)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err tells
	for rows.Next() {
		var e ledger.Entry
		var accepted, expires, notBefore, leased int64
		if err := rows.Scan(&e.ID, &e.Tenant, &e.Image, &e.State, &e.Priority, &e.Resources.VCPUs, &e.Resources.MemoryMiB, &e.Network, &accepted, &expires, &notBefore,
			&e.Attempt, &e.Epoch, &e.Worker, &e.Session, &e.InfraLeft, &e.Cancel, &leased); err != nil {
			return nil, err
		}
		e.AcceptedAt, e.ExpiresAt, e.NotBefore, e.LeasedAt = fromMicros(accepted), fromMicros(expires), fromMicros(notBefore), fromMicros(leased)
		list = append(list, e)
	}
	return list, rows.Err()
}

// Get implements ledger.Store.
func (s *Store) Get(ctx context.Context, tenant, id string) (j jobs.Job, err error) {
	var spec []byte
	err = scanJob(s.get.QueryRowContext(ctx, id, tenant), &j, &spec)
	if errors.Is(err, sql.ErrNoRows) {
		return j, ledger.ErrNotFound
	}
	if err != nil {
		return j, err
	}
	j.Spec = new(jobs.Spec)
	return j, json.Unmarshal(spec, j.Spec)
}

// List implements ledger.Store. Ids sort by the time of their making, so that they are the cursor.
func (s *Store) List(ctx context.Context, tenant string, q jobs.ListRequest) (jobs.ListReply, error) {
	where, args := []string{`tenant = ?`}, []any{tenant}
	if q.Before != "" {
		where, args = append(where, `id < ?`), append(args, q.Before)
	}
	if len(q.States) > 0 {
		where = append(where, `state IN (?`+strings.Repeat(`, ?`, len(q.States)-1)+`)`)
		for _, st := range q.States {
			args = append(args, st)
		}
	}
	rows, err := s.read.QueryContext(ctx, `SELECT `+jobColumns+` FROM jobs WHERE `+strings.Join(where, ` AND `)+` ORDER BY id DESC LIMIT ?`, append(args, q.Limit+1)...)
	if err != nil {
		return jobs.ListReply{}, err
	}
	defer rows.Close() //nolint:errcheck // Err tells
	reply := jobs.ListReply{Jobs: []jobs.Job{}}
	for rows.Next() {
		var j jobs.Job
		if err := scanJob(rows, &j); err != nil {
			return reply, err
		}
		if len(reply.Jobs) == q.Limit {
			reply.Next = reply.Jobs[q.Limit-1].ID
			break
		}
		reply.Jobs = append(reply.Jobs, j)
	}
	return reply, rows.Err()
}

// Register implements ledger.Store.
func (s *Store) Register(ctx context.Context, worker string) (session int64, err error) {
	err = s.write.write(ctx, func(ctx context.Context, tx transaction) error {
		return tx.scan(ctx, `INSERT INTO workers (name, session) VALUES (?, (SELECT coalesce(max(session), 0) + 1 FROM workers))
			ON CONFLICT (name) DO UPDATE SET session = excluded.session RETURNING session`, func(row *sql.Row) error { return row.Scan(&session) }, worker)
	})
	return session, err
}

// Sessions implements ledger.Store.
func (s *Store) Sessions(ctx context.Context) (map[string]int64, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT name, session FROM workers`)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err tells
	m := map[string]int64{}
	for rows.Next() {
		var name string
		var session int64
		if err := rows.Scan(&name, &session); err != nil {
			return nil, err
		}
		m[name] = session
	}
	return m, rows.Err()
}
