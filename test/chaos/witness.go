package chaos

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/nats-io/nats.go/jetstream"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

// witnesses are what was read when all was over.
type witnesses struct {
	records map[string]*record      // the ledger's
	events  map[string][]jobs.Event // the stream's, by job, in their order
	seen    map[string][]jobs.Event // by job, what a client sees that follows it from its beginning, of some of them
	runs    func(job string) []run  // the programs' own
	hooks   func(job string) []told // the receiver's
	tasks   map[string]task         // Redis', by asynq's id
	over    time.Time
}

// task is the result that asynq's task holds.
type task struct {
	Job   string     `json:"job"`
	State jobs.State `json:"state"`
	jobs.Result
}

// arrived is the condition that a job is not of a batch that is being written: that is not there yet.
const arrived = `batch NOT IN (SELECT id FROM batches WHERE incoming)`

// readLedger reads all jobs, past Paddock.
func readLedger(ctx context.Context, db *sql.DB, clocks *clocks) (map[string]*record, error) {
	all := map[string]*record{}
	rows, err := db.QueryContext(ctx, `SELECT id, tenant, state, attempt, epoch, worker, result, accepted_at, leased_at, ended_at FROM jobs WHERE `+arrived)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r record
		var result []byte
		var accepted, leased, ended int64
		if err := rows.Scan(&r.ID, &r.Tenant, &r.State, &r.Attempt, &r.epoch, &r.Worker, &result, &accepted, &leased, &ended); err != nil {
			return nil, err
		}
		r.AcceptedAt, r.LeasedAt, r.EndedAt = time.UnixMicro(accepted), time.UnixMicro(leased), time.Time{}
		if ended > 0 {
			r.EndedAt = time.UnixMicro(ended)
		}
		if len(result) > 0 {
			r.Result = new(jobs.Result)
			if err := json.Unmarshal(result, r.Result); err != nil {
				return nil, fmt.Errorf("result of %s: %w", r.ID, err)
			}
		}
		all[r.ID] = &r
	}
	if err := errors.Join(rows.Err(), readAttempts(ctx, db, all)); err != nil {
		return nil, err
	}
	for _, r := range all {
		r.reckon(clocks)
	}
	return all, nil
}

func readAttempts(ctx context.Context, db *sql.DB, all map[string]*record) error {
	rows, err := db.QueryContext(ctx, `SELECT job, data FROM attempts ORDER BY job, n`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var job string
		var data []byte
		if err := rows.Scan(&job, &data); err != nil {
			return err
		}
		var a jobs.Attempt
		if err := json.Unmarshal(data, &a); err != nil {
			return fmt.Errorf("attempt of %s: %w", job, err)
		}
		if r := all[job]; r != nil {
			r.Attempts = append(r.Attempts, a)
		}
	}
	return rows.Err()
}

// unfinished says what Paddock still has to do, by the ledger; empty where nothing.
func unfinished(ctx context.Context, db *sql.DB, l *load) (string, error) {
	ended := map[string]bool{}
	rows, err := db.QueryContext(ctx, `SELECT id, ended_at FROM jobs WHERE `+arrived)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	open := 0
	for rows.Next() {
		var id string
		var at int64
		if err := rows.Scan(&id, &at); err != nil {
			return "", err
		}
		ended[id] = at > 0
		if at == 0 {
			open++
		}
	}
	if err := rows.Err(); err != nil {
		return "", err
	}
	absent := 0
	for _, j := range l.byID {
		if _, there := ended[j.id]; !there && j.isAccepted() {
			absent++
		}
	}
	if open > 0 || absent > 0 {
		return fmt.Sprintf("%d jobs have not ended, %d that were accepted are not there", open, absent), nil
	}
	for what, query := range map[string]string{
		"events in the outbox": `SELECT count(*) FROM outbox`,
		"webhooks to be made":  `SELECT count(*) FROM hooks`,
		"webhooks to be sent":  `SELECT count(*) FROM deliveries WHERE ended_at = 0`,
	} {
		var n int
		if err := db.QueryRowContext(ctx, query).Scan(&n); err != nil || n > 0 {
			return fmt.Sprintf("%d %s", n, what), err
		}
	}
	if n := l.openTasks(); n > 0 {
		return fmt.Sprintf("%d of asynq's tasks", n), nil
	}
	return "", nil
}

func (j *job) isAccepted() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.accepted
}

// asynqJobs are those that came in as tasks and were accepted.
func (l *load) asynqJobs() (list []*job) {
	for _, u := range l.units {
		if u.via == viaAsynq && u.jobs[0].isAccepted() {
			list = append(list, u.jobs[0])
		}
	}
	return list
}

func (l *load) openTasks() (n int) {
	for _, j := range l.asynqJobs() {
		info, err := l.tasks.GetTaskInfo(taskQueue, j.id)
		if err != nil || info.CompletedAt.IsZero() && info.State.String() != "archived" {
			n++
		}
	}
	return n
}

// readTasks reads the tasks' results.
func (l *load) readTasks() (map[string]task, error) {
	all := map[string]task{}
	for _, j := range l.asynqJobs() {
		info, err := l.tasks.GetTaskInfo(taskQueue, j.id)
		if err != nil {
			return nil, fmt.Errorf("task %s: %w", j.id, err)
		}
		var t task
		if err := json.Unmarshal(info.Result, &t); err != nil {
			return nil, fmt.Errorf("task %s (%s) holds %q: %w", j.id, info.State, info.Result, err)
		}
		all[j.id] = t
	}
	return all, nil
}

// readEvents reads the stream of events from its beginning.
func readEvents(ctx context.Context, js jetstream.JetStream) (map[string][]jobs.Event, error) {
	all := map[string][]jobs.Event{}
	c, err := js.OrderedConsumer(ctx, jobs.StreamEvents, jetstream.OrderedConsumerConfig{FilterSubjects: []string{jobs.EventSubjects}})
	if err != nil {
		return nil, err
	}
	info, err := c.Info(ctx)
	if err != nil {
		return nil, err
	}
	it, err := c.Messages()
	if err != nil {
		return nil, err
	}
	defer it.Stop()
	for range info.NumPending {
		m, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			return nil, err
		}
		var e jobs.Event
		if err := json.Unmarshal(m.Data(), &e); err != nil {
			return nil, err
		}
		all[e.Job] = append(all[e.Job], e)
	}
	return all, nil
}

// life is a run as far as it counts: until its attempt was over for everybody, by the ledger. What goes on behind that is fenced: nobody
// hears of it, and no cap counts it (docs/adr/0005).
func (r *record) life(of run) (begin, end time.Time, counts bool) {
	begin, end = of.begin, of.end
	// An attempt that was not lost was over when it had reported, after its program's end, whatever clock that was written by.
	if over := r.over(of.attempt).earliest; end.IsZero() || over.Before(end) && (!of.whole || r.lost(of.attempt)) {
		end = over
	}
	if !of.whole && !of.end.IsZero() {
		end = slices.MinFunc([]time.Time{end, of.end.Add(-heardLate)}, time.Time.Compare)
	}
	return begin, end, begin.Before(end)
}

// followed is how many jobs are followed when all is over, each from its beginning.
const followed = 500

// follow reads jobs' events as clients do.
func (l *load) follow(ctx context.Context) (map[string][]jobs.Event, error) {
	all := map[string][]jobs.Event{}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for id, j := range l.byID {
		if len(all) == followed {
			break
		}
		if !j.isAccepted() {
			continue
		}
		mu.Lock()
		all[id] = nil
		mu.Unlock()
		g.Go(func() error {
			var list []jobs.Event
			for e, err := range l.tenants[j.tenant].Follow(ctx, id, client.Position{}) {
				if err != nil {
					return fmt.Errorf("follow %s: %w", id, err)
				}
				list = append(list, e)
			}
			mu.Lock()
			defer mu.Unlock()
			all[id] = list
			return nil
		})
	}
	return all, g.Wait()
}
