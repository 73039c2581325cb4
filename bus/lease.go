package bus

import (
	"context"
	"encoding/json"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

// A lease carries its job's spec, and several may be more than one message takes. The answer to a request for leases then has a reply
// subject of its own: who asks there gets the next part.

// lease answers with the first part. The end of serving ends the wait, not what was given.
func (s *serving) lease(ctx context.Context, m *nats.Msg) any {
	q, e := read[jobs.LeaseRequest](m)
	if e != nil {
		return failure{e}
	}
	if e := itself(m, q.Worker); e != nil {
		return failure{e}
	}
	r, err := s.brain.Lease(ctx, q)
	r.Error = s.errorOf(err)
	parts := s.bus.parts(r)
	if len(parts) == 1 {
		return &r
	}
	s.bus.replyInParts(m, parts)
	return nil
}

// parts splits an answer so that each part fits into a message.
func (b *Bus) parts(r jobs.LeaseReply) []jobs.LeaseReply {
	if len(r.Leases) < 2 {
		return []jobs.LeaseReply{r}
	}
	var parts []jobs.LeaseReply
	from, size := 0, 0
	for i := range r.Leases {
		data, err := encode(&r.Leases[i])
		if err != nil {
			panic(err) // plain data
		}
		if size += len(data) + 1; i > from && !b.nc.fits(size) {
			parts = append(parts, jobs.LeaseReply{Leases: r.Leases[from:i]})
			from, size = i, len(data)+1
		}
	}
	return append(parts, jobs.LeaseReply{Leases: r.Leases[from:]})
}

// replyInParts gives one part after the other, each when it is asked for. What a worker does not fetch runs out like any other lease.
func (b *Bus) replyInParts(m *nats.Msg, parts []jobs.LeaseReply) {
	inbox := b.nc.NewRespInbox()
	more, err := b.nc.SubscribeSync(inbox)
	if err != nil {
		return // the connection is closed
	}
	defer more.Unsubscribe() //nolint:errcheck // the connection's end does it too
	for i, part := range parts {
		data, err := encode(&part)
		if err != nil {
			panic(err) // plain data
		}
		answer := &nats.Msg{Data: data}
		if i < len(parts)-1 {
			answer.Reply = inbox
		}
		if m.RespondMsg(answer) != nil || answer.Reply == "" {
			return
		}
		if m, err = more.NextMsg(answerWithin); err != nil {
			return
		}
	}
}

// restWithin bounds the wait for the rest of an answer: until it is over no heartbeat names what has come, nor does it run, and what no
// heartbeat names for 10 s is taken for lost on its way.
const restWithin = 4 * time.Second

// Lease asks the dispatcher for attempts, and waits until there are any or the request's time is over.
func (b *Bus) Lease(ctx context.Context, r jobs.LeaseRequest) (jobs.LeaseReply, error) {
	reply, more, err := ask[jobs.LeaseReply](ctx, b, b.fleet(jobs.LeaseSubject), r)
	ctx, cancel := context.WithTimeout(ctx, restWithin)
	defer cancel()
	for err == nil && more != "" {
		var part jobs.LeaseReply
		if part, more, err = ask[jobs.LeaseReply](ctx, b, more, nil); err != nil {
			b.log.Warn().Err(err).Msg("nats: the rest of an answer with leases is lost")
			return reply, nil // what has come is ours
		}
		reply.Leases = append(reply.Leases, part.Leases...)
	}
	return reply, err
}

// ask is one request to the dispatcher; more is where the rest of the answer is, or empty.
func ask[R any](ctx context.Context, b *Bus, subject string, request any) (r R, more string, err error) {
	data, err := encode(request)
	if err != nil {
		return r, "", err
	}
	m, err := b.nc.ask(ctx, &nats.Msg{Subject: subject, Data: data})
	if err != nil {
		return r, "", askFailed(err, len(data))
	}
	return r, m.Reply, json.Unmarshal(m.Data, &r)
}
