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

// enqueueing judges the specs that nobody waits for, in the order in which they lie in the stream, and those that overtake.
type enqueueing struct {
	*serving
	stream   jetstream.Stream
	consumer jetstream.Consumer
	specs    jetstream.MessagesContext

	*overtaking
}

// run judges until ctx ends. A spec is acknowledged after its job is accepted, or after it lies in the dead-letter queue because it never can
// be; until then it comes again.
func (e *enqueueing) run(ctx context.Context) error {
	defer e.specs.Stop()
	var judging errgroup.Group
	judging.SetLimit(judgedAtOnce)
	defer judging.Wait() //nolint:errcheck // they give none
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	overtook := make(chan struct{})
	go func() {
		defer close(overtook)
		e.overtake(ctx)
	}()
	defer func() { <-overtook }()
	defer cancel()
	for {
		m, err := e.specs.Next(jetstream.NextContext(ctx))
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = m.Nak() // for the next dispatcher
			}
			return nil
		case errors.Is(err, jetstream.ErrMsgIteratorClosed):
			return fmt.Errorf("nats: consume %s: %w", jobs.StreamSubmit, err)
		case err != nil: // a heartbeat missed, the server away: the iterator goes on by itself
			e.bus.log.Warn().Err(err).Msg("nats: wait for enqueued specs")
			pause(ctx, time.Second)
			continue
		}
		meta, err := m.Metadata()
		if err != nil {
			e.bus.log.Error().Err(err).Msg("enqueued spec")
			continue
		}
		one := enqueued{subject: m.Subject(), header: m.Headers(), data: m.Data(), seq: meta.Sequence.Stream, at: meta.Timestamp}
		e.given(one.tenant(), meta.NumPending)
		judging.Go(func() error {
			again, why := e.judge(ctx, one)
			switch {
			case again > 0:
				_ = m.NakWithDelay(max(again, redeliveryPause(meta.NumDelivered)))
			case why != "":
				_ = m.TermWithReason(why)
			default:
				_ = m.Ack() // where it is lost the spec comes again, and finds its job by its key
			}
			return nil
		})
	}
}

const (
	// maxJudging bounds how many specs JetStream gives out that have not been judged. Those that wait for another try are among them, and while
	// one tenant's are as many, nobody's are given out.
	maxJudging = 100_000
	// judgedAtOnce is how many of those are judged at once, and how many more have come meanwhile: whoever is behind these waits for them.
	judgedAtOnce = 64
	// againPerSecond is how many of one tenant's specs that its quota holds up are tried again in a second.
	againPerSecond = 1000
)

// enqueuedHeard is half of the time without a word from the server after which it is asked again: what is asked of a consumer may be lost
// among a cluster's servers.
const enqueuedHeard = 2 * time.Second

// enqueued begins to take enqueued specs. The caller has them judged, or stops.
func (s *serving) enqueued(ctx context.Context) (*enqueueing, error) {
	stream, err := s.bus.js.Stream(ctx, jobs.StreamSubmit)
	if err != nil {
		return nil, fmt.Errorf("nats: stream %s: %w", jobs.StreamSubmit, err)
	}
	c, err := stream.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable: "dispatcher", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 30 * time.Second, MaxAckPending: maxJudging,
	})
	if err != nil {
		return nil, fmt.Errorf("nats: consumer of %s: %w", jobs.StreamSubmit, err)
	}
	specs, err := c.Messages(jetstream.PullMaxMessages(judgedAtOnce), jetstream.PullHeartbeat(enqueuedHeard))
	if err != nil {
		return nil, fmt.Errorf("nats: consume %s: %w", jobs.StreamSubmit, err)
	}
	return &enqueueing{serving: s, stream: stream, consumer: c, specs: specs, overtaking: newOvertaking()}, nil
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// enqueued is a spec as it lies in the stream.
type enqueued struct {
	subject string
	header  nats.Header
	data    []byte
	seq     uint64
	at      time.Time
}

func (o enqueued) tenant() string { return token(o.subject, 3) }

// judge has a spec admitted, or buries it and says why; again is after which pause it is to come again, where it is neither.
func (s *serving) judge(ctx context.Context, o enqueued) (again time.Duration, why string) {
	if !o.byItself() {
		s.bus.log.Warn().Str("subject", o.subject).Strs("stream", o.header.Values(jetstream.StreamHeader)).Msg("what had been stored as something else was enqueued, and dropped")
		return 0, "it had been stored as something else"
	}
	tenant, key := o.tenant(), o.header.Get(nats.MsgIdHdr)
	if key == "" { // its place in the stream is as good: a spec that comes again is the same job
		key = fmt.Sprintf("%s.%d.%d", jobs.StreamSubmit, o.seq, o.at.UnixNano())
	}
	r, never := s.admit(ctx, tenant, o.data, key)
	switch {
	case r.Error == nil:
		return 0, ""
	case !never:
		return max(time.Duration(r.Error.RetryAfterMS)*time.Millisecond, time.Second, s.inLine(tenant, r.Error)), ""
	}
	if err := s.bury(ctx, o, r.Error); err != nil {
		s.bus.log.Error().Err(err).Msg("reject enqueued spec")
		return time.Second, ""
	}
	return 0, r.Error.Message
}

// byItself tells a spec that somebody has published from what somebody, who may not, has had JetStream publish: whoever may make
// consumers or read messages says where they go, and with that may choose among what lies in other streams. A consumer's message has the
// subject that it was stored under, and one that was read directly names its stream, beside what its own header says.
func (o enqueued) byItself() bool {
	return o.subject == jobs.EnqueueSubject(o.tenant()) && !slices.ContainsFunc(o.header.Values(jetstream.StreamHeader), func(from string) bool {
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

// bury tells of a spec that can never run: in the dead-letter queue, and as the one event of its job where it names one.
func (s *serving) bury(ctx context.Context, o enqueued, e *jobs.Error) error {
	tenant := o.tenant()
	if err := jobs.ValidTenant(tenant); err != nil {
		s.bus.log.Warn().Err(err).Msg("a spec of nobody's was enqueued, and dropped")
		return nil
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	at := o.at.UTC() // when it comes again, this is again the same event
	if err := s.bus.bury(ctx, fmt.Sprintf("submit.%d.%d", o.seq, at.UnixNano()), deadBody(tenant, o.data, e, at)); err != nil {
		return err
	}
	var named struct {
		ID string `json:"id"`
	}
	if json.Unmarshal(o.data, &named) != nil {
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
