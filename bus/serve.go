package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

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
	// maxServing bounds how many requests of one kind are answered at once; further ones wait in the subscription.
	maxServing = 256
	// answerWithin bounds all but requests for leases, which say themselves how long they wait.
	answerWithin = 10 * time.Second
)

// ServeDispatcher answers clients and workers with the brain until ctx ends; requests that have been taken are answered first.
func (b *Bus) ServeDispatcher(ctx context.Context, brain Brain) error {
	s := &serving{bus: b, brain: brain}
	for subject, answer := range map[string]func(context.Context, *nats.Msg) any{
		jobs.SubmitSubjects: s.submit, jobs.GetSubjects: s.get, jobs.ListSubjects: s.list, jobs.CancelSubjects: s.cancel,
		jobs.LeaseSubject: s.lease, jobs.HeartbeatSubject: s.beat, jobs.ReportSubject: s.report,
	} {
		if err := s.on(ctx, subject, answer); err != nil {
			return fmt.Errorf("nats: serve %s: %w", subject, err)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.enqueued(gctx) })
	g.Go(func() error {
		<-gctx.Done()
		for _, sub := range s.subs {
			_ = sub.Unsubscribe() // the connection's end does it too
		}
		return nil
	})
	err := g.Wait()
	s.answering.Wait()
	return err
}

// serving is one ServeDispatcher.
type serving struct {
	bus       *Bus
	brain     Brain
	subs      []*nats.Subscription
	answering sync.WaitGroup
}

// on answers a subject's requests, each in a goroutine of its own.
func (s *serving) on(ctx context.Context, subject string, answer func(context.Context, *nats.Msg) any) error {
	places := make(chan struct{}, maxServing)
	sub, err := s.bus.nc.QueueSubscribe(subject, queueGroup, func(m *nats.Msg) {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		s.answering.Go(func() {
			defer func() { <-places }()
			reply(m, answer(ctx, m))
		})
	})
	if err != nil {
		return err
	}
	s.subs = append(s.subs, sub)
	return sub.SetPendingLimits(1<<16, 256<<20)
}

func reply(m *nats.Msg, v any) {
	if m.Reply == "" || v == nil {
		return
	}
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain data
	}
	_ = m.Respond(data) // whoever asked asks again
}

// token gives the n-th token of a subject, from 0.
func token(subject string, n int) string {
	t := strings.Split(subject, ".")
	if n >= len(t) {
		return ""
	}
	return t[n]
}

func (s *serving) submit(ctx context.Context, m *nats.Msg) any {
	r := s.admit(ctx, token(m.Subject, 3), m.Data, "")
	return &r
}

// admit reads a spec and has it admitted; key is for a spec without an idempotency key of its own.
func (s *serving) admit(ctx context.Context, tenant string, data []byte, key string) (r jobs.SubmitReply) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
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
	return r
}

// errorOf gives what a client may know of an error, and logs the rest.
func (s *serving) errorOf(err error) *jobs.Error {
	e := jobs.ErrorOf(err)
	if e != nil && e.Code == jobs.CodeInternal {
		s.bus.log.Error().Err(err).Msg("internal error")
	}
	return e
}

// read decodes a request; on failure it gives the error to answer with.
func read(m *nats.Msg, into any) *jobs.Error {
	if len(m.Data) == 0 {
		return nil
	}
	if err := json.Unmarshal(m.Data, into); err != nil {
		return &jobs.Error{Code: jobs.CodeInvalid, Message: "the request cannot be read: " + err.Error()}
	}
	return nil
}

func (s *serving) get(ctx context.Context, m *nats.Msg) any {
	var q jobs.GetRequest
	if e := read(m, &q); e != nil {
		return &jobs.GetReply{Error: e}
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	job, err := s.brain.Get(ctx, token(m.Subject, 3), q.ID)
	if err != nil {
		return &jobs.GetReply{Error: s.errorOf(err)}
	}
	return &jobs.GetReply{Job: &job}
}

func (s *serving) list(ctx context.Context, m *nats.Msg) any {
	var q jobs.ListRequest
	if e := read(m, &q); e != nil {
		return &jobs.ListReply{Error: e}
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	r, err := s.brain.List(ctx, token(m.Subject, 3), q)
	r.Error = s.errorOf(err)
	return &r
}

func (s *serving) cancel(ctx context.Context, m *nats.Msg) any {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	state, err := s.brain.Cancel(ctx, token(m.Subject, 3), token(m.Subject, 4))
	return &jobs.CancelReply{State: state, Error: s.errorOf(err)}
}

func (s *serving) lease(ctx context.Context, m *nats.Msg) any {
	var q jobs.LeaseRequest
	if e := read(m, &q); e != nil {
		return &jobs.LeaseReply{Error: e}
	}
	r, err := s.brain.Lease(ctx, q)
	r.Error = s.errorOf(err)
	return &r
}

func (s *serving) beat(ctx context.Context, m *nats.Msg) any {
	var q jobs.Beat
	if e := read(m, &q); e != nil {
		return &jobs.BeatReply{Error: e}
	}
	r, err := s.brain.Beat(ctx, q)
	r.Error = s.errorOf(err)
	return &r
}

func (s *serving) report(ctx context.Context, m *nats.Msg) any {
	var q jobs.Report
	if e := read(m, &q); e != nil {
		return &jobs.ReportReply{Error: e}
	}
	r, err := s.brain.Report(ctx, q)
	r.Error = s.errorOf(err)
	return &r
}

// enqueued admits the specs that nobody waits for. One is acknowledged after its job is accepted, or after it lies in the dead-letter
// queue because it never can be; until then it comes again.
func (s *serving) enqueued(ctx context.Context) error {
	c, err := s.bus.js.CreateOrUpdateConsumer(ctx, jobs.StreamSubmit, jetstream.ConsumerConfig{
		Durable: "dispatcher", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 30 * time.Second, MaxAckPending: 2048,
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // stopping
		}
		return fmt.Errorf("nats: consumer of %s: %w", jobs.StreamSubmit, err)
	}
	places := make(chan struct{}, maxServing)
	consuming, err := c.Consume(func(m jetstream.Msg) {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		s.answering.Go(func() {
			defer func() { <-places }()
			s.admitEnqueued(ctx, m)
		})
	}, jetstream.PullMaxMessages(maxServing))
	if err != nil {
		return fmt.Errorf("nats: consume %s: %w", jobs.StreamSubmit, err)
	}
	<-ctx.Done()
	consuming.Stop()
	<-consuming.Closed()
	return nil
}

func (s *serving) admitEnqueued(ctx context.Context, m jetstream.Msg) {
	tenant := token(m.Subject(), 3)
	r := s.admit(ctx, tenant, m.Data(), m.Headers().Get(nats.MsgIdHdr))
	switch {
	case r.Error == nil:
		_ = m.Ack() // where it is lost the spec comes again, and finds its job by its key
	case r.Error.RetryAfterMS > 0 || r.Error.Code == jobs.CodeInternal:
		_ = m.NakWithDelay(max(time.Duration(r.Error.RetryAfterMS)*time.Millisecond, time.Second))
	default:
		if err := s.rejectEnqueued(ctx, tenant, m, r.Error); err != nil {
			s.bus.log.Error().Err(err).Msg("reject enqueued spec")
			return // it comes again
		}
		_ = m.TermWithReason(r.Error.Message)
	}
}

// rejectEnqueued tells of a spec that can never run: in the dead-letter queue, and as the one event of its job where it names one.
func (s *serving) rejectEnqueued(ctx context.Context, tenant string, m jetstream.Msg, e *jobs.Error) error {
	meta, err := m.Metadata()
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	letter := deadLetter{Tenant: tenant, Body: strings.ToValidUTF8(string(m.Data()), "�"), Reason: string(jobs.Rejected), Error: e, Time: now}
	if err := s.bus.bury(ctx, fmt.Sprintf("submit.%d", meta.Sequence.Stream), letter); err != nil {
		return err
	}
	var named struct {
		ID string `json:"id"`
	}
	if json.Unmarshal(m.Data(), &named) != nil {
		return nil //nolint:nilerr // no JSON names no job
	}
	if _, err := jobs.ParseID(named.ID); err != nil || e.Code == jobs.CodeConflict {
		return nil //nolint:nilerr // it has no job, or the job is another's
	}
	_, err = s.brain.Get(ctx, tenant, named.ID)
	if known, ok := errors.AsType[*jobs.Error](err); !ok || known.Code != jobs.CodeNotFound {
		return nil // a job of that id runs, or has run
	}
	return s.bus.Publish(ctx, jobs.Event{
		Type: jobs.EventResult, Job: named.ID, Tenant: tenant, Seq: 1, Time: now, Final: true,
		Result: &jobs.Result{Ending: jobs.Rejected, Class: jobs.Rejected.Class(), Reason: e.Error(), EndedAt: now},
	})
}
