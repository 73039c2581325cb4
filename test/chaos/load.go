package chaos

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

// load are the clients.
type load struct {
	nc      *nats.Conn
	js      jetstream.JetStream
	tenants map[string]*client.Client
	redis   *asynq.Client // nil: there is no Redis
	tasks   *asynq.Inspector
	units   []unit
	byID    map[string]*job // but asynq's, whose ids others choose
	sub     *nats.Subscription

	mu      sync.Mutex
	wrong   []string       // answers that nobody may give
	refused map[string]int // tries that were refused or got no answer, by why
}

// clientOptions notice a server that says nothing within seconds.
func clientOptions() []nats.Option {
	return []nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(200 * time.Millisecond), nats.PingInterval(2 * time.Second), nats.MaxPingsOutstanding(2)}
}

// connect connects the clients, past all proxies: what breaks between them and NATS is NATS itself.
func connect(ctx context.Context, f *fleet, hooks *receiver, units []unit) (_ *load, err error) {
	l := &load{tenants: map[string]*client.Client{}, units: units, byID: map[string]*job{}, refused: map[string]int{}}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.nc, err = nats.Connect(f.nats, clientOptions()...); err != nil {
		return nil, err
	}
	if l.js, err = jetstream.New(l.nc); err != nil {
		return nil, err
	}
	for _, t := range tenants {
		c, err := client.Connect(f.nats, client.Tenant(t.name), client.NATS(clientOptions()...))
		if err != nil {
			return nil, err
		}
		l.tenants[t.name] = c
		var r jobs.WebhookReply
		if !l.insist(ctx, "add an endpoint", func(ctx context.Context) (err error) { // that a dispatcher serves may not be known at every NATS server yet
			r, err = c.Webhook(ctx, jobs.WebhookAdd, jobs.EndpointRequest{URL: hooks.url(t.name), Events: []string{jobs.HookEnded}})
			return err
		}) {
			return nil, fmt.Errorf("no endpoint was added: %v", l.wrong)
		}
		if err := hooks.expect(t.name, r.Secret); err != nil {
			return nil, err
		}
	}
	if f.redis != nil {
		at := asynq.RedisClientOpt{Addr: f.redis.addr}
		l.redis, l.tasks = asynq.NewClient(at), asynq.NewInspector(at)
	}
	for _, u := range units {
		for _, j := range u.jobs {
			if j.via != viaAsynq {
				l.byID[j.id] = j
			}
		}
	}
	l.sub, err = l.nc.Subscribe(jobs.EventSubjects, l.heard)
	if err == nil {
		err = l.sub.SetPendingLimits(-1, -1)
	}
	return l, err
}

func (l *load) close() {
	for _, c := range l.tenants {
		c.Close()
	}
	if l.redis != nil {
		_ = l.redis.Close()
		_ = l.tasks.Close()
	}
	if l.nc != nil {
		l.nc.Close()
	}
}

// heard takes the final events.
func (l *load) heard(m *nats.Msg) {
	var e jobs.Event
	if !bytes.Contains(m.Data, []byte(`"final"`)) || json.Unmarshal(m.Data, &e) != nil || !e.Final {
		return
	}
	j := l.byID[e.Job]
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended.IsZero() {
		j.ended = time.Now()
	}
	same := func(o jobs.Event) bool {
		return o.Attempt == e.Attempt && o.Seq == e.Seq && o.Result.Ending == e.Result.Ending
	}
	if !slices.ContainsFunc(j.finals, same) {
		j.finals = append(j.finals, e)
	}
}

// bringIn submits all units, spread over d, and returns when each is accepted or ctx has ended.
func (l *load) bringIn(ctx context.Context, d time.Duration, rest func()) {
	var wg sync.WaitGroup
	start := time.Now()
	for i, u := range l.units {
		at := start.Add(d * time.Duration(i) / time.Duration(len(l.units)))
		if !wait(ctx, time.Until(at)) {
			break
		}
		wg.Go(func() { l.submit(ctx, u) })
	}
	rest()
	wg.Wait()
}

// wait tells whether d went by before ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// submit brings in one unit, however often it takes.
func (l *load) submit(ctx context.Context, u unit) {
	switch u.via {
	case viaBatch:
		l.submitBatch(ctx, u.jobs)
	case viaEnqueue:
		l.enqueue(ctx, u.jobs[0])
	case viaAsynq:
		l.task(ctx, u.jobs[0])
	default:
		for _, j := range u.jobs {
			if !l.request(ctx, j) {
				return
			}
			if j.cancel > 0 && wait(ctx, j.cancel) {
				l.cancel(ctx, j)
			}
		}
	}
}

// tryWithin is what docs/nats.md says to allow a request.
const tryWithin = 15 * time.Second

// insist tries until it is done, and tells whether it was: an answer that trying again cannot change is noted as wrong.
func (l *load) insist(ctx context.Context, what string, try func(ctx context.Context) error) bool {
	for ctx.Err() == nil {
		tctx, cancel := context.WithTimeout(ctx, tryWithin)
		err := try(tctx)
		cancel()
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		pause, why := 300*time.Millisecond, "no answer"
		if e, ok := errors.AsType[*jobs.Error](err); ok {
			why = string(e.Code)
			if e.RetryAfterMS == 0 {
				l.note("%s: %v", what, err)
				return false
			}
			pause = min(time.Duration(e.RetryAfterMS)*time.Millisecond, time.Second)
		}
		l.mu.Lock()
		l.refused[why]++
		l.mu.Unlock()
		wait(ctx, pause)
	}
	return false
}

func (l *load) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
}

// request submits a job by request and reply. One in ten is submitted again: it must be the same job.
func (l *load) request(ctx context.Context, j *job) bool {
	c := l.tenants[j.tenant]
	submit := func(ctx context.Context) error {
		done := j.begin(opSubmit)
		r, err := c.Submit(ctx, &j.spec)
		if err != nil {
			done(nil, opUnknown)
			return err
		}
		done(nil, opKnown)
		if r.Job.ID != j.id {
			l.note("submit %s: it was accepted as %s", j.id, r.Job.ID)
		}
		j.accept()
		return nil
	}
	if !l.insist(ctx, "submit "+j.id, submit) {
		return false
	}
	if oneIn(10, j.token) {
		l.insist(ctx, "submit again "+j.id, func(ctx context.Context) error {
			r, err := c.Submit(ctx, &j.spec)
			if err == nil && (!r.Duplicate || r.Job.ID != j.id) {
				l.note("submit %s again: it was accepted as %s, duplicate %v", j.id, r.Job.ID, r.Duplicate)
			}
			return err
		})
	}
	return true
}

func (j *job) accept() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.accepted = true
}

// submitBatch brings in jobs all at once, or none of them.
func (l *load) submitBatch(ctx context.Context, list []*job) {
	r := jobs.BatchRequest{ID: jobs.NewID(), Atomic: true}
	r.IdempotencyKey = "batch-" + r.ID
	for _, j := range list {
		spec := j.spec
		spec.IdempotencyKey = "" // the batch's
		b, err := json.Marshal(&spec)
		if err != nil {
			panic(err) // plain data
		}
		r.Jobs = append(r.Jobs, b)
	}
	l.insist(ctx, "batch "+r.ID, func(ctx context.Context) error {
		var done []func(*seen, opKind)
		for _, j := range list {
			done = append(done, j.begin(opSubmit))
		}
		reply, err := l.tenants[list[0].tenant].SubmitBatch(ctx, &r)
		for i, j := range list {
			if err != nil {
				done[i](nil, opUnknown)
				continue
			}
			done[i](nil, opKnown)
			if len(reply.Items) == len(list) && (reply.Items[i].ID != j.id || reply.Items[i].Error != nil) {
				l.note("batch %s: item %d is %+v, and was to be %s", r.ID, i, reply.Items[i], j.id)
			}
			j.accept()
		}
		return err
	})
}

// enqueue publishes a job; it is accepted when the stream has it.
func (l *load) enqueue(ctx context.Context, j *job) {
	b, err := json.Marshal(&j.spec)
	if err != nil {
		panic(err) // plain data
	}
	done := j.begin(opSubmit) // it is admitted at any time from now on
	l.insist(ctx, "enqueue "+j.id, func(ctx context.Context) error {
		_, err := l.js.Publish(ctx, jobs.EnqueueSubject(j.tenant), b, jetstream.WithMsgID(j.id))
		return err
	})
	done(nil, opUnknown)
	if ctx.Err() == nil {
		j.accept()
	}
}

// task enqueues a job as asynq's producers do.
func (l *load) task(ctx context.Context, j *job) {
	b, err := json.Marshal(&j.spec)
	if err != nil {
		panic(err) // plain data
	}
	ok := l.insist(ctx, "task "+j.id, func(ctx context.Context) error {
		_, err := l.redis.EnqueueContext(ctx, asynq.NewTask("sandbox:run", b), asynq.Queue(taskQueue), asynq.TaskID(j.id), asynq.Retention(taskKept))
		if errors.Is(err, asynq.ErrTaskIDConflict) {
			err = nil // it was there before the answer was lost
		}
		return err
	})
	if ok {
		j.accept()
	}
}

const (
	taskQueue = "paddock:default"
	// taskKept is how long asynq keeps a task after its end, by a dispatcher's clock, which may be days ahead.
	taskKept = 7 * 24 * time.Hour
)

// cancel asks for a job's end until somebody has heard it.
func (l *load) cancel(ctx context.Context, j *job) {
	l.insist(ctx, "cancel "+j.id, func(ctx context.Context) error {
		done := j.begin(opCancel)
		state, err := l.tenants[j.tenant].Cancel(ctx, j.id)
		if err != nil {
			done(nil, opUnknown)
			return err
		}
		done(&seen{state: state}, opKnown)
		return nil
	})
}

// look reads jobs that were brought in, any of them, until ctx ends.
func (l *load) look(ctx context.Context, r *rand.Rand) {
	for wait(ctx, 25*time.Millisecond) {
		u := l.units[r.IntN(len(l.units))]
		j := u.jobs[r.IntN(len(u.jobs))]
		j.mu.Lock()
		known := j.accepted && j.via != viaAsynq
		j.mu.Unlock()
		if known {
			_, _ = l.get(ctx, j)
		}
	}
}

// get reads a job once.
func (l *load) get(ctx context.Context, j *job) (jobs.Job, error) {
	ctx, cancel := context.WithTimeout(ctx, tryWithin)
	defer cancel()
	done := j.begin(opGet)
	rec, err := l.tenants[j.tenant].Get(ctx, j.id)
	e, answered := errors.AsType[*jobs.Error](err)
	switch {
	case err == nil:
		s := &seen{state: rec.State, attempt: rec.Attempt}
		if rec.Result != nil {
			s.ending = rec.Result.Ending
		}
		done(s, opKnown)
		if rec.State.Terminal() {
			j.mu.Lock()
			if j.ended.IsZero() {
				j.ended = time.Now()
			}
			j.mu.Unlock()
		}
	case answered && e.Code == jobs.CodeNotFound:
		done(&seen{missing: true}, opKnown)
	default:
		done(nil, opNothing)
	}
	return rec, err
}

// enqueueAgain publishes again what was acknowledged and is not in the ledger, and tells how much of that it had not published before.
func (l *load) enqueueAgain(ctx context.Context, db *sql.DB) (n int) {
	for _, u := range l.units {
		if u.via != viaEnqueue || !u.jobs[0].isAccepted() {
			continue
		}
		j := u.jobs[0]
		var there int
		if err := db.QueryRowContext(ctx, `SELECT count(*) FROM jobs WHERE id = '`+j.id+`'`).Scan(&there); err != nil || there > 0 {
			continue
		}
		l.enqueue(ctx, j)
		if !j.forgotten {
			n++
		}
		j.forgotten = true
	}
	return n
}
