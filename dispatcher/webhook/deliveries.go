package webhook

import (
	"context"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// Test has an endpoint told that somebody tries it, and gives the delivery: it is made like any other.
func (s *Service) Test(ctx context.Context, tenant, id string) (jobs.Delivery, error) {
	e, err := s.cfg.Store.Endpoint(ctx, tenant, id)
	if err != nil {
		return jobs.Delivery{}, s.absent(ctx, "endpoint", id, err)
	}
	if !e.Enabled {
		return jobs.Delivery{}, &jobs.Error{Code: jobs.CodeConflict, Message: "the endpoint is disabled: " + e.DisabledReason}
	}
	d := delivery(tenant, jobs.Hook{Type: jobs.HookTest, Timestamp: time.Now().UTC().Truncate(time.Millisecond), Data: jobs.HookData{Tenant: tenant}}, &e)
	if err := s.cfg.Store.AddDelivery(ctx, d); err != nil {
		return jobs.Delivery{}, s.broken(ctx, "add webhook delivery", err)
	}
	s.due(d.Target, tenant, d.NextAt)
	d.Body = ""
	return d.Delivery, nil
}

// due tells the queue of a delivery.
func (s *Service) due(target, tenant string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue.add(target, tenant, at, time.Now())
	s.wake()
}

// Delivery gives a delivery with its tries and its body.
func (s *Service) Delivery(ctx context.Context, tenant, id string) (jobs.Delivery, error) {
	d, err := s.cfg.Store.Delivery(ctx, tenant, id)
	if err != nil {
		return jobs.Delivery{}, s.absent(ctx, "delivery", id, err)
	}
	return d.Delivery, nil
}

// Deliveries gives deliveries, the newest first, and where the next page begins.
func (s *Service) Deliveries(ctx context.Context, tenant string, q jobs.DeliveriesRequest) (list []jobs.Delivery, next string, _ error) {
	if q.Limit == 0 {
		q.Limit = 50
	}
	found, err := s.cfg.Store.Deliveries(ctx, tenant, q)
	if err != nil {
		return nil, "", s.broken(ctx, "list webhook deliveries", err)
	}
	list = make([]jobs.Delivery, 0, len(found))
	for _, d := range found {
		if len(list) == q.Limit {
			return list, list[q.Limit-1].ID, nil
		}
		list = append(list, d.Delivery)
	}
	return list, "", nil
}

// Redeliver has deliveries made again, under their own ids, and gives how many those are.
func (s *Service) Redeliver(ctx context.Context, tenant string, q jobs.RedeliverRequest) (int, error) {
	if q.ID != "" {
		if err := s.redeliverable(ctx, tenant, q.ID); err != nil {
			return 0, err
		}
	}
	if q.Endpoint != "" && q.Endpoint != jobs.CallbacksID {
		if _, err := s.Get(ctx, tenant, q.Endpoint); err != nil {
			return 0, err
		}
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	targets, n, err := s.cfg.Store.Redeliver(ctx, tenant, q, now)
	for _, t := range targets { // with an error these are some
		s.due(t.Target, t.Tenant, now)
	}
	if err != nil {
		return 0, s.broken(ctx, "replay webhook deliveries", err)
	}
	return n, nil
}

// redeliverable says why one delivery cannot be made again.
func (s *Service) redeliverable(ctx context.Context, tenant, id string) error {
	d, err := s.cfg.Store.Delivery(ctx, tenant, id)
	if err != nil || d.Endpoint == "" {
		return s.absentOrNil(ctx, id, err)
	}
	_, why, err := s.secretsOf(ctx, &ledger.Delivery{Delivery: jobs.Delivery{Endpoint: d.Endpoint}, Tenant: tenant})
	if err != nil {
		return s.broken(ctx, "read webhook endpoint", err)
	}
	if why != "" {
		return &jobs.Error{Code: jobs.CodeConflict, Message: why}
	}
	return nil
}

func (s *Service) absentOrNil(ctx context.Context, id string, err error) error {
	if err == nil {
		return nil
	}
	return s.absent(ctx, "delivery", id, err)
}
