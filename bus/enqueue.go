package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/paddockvm/paddock/jobs"
)

// enqueued admits the specs that nobody waits for. One is acknowledged after its job is accepted, or after it lies in the dead-letter
// queue because it never can be; until then it comes again.
func (s *serving) enqueued(ctx context.Context, specs jetstream.MessagesContext) error {
	defer specs.Stop()
	var admitting errgroup.Group
	admitting.SetLimit(maxServing)
	defer admitting.Wait() //nolint:errcheck // they give none
	for {
		m, err := specs.Next(jetstream.NextContext(ctx))
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = m.Nak() // for the next dispatcher
			}
			return nil
		case errors.Is(err, jetstream.ErrMsgIteratorClosed):
			return fmt.Errorf("nats: consume %s: %w", jobs.StreamSubmit, err)
		case err != nil: // a heartbeat missed, the server away: the iterator goes on by itself
			s.bus.log.Warn().Err(err).Msg("nats: wait for enqueued specs")
			pause(ctx, time.Second)
			continue
		}
		admitting.Go(func() error {
			s.admitEnqueued(ctx, m)
			return nil
		})
	}
}

const (
	// maxJudging bounds how many specs JetStream gives out that have not been judged. Those that wait for another try are among them, and while
	// one tenant's are as many, nobody's are given out.
	maxJudging = 100_000
	// againPerSecond is how many of one tenant's specs that its quota holds up are tried again in a second.
	againPerSecond = 1000
)

// enqueuedHeard is half of the time without a word from the server after which it is asked again: what is asked of a consumer may be lost
// among a cluster's servers.
const enqueuedHeard = 2 * time.Second

// consume begins to take enqueued specs. The caller stops it.
func (s *serving) consume(ctx context.Context) (jetstream.MessagesContext, error) {
	c, err := s.bus.js.CreateOrUpdateConsumer(ctx, jobs.StreamSubmit, jetstream.ConsumerConfig{
		Durable: "dispatcher", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 30 * time.Second, MaxAckPending: maxJudging,
	})
	if err != nil {
		return nil, fmt.Errorf("nats: consumer of %s: %w", jobs.StreamSubmit, err)
	}
	specs, err := c.Messages(jetstream.PullMaxMessages(maxServing), jetstream.PullHeartbeat(enqueuedHeard))
	if err != nil {
		return nil, fmt.Errorf("nats: consume %s: %w", jobs.StreamSubmit, err)
	}
	return specs, nil
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (s *serving) admitEnqueued(ctx context.Context, m jetstream.Msg) {
	meta, err := m.Metadata()
	if err != nil {
		s.bus.log.Error().Err(err).Msg("enqueued spec")
		return
	}
	if !enqueuedByItself(m) {
		s.bus.log.Warn().Str("subject", m.Subject()).Strs("stream", m.Headers().Values(jetstream.StreamHeader)).Msg("what had been stored as something else was enqueued, and dropped")
		_ = m.TermWithReason("it had been stored as something else")
		return
	}
	tenant := token(m.Subject(), 3)
	key := m.Headers().Get(nats.MsgIdHdr)
	if key == "" { // its place in the stream is as good: a spec that comes again is the same job
		key = fmt.Sprintf("%s.%d.%d", jobs.StreamSubmit, meta.Sequence.Stream, meta.Timestamp.UnixNano())
	}
	r := s.admit(ctx, tenant, m.Data(), key)
	switch {
	case r.Error == nil:
		_ = m.Ack() // where it is lost the spec comes again, and finds its job by its key
	case r.Error.RetryAfterMS > 0 || r.Error.Code == jobs.CodeInternal:
		_ = m.NakWithDelay(max(time.Duration(r.Error.RetryAfterMS)*time.Millisecond, redeliveryPause(meta.NumDelivered), s.inLine(tenant, r.Error)))
	default:
		if err := s.rejectEnqueued(ctx, tenant, m, meta, r.Error); err != nil {
			s.bus.log.Error().Err(err).Msg("reject enqueued spec")
			_ = m.NakWithDelay(redeliveryPause(meta.NumDelivered))
			return
		}
		_ = m.TermWithReason(r.Error.Message)
	}
}

// enqueuedByItself tells a spec that somebody has published from what somebody, who may not, has had JetStream publish: whoever may make
// consumers or read messages says where they go, and with that may choose among what lies in other streams. A consumer's message has the
// subject that it was stored under, and one that was read directly names its stream, beside what its own header says.
func enqueuedByItself(m jetstream.Msg) bool {
	return m.Subject() == jobs.EnqueueSubject(token(m.Subject(), 3)) && !slices.ContainsFunc(m.Headers().Values(jetstream.StreamHeader), func(from string) bool {
		return from == jobs.StreamEvents || from == jobs.StreamDLQ || strings.HasPrefix(from, "OBJ_"+jobs.ObjectBucket(""))
	})
}

// inLine gives after which pause it is the turn of a spec that its tenant's quota holds up: however many those are, trying them again takes
// no more than a part of this process's time.
func (s *serving) inLine(tenant string, e *jobs.Error) time.Duration {
	if e.Code != jobs.CodeQuota {
		return 0
	}
	s.lines.Lock()
	defer s.lines.Unlock()
	if s.lines.of == nil {
		s.lines.of = map[string]*rate.Limiter{}
	}
	l := s.lines.of[tenant]
	if l == nil {
		maps.DeleteFunc(s.lines.of, func(_ string, l *rate.Limiter) bool { return l.Tokens() >= 1 }) // nobody of theirs waits
		l = rate.NewLimiter(againPerSecond, 1)
		s.lines.of[tenant] = l
	}
	return l.Reserve().Delay()
}

// redeliveryPause doubles from a second to half a minute.
func redeliveryPause(delivered uint64) time.Duration {
	return min(time.Second<<min(max(delivered, 1)-1, 10), 30*time.Second)
}

// rejectEnqueued tells of a spec that can never run: in the dead-letter queue, and as the one event of its job where it names one.
func (s *serving) rejectEnqueued(ctx context.Context, tenant string, m jetstream.Msg, meta *jetstream.MsgMetadata, e *jobs.Error) error {
	if err := jobs.ValidTenant(tenant); err != nil {
		s.bus.log.Warn().Err(err).Msg("a spec of nobody's was enqueued, and dropped")
		return nil
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	at := meta.Timestamp.UTC() // when it comes again, this is again the same event
	if err := s.bus.bury(ctx, fmt.Sprintf("submit.%d.%d", meta.Sequence.Stream, at.UnixNano()), deadBody(tenant, m.Data(), e, at)); err != nil {
		return err
	}
	var named struct {
		ID string `json:"id"`
	}
	if json.Unmarshal(m.Data(), &named) != nil {
		return nil // no JSON names no job
	}
	if _, err := jobs.ParseID(named.ID); err != nil || e.Code == jobs.CodeConflict {
		return nil // it has no job, or the job is another's
	}
	_, err := s.brain.Get(ctx, tenant, named.ID)
	known, ok := errors.AsType[*jobs.Error](err)
	switch {
	case err == nil:
		return nil // a job of that id runs, or has run
	case !ok || known.Code != jobs.CodeNotFound:
		return err
	}
	return s.bus.Republish(ctx, jobs.Event{
		Type: jobs.EventResult, Job: named.ID, Tenant: tenant, Seq: 1, Time: at, Final: true,
		Result: &jobs.Result{Ending: jobs.Rejected, Class: jobs.Rejected.Class(), Reason: e.Error(), EndedAt: at},
	})
}
