package bus

import (
	"context"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

// Webhooks is what a Brain can do besides, where webhooks are called.
type Webhooks interface {
	// Webhook answers what is asked of a tenant's webhooks: op is one of jobs.WebhookAdd and so on, body the request's.
	Webhook(ctx context.Context, tenant, op string, body []byte) (jobs.WebhookReply, error)
}

// webhooks are the answers to what is asked of webhooks; none where the brain calls none.
func (s *serving) webhooks() map[string]handler {
	w, ok := s.brain.(Webhooks)
	if !ok {
		return nil
	}
	return map[string]handler{jobs.WebhookSubjects: inTime(func(ctx context.Context, m *nats.Msg) any {
		r, err := w.Webhook(ctx, token(m.Subject, 3), token(m.Subject, 4), m.Data)
		r.Error = s.errorOf(err)
		s.shortenDeliveries(&r)
		return &r
	})}
}

// shortenDeliveries makes a page of what fits into a message; the next page goes on from there.
func (s *serving) shortenDeliveries(r *jobs.WebhookReply) {
	size := 0
	for i := range r.Deliveries {
		data, err := encode(&r.Deliveries[i])
		if err != nil {
			panic(err) // plain data
		}
		if size += len(data) + 1; i > 0 && !s.bus.nc.fits(size) {
			r.Deliveries, r.Next = r.Deliveries[:i], r.Deliveries[i-1].ID
			return
		}
	}
}
