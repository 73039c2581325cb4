package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
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
	// maxPending and maxPendingBytes bound what waits there, for each kind; what comes on top is dropped, and asked again.
	maxPending      = 1 << 16
	maxPendingBytes = 64 << 20
	// answerWithin bounds all but requests for leases, which say themselves how long they wait.
	answerWithin = 10 * time.Second
	// drainWithin bounds the wait for requests that were on their way when the end came.
	drainWithin = time.Second
)

// ServeDispatcher answers clients and workers with the brain until ctx ends; requests that have come by then are answered first.
func (b *Bus) ServeDispatcher(ctx context.Context, brain Brain) error {
	s := &serving{bus: b, brain: brain}
	g, gctx := errgroup.WithContext(ctx)
	for subject, answer := range map[string]func(context.Context, *nats.Msg) any{
		jobs.SubmitSubjects: s.submit, jobs.GetSubjects: s.get, jobs.ListSubjects: s.list, jobs.CancelSubjects: s.cancel,
		jobs.LeaseSubject: s.lease, jobs.HeartbeatSubject: s.beat, jobs.ReportSubject: s.report,
	} {
		g.Go(func() error {
			if err := s.answer(gctx, subject, answer); err != nil {
				return fmt.Errorf("nats: serve %s: %w", subject, err)
			}
			return nil
		})
	}
	g.Go(func() error { return s.enqueued(gctx) })
	return g.Wait()
}

// serving is one ServeDispatcher.
type serving struct {
	bus   *Bus
	brain Brain
}

// answer answers a subject's requests, each in a goroutine of its own.
func (s *serving) answer(ctx context.Context, subject string, answer func(context.Context, *nats.Msg) any) error {
	sub, err := s.bus.nc.QueueSubscribeSync(subject, queueGroup)
	if err != nil {
		return err
	}
	defer sub.Unsubscribe() //nolint:errcheck // the connection's end does it too
	if err := sub.SetPendingLimits(maxPending, maxPendingBytes); err != nil {
		return err
	}
	var answering errgroup.Group
	answering.SetLimit(maxServing)
	defer answering.Wait() //nolint:errcheck // they give none
	for {
		m, err := nextRequest(ctx, sub)
		if err != nil || m == nil {
			return err
		}
		answering.Go(func() error {
			s.bus.reply(m, answer(ctx, m))
			return nil
		})
	}
}

// nextRequest waits for a request. Once ctx has ended it takes no new ones, gives those that are here already, and then nil.
func nextRequest(ctx context.Context, sub *nats.Subscription) (*nats.Msg, error) {
	for {
		m, err := sub.NextMsgWithContext(ctx)
		switch {
		case err == nil:
			return m, nil
		case ctx.Err() != nil:
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
		data, _ = encode(jobs.GetReply{Error: &jobs.Error{ // every answer has its error in the same place
			Code: jobs.CodeTooLarge, Message: fmt.Sprintf("the answer has %d bytes, more than the NATS server takes (max_payload is %d)", len(data), b.nc.MaxPayload()),
		}})
	}
	_ = m.Respond(data)
}

// token gives the n-th token of a subject, from 0.
func token(subject string, n int) string {
	t := strings.Split(subject, ".")
	if n >= len(t) {
		return ""
	}
	return t[n]
}

// inTime is what a request is answered in. The end of serving does not reach it: what was taken is finished.
func inTime(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), answerWithin)
}

func (s *serving) submit(ctx context.Context, m *nats.Msg) any {
	r := s.admit(ctx, token(m.Subject, 3), m.Data, "")
	return &r
}

// admit reads a spec and has it admitted; key is for a spec without an idempotency key of its own.
func (s *serving) admit(ctx context.Context, tenant string, data []byte, key string) (r jobs.SubmitReply) {
	ctx, cancel := inTime(ctx)
	defer cancel()
	if !s.bus.nc.fits(len(data)) { // what came in just so would not go out again, to a worker
		r.Error = &jobs.Error{Code: jobs.CodeTooLarge, Message: fmt.Sprintf("the spec has %d bytes, too near to the NATS server's max_payload of %d", len(data), s.bus.nc.MaxPayload())}
		return r
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
	ctx, cancel := inTime(ctx)
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
	ctx, cancel := inTime(ctx)
	defer cancel()
	r, err := s.brain.List(ctx, token(m.Subject, 3), q)
	r.Error = s.errorOf(err)
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
	ctx, cancel := inTime(ctx)
	defer cancel()
	state, err := s.brain.Cancel(ctx, token(m.Subject, 3), token(m.Subject, 4))
	return &jobs.CancelReply{State: state, Error: s.errorOf(err)}
}

func (s *serving) beat(ctx context.Context, m *nats.Msg) any {
	var q jobs.Beat
	if e := read(m, &q); e != nil {
		return &jobs.BeatReply{Error: e}
	}
	ctx, cancel := inTime(ctx)
	defer cancel()
	r, err := s.brain.Beat(ctx, q)
	r.Error = s.errorOf(err)
	return &r
}

func (s *serving) report(ctx context.Context, m *nats.Msg) any {
	var q jobs.Report
	if e := read(m, &q); e != nil {
		return &jobs.ReportReply{Error: e}
	}
	ctx, cancel := inTime(ctx)
	defer cancel()
	r, err := s.brain.Report(ctx, q)
	r.Error = s.errorOf(err)
	return &r
}
