package webhook

import (
	"context"
	"net/url"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

const (
	// spreadBatch is how many hooks are read at once: each may have a mebibyte, and its job's spec another.
	spreadBatch = 64
	// spreadAtOnce bounds the deliveries of one transaction, while which nobody's jobs come in or end; but a hook has all of its own in one.
	spreadAtOnce = 128
	// lookEvery is how often hooks are looked for without a token.
	lookEvery = time.Minute
)

// spreadHooks makes deliveries of hooks, as they come, until ctx ends.
func (s *Service) spreadHooks(ctx context.Context) {
	for ctx.Err() == nil {
		n, err := s.spread(ctx)
		again := lookEvery
		switch {
		case err != nil && ctx.Err() == nil:
			zerolog.Ctx(ctx).Warn().Err(err).Msg("spread webhooks")
			again = againAfter
		case n == spreadBatch:
			continue
		}
		pause(ctx, time.Now().Add(again), s.cfg.Store.Hooked())
	}
}

// spread makes deliveries of the oldest hooks, and gives how many hooks those were.
func (s *Service) spread(ctx context.Context) (int, error) {
	hooks, err := s.cfg.Store.Hooks(ctx, spreadBatch)
	if err != nil || len(hooks) == 0 {
		return 0, err
	}
	endpoints := map[string][]ledger.Endpoint{}
	list, n := make([]ledger.Spread, 0, len(hooks)), 0
	for _, h := range hooks {
		if _, read := endpoints[h.Tenant]; !read {
			if endpoints[h.Tenant], err = s.cfg.Store.Endpoints(ctx, h.Tenant); err != nil {
				return 0, err
			}
		}
		told, err := hookOf(h)
		if err != nil { // it would hold up everybody's for ever
			zerolog.Ctx(ctx).Error().Err(err).Str("tenant", h.Tenant).Str("type", h.Type).Msg("webhook event cannot be read")
		}
		l := deliveries(h, told, endpoints[h.Tenant])
		if n > 0 && n+len(l) > spreadAtOnce {
			if err := s.keep(ctx, list); err != nil {
				return 0, err
			}
			list, n = list[:0], 0
		}
		list, n = append(list, ledger.Spread{Hook: h.ID, Deliveries: l}), n+len(l)
	}
	return len(hooks), s.keep(ctx, list)
}

// keep keeps the deliveries of hooks, and has them made.
func (s *Service) keep(ctx context.Context, list []ledger.Spread) error {
	if err := s.cfg.Store.SpreadHooks(ctx, list); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, l := range list {
		for _, d := range l.Deliveries {
			s.queue.add(d.Target, d.Tenant, now, now)
		}
	}
	s.wake()
	return nil
}

// deliveries are what becomes of a hook: one for each endpoint and callback that wants to be told.
func deliveries(h ledger.Hook, told jobs.Hook, endpoints []ledger.Endpoint) (l []ledger.Delivery) {
	for _, e := range endpoints {
		if e.Enabled && slices.Contains(e.Events, h.Type) {
			l = append(l, delivery(h.Tenant, told, &e))
		}
	}
	for _, c := range h.Callbacks {
		wants := c.Events
		if len(wants) == 0 {
			wants = []string{jobs.HookEnded}
		}
		if slices.Contains(wants, h.Type) {
			l = append(l, delivery(h.Tenant, told, &ledger.Endpoint{URL: c.URL, Format: jobs.FormatStandard}))
		}
	}
	return l
}

// delivery tells an endpoint, or a callback where that has no id.
func delivery(tenant string, told jobs.Hook, e *ledger.Endpoint) ledger.Delivery {
	id, now := jobs.NewID(), time.Now().UTC()
	d := ledger.Delivery{
		Delivery: jobs.Delivery{
			ID: id, Endpoint: e.ID, URL: e.URL, Event: told.Type, Job: told.Data.Job, Batch: told.Data.Batch, State: jobs.DeliveryPending,
			CreatedAt: now, NextAt: now, Body: string(encode(told, e.Format, id)),
		},
		Tenant: tenant, Format: e.Format, Target: e.ID,
	}
	if e.ID == "" {
		d.Target = callbackTarget(tenant, e.URL)
	}
	return d
}

// callbackTarget is what a tenant's callbacks to one server have in common: no tenant's name holds a space.
func callbackTarget(tenant, to string) string {
	if u, err := url.Parse(to); err == nil {
		to = u.Scheme + "://" + u.Host
	}
	return tenant + " " + to
}
