package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/jobs"
)

// Brain is what answers: the dispatcher.
type Brain interface {
	Admit(ctx context.Context, tenant string, spec *jobs.Spec) (job jobs.Job, duplicate bool, err error)
	Get(ctx context.Context, tenant, id string) (jobs.Job, error)
	List(ctx context.Context, tenant string, q jobs.ListRequest) (jobs.ListReply, error)
	Cancel(ctx context.Context, tenant, id string) (jobs.State, error)
	Lease(ctx context.Context, r jobs.LeaseRequest) (jobs.LeaseReply, error)
	Beat(ctx context.Context, b jobs.Beat) (jobs.BeatReply, error)
	Report(ctx context.Context, r jobs.Report) (jobs.ReportReply, error)
}

const (
	// queueGroup lets several dispatchers share the subjects.
	queueGroup = "dispatchers"
	// fleets begins the subjects on which workers and operators ask; on the others it is tenants.
	fleets = "paddock." + jobs.Version + ".fleet."
	// maxServing bounds how many requests of one kind are answered at once, of one tenant's where it is tenants that ask; further ones wait.
	maxServing = 256
	// listsAtOnce is how many lists are made at once, one of a tenant's: each may read all that the ledger has of the tenant, for seconds, and all
	// else that is read shares four connections with them.
	listsAtOnce = 3
	// maxPending and maxPendingBytes bound what waits, for each kind; what comes on top is refused or dropped, and asked again.
	maxPending      = 1 << 16
	maxPendingBytes = 64 << 20
	// answerWithin bounds all but requests for leases, which say themselves how long they wait.
	answerWithin = 10 * time.Second
	// drainWithin bounds the wait for requests that were on their way when the end came.
	drainWithin = time.Second
)

// ServeDispatcher answers clients and workers with the brain until ctx ends; requests that have come by then are answered first. It calls
// ready when requests reach it.
func (b *Bus) ServeDispatcher(ctx context.Context, brain Brain, ready func()) error {
	s := &serving{bus: b, brain: brain}
	var specs *enqueueing
	err := b.whenThere(ctx, func() (err error) {
		if s.reads == nil {
			if s.reads, err = b.nc.another("replays"); err != nil {
				s.reads = nil
				return fmt.Errorf("nats: connect for replays: %w", err)
			}
		}
		if s.depot == nil {
			if s.depot, err = b.openDepot(brain); err != nil {
				return fmt.Errorf("nats: connect for objects: %w", err)
			}
		}
		specs, err = s.enqueued(ctx)
		return err
	})
	if s.reads != nil {
		defer s.reads.Close()
	}
	if s.depot != nil {
		defer s.depot.conn.Close()
	}
	if err != nil && ctx.Err() != nil {
		return nil // stopping
	}
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	answers := s.desk(gctx)
	end := func() error {
		err := g.Wait()
		if s.large != nil {
			s.large.all.Wait()
		}
		return err
	}
	defer end() //nolint:errcheck // the end gives its error; here one has come before
	beat := inTime(fleet(s, func(b jobs.Beat) string { return b.Worker }, brain.Beat))
	report := inTime(fleet(s, func(r jobs.Report) string { return r.Worker }, brain.Report))
	maps.Copy(answers, map[string]handler{
		jobs.SubmitSubjects: s.submit, jobs.GetSubjects: inTime(s.get), jobs.ListSubjects: inTime(s.list), jobs.CancelSubjects: inTime(s.cancel), jobs.ReplaySubjects: s.replays(),
		jobs.LeaseSubject: s.lease, jobs.HeartbeatSubject: beat, jobs.ReportSubject: report,
		access.FleetSubject(jobs.LeaseSubject, "*"): s.lease, access.FleetSubject(jobs.HeartbeatSubject, "*"): beat, access.FleetSubject(jobs.ReportSubject, "*"): report,
		access.FleetSubject(access.BucketSubject, "*"): inTime(s.makeBucket),
		access.LendSubject: inTime(s.lend), access.FleetSubject(access.LendSubject, "*"): inTime(s.lend),
	})
	maps.Copy(answers, s.webhooks())
	answers[jobs.ObjectSubjects] = s.objects
	g.Go(func() error { return s.depot.uploads.Run(gctx) })
	for subject, answer := range answers {
		sub, err := s.subscribe(subject)
		if err != nil {
			specs.specs.Stop()
			g.Go(func() error { return err }) // ends the others
			return fmt.Errorf("nats: serve %s: %w", subject, err)
		}
		g.Go(func() error {
			if err := s.orderOf(subject)(gctx, sub, answer); err != nil {
				return fmt.Errorf("nats: serve %s: %w", subject, err)
			}
			return nil
		})
	}
	g.Go(func() error { return specs.run(gctx) })
	_ = s.depot.conn.FlushTimeout(answerWithin)
	_ = b.nc.FlushTimeout(answerWithin) // then the server knows of all of them; one that is away hears of them when it is back
	ready()
	err = end()
	s.leave()
	return err
}

// orderOf tells in which order a subject's requests are answered: as they come where workers and operators ask, else in tenants' turns, and fewer
// at once of what takes much memory or long.
func (s *serving) orderOf(subject string) func(context.Context, *nats.Subscription, handler) error {
	switch {
	case strings.HasPrefix(subject, fleets):
		return s.answer
	case subject == jobs.ObjectSubjects:
		return s.inTurns(objectsAtOnce)
	case subject == jobs.ReplaySubjects:
		return s.inTurns(replaysAtOnce)
	case subject == jobs.ListSubjects, subject == jobs.WebhookSubjects:
		return s.inTurns(listsAtOnce)
	case subject == jobs.BatchSubjects:
		return s.inTurns(batchesAtOnce)
	}
	return s.inTurns(2 * maxServing)
}

// whenThere tries until it succeeds, ctx ends, or JetStream refuses for good: who begins to serve while the servers are away, or while none of
// them leads the streams, serves when they are back.
func (b *Bus) whenThere(ctx context.Context, try func() error) error {
	for told := false; ; told = true {
		err := try()
		_, refused := errors.AsType[*jetstream.APIError](err)
		if err == nil || ctx.Err() != nil || refused && !notYet(err) {
			return err
		}
		if !told {
			b.log.Warn().Err(err).Msg("nats: serve when the servers can")
		}
		pause(ctx, clusterPause)
	}
}

// handler gives the answer to a request; nil is none.
type handler func(context.Context, *nats.Msg) any

// serving is one ServeDispatcher.
type serving struct {
	bus   *Bus
	reads *conn // for replays
	depot *depot
	brain Brain
	// large has those batches answered that are held in memory whole, and are more than a message; nil where the brain takes none.
	large *turns
	// lines are in which enqueued specs wait that tenants' quotas hold up.
	lines struct {
		sync.Mutex
		of map[string]*rate.Limiter
	}
	// ending is done when the first subscription is about to end: after so many of the bus's reconnections.
	ending       sync.Once
	reconnection uint64
}

func (s *serving) subscribe(subject string) (*nats.Subscription, error) {
	nc := s.bus.nc
	if subject == jobs.ObjectSubjects {
		nc = s.depot.conn
	}
	sub, err := nc.QueueSubscribeSync(subject, queueGroup)
	if err != nil {
		return nil, err
	}
	return sub, sub.SetPendingLimits(maxPending, maxPendingBytes)
}

// answer answers a subject's requests, each in a goroutine of its own.
func (s *serving) answer(ctx context.Context, sub *nats.Subscription, answer handler) error {
	defer sub.Unsubscribe() //nolint:errcheck // the connection's end does it too
	var answering errgroup.Group
	answering.SetLimit(maxServing)
	defer answering.Wait() //nolint:errcheck // they give none
	return s.each(ctx, sub, func(m *nats.Msg) {
		answering.Go(func() error {
			s.bus.reply(m, answer(ctx, m))
			return nil
		})
	})
}

// each gives a subject's requests to do, one after the other, until next gives none.
func (s *serving) each(ctx context.Context, sub *nats.Subscription, do func(*nats.Msg)) error {
	for {
		m, err := s.next(ctx, sub)
		switch {
		case err != nil || m == nil:
			return err
		case s.bus.strange(m):
			s.bus.log.Debug().Str("subject", m.Subject).Msg("nats: a request whose answer would go to others was dropped")
		default:
			do(m)
		}
	}
}

// next waits for a request. Once ctx has ended it takes no new ones, gives those that are here already, and then nil.
func (s *serving) next(ctx context.Context, sub *nats.Subscription) (*nats.Msg, error) {
	for {
		m, err := sub.NextMsgWithContext(ctx)
		switch {
		case err == nil:
			return m, nil
		case ctx.Err() != nil:
			s.ending.Do(func() { s.reconnection = s.bus.nc.Stats().Reconnects })
			_ = sub.Drain() // again and again does not hurt
			if m, err := sub.NextMsg(drainWithin); err == nil {
				return m, nil
			}
			return nil, nil // drained, or there is no connection to drain
		case errors.Is(err, nats.ErrSlowConsumer):
			continue // some were dropped; the connection's error handler has said so
		default:
			return nil, err
		}
	}
}

// leave sees to it that no request comes any more, when all subscriptions have ended. A connection that comes back while one is drained
// tells the server of it again (nats.go, resendSubscriptions), and nobody takes that back: as one of its queue group, the server would give it
// its part of the requests for as long as the connection lasts. So there is a new one.
func (s *serving) leave() {
	ended := true
	s.ending.Do(func() { ended = false })
	if ended && s.bus.nc.Stats().Reconnects != s.reconnection {
		_ = s.bus.nc.ForceReconnect() // one that is closed needs none
	}
}

// reply answers a request, unless v is nil. Whoever asked asks again where the answer is lost, and is told of one that no message can
// carry.
func (b *Bus) reply(m *nats.Msg, v any) {
	if m.Reply == "" || v == nil {
		return
	}
	data, err := encode(v)
	if err != nil {
		panic(err) // plain data
	}
	if !b.nc.fits(len(data)) {
		data, _ = encode(failure{&jobs.Error{
			Code: jobs.CodeTooLarge, Message: fmt.Sprintf("the answer has %d bytes, more than the NATS server takes (max_payload is %d)", len(data), b.nc.MaxPayload()),
		}})
	}
	_ = m.Respond(data)
}

// failure is any answer that has failed: every one has its error in the same place.
type failure struct {
	Error *jobs.Error `json:"error"`
}

// token gives the n-th token of a subject, from 0.
func token(subject string, n int) string {
	t := strings.Split(subject, ".")
	if n >= len(t) {
		return ""
	}
	return t[n]
}

// bounded is what a request is answered in. The end of serving does not reach it: what was taken is finished.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), answerWithin)
}

func inTime(h handler) handler {
	return func(ctx context.Context, m *nats.Msg) any {
		ctx, cancel := bounded(ctx)
		defer cancel()
		return h(ctx, m)
	}
}

func (s *serving) submit(ctx context.Context, m *nats.Msg) any {
	r, _ := s.admit(ctx, token(m.Subject, 3), m.Data, "")
	return &r
}

// admit reads a spec and has it admitted; key is for a spec without an idempotency key of its own. never says that it is of no use to try again,
// though the error may be "internal": what is sent once more finds the same bug.
func (s *serving) admit(ctx context.Context, tenant string, data []byte, key string) (r jobs.SubmitReply, never bool) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if !s.bus.nc.fits(len(data)) { // what came in just so would not go out again, to a worker
		r.Error = &jobs.Error{Code: jobs.CodeTooLarge, Message: fmt.Sprintf("the spec has %d bytes, too near to the NATS server's max_payload of %d", len(data), s.bus.nc.MaxPayload())}
		return r, true
	}
	spec, warnings, err := jobs.Decode(data, jobs.Lenient)
	r.Warnings = warnings
	if err == nil {
		if spec.IdempotencyKey == "" {
			spec.IdempotencyKey = key
		}
		var job jobs.Job
		if job, r.Duplicate, err = s.brain.Admit(ctx, tenant, spec); err == nil {
			job.Spec = nil // the client has it
			r.Job = &job
		}
	}
	r.Error = s.errorOf(err)
	_, bug := errors.AsType[*jobs.BugError](err)
	return r, bug || r.Error != nil && r.Error.RetryAfterMS == 0 && r.Error.Code != jobs.CodeInternal
}

// errorOf is Bus.errorOf.
func (s *serving) errorOf(err error) *jobs.Error { return s.bus.errorOf(err) }

func (s *serving) get(ctx context.Context, m *nats.Msg) any {
	var q jobs.GetRequest
	var r jobs.GetReply
	var err error
	if r.Warnings, err = jobs.DecodeRequest(m.Data, &q); err == nil {
		var job jobs.Job
		if job, err = s.brain.Get(ctx, token(m.Subject, 3), q.ID); err == nil {
			r.Job = &job
		}
	}
	r.Error = s.errorOf(err)
	return &r
}

func (s *serving) list(ctx context.Context, m *nats.Msg) any {
	var q jobs.ListRequest
	var r jobs.ListReply
	warnings, err := jobs.DecodeRequest(m.Data, &q)
	if err == nil {
		r, err = s.brain.List(ctx, token(m.Subject, 3), q)
	}
	r.Warnings, r.Error = warnings, s.errorOf(err)
	s.shorten(&r)
	return &r
}

// shorten makes a page of what fits into a message; the next page goes on from there.
func (s *serving) shorten(r *jobs.ListReply) {
	size := 0
	for i := range r.Jobs {
		data, err := encode(&r.Jobs[i])
		if err != nil {
			panic(err) // plain data
		}
		if size += len(data) + 1; i > 0 && !s.bus.nc.fits(size) {
			r.Jobs, r.Next = r.Jobs[:i], r.Jobs[i-1].ID
			return
		}
	}
}

func (s *serving) cancel(ctx context.Context, m *nats.Msg) any {
	state, err := s.brain.Cancel(ctx, token(m.Subject, 3), token(m.Subject, 4))
	return &jobs.CancelReply{State: state, Error: s.errorOf(err)}
}

// fleet answers what a worker asks, by the name that it gives.
func fleet[Q, R any](s *serving, name func(Q) string, f func(context.Context, Q) (R, error)) handler {
	return func(ctx context.Context, m *nats.Msg) any {
		q, err := read[Q](m)
		if err != nil {
			return failure{err}
		}
		if err := itself(m, name(q)); err != nil {
			return failure{err}
		}
		r, ferr := f(ctx, q)
		if ferr != nil {
			return failure{s.errorOf(ferr)}
		}
		return &r
	}
}

// read decodes a worker's request, which was made by the same code.
func read[Q any](m *nats.Msg) (q Q, _ *jobs.Error) {
	if len(m.Data) == 0 {
		return q, nil
	}
	if err := json.Unmarshal(m.Data, &q); err != nil {
		return q, &jobs.Error{Code: jobs.CodeInvalid, Message: "the request cannot be read: " + err.Error()}
	}
	return q, nil
}
