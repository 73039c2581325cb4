package ledgertest

import (
	"context"
	"errors"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// webhooks are what ledgers keep of webhooks besides ledger.Store, as far as a move is seen by it; dispatcher/webhook has all of it.
type webhooks interface {
	AddEndpoint(ctx context.Context, e ledger.Endpoint, most int) (bool, error)
	Endpoints(ctx context.Context, tenant string) ([]ledger.Endpoint, error)
	ChangeEndpoint(ctx context.Context, tenant, id string, change func(*ledger.Endpoint)) (ledger.Endpoint, error)
	CallbackSecrets(ctx context.Context, tenant string) ([]ledger.Secret, error)
	ChangeCallbackSecrets(ctx context.Context, tenant string, change func([]ledger.Secret) []ledger.Secret) ([]ledger.Secret, error)
	AddDelivery(ctx context.Context, d ledger.Delivery) error
	SpreadHooks(ctx context.Context, list []ledger.Spread) error
	DeliveryTargets(ctx context.Context) ([]ledger.DeliveryTarget, error)
	PendingDeliveries(ctx context.Context, target string, limit int) ([]ledger.Delivery, error)
	DeliveryTried(ctx context.Context, t ledger.DeliveryTry) error
	Delivery(ctx context.Context, tenant, id string) (ledger.Delivery, error)
	Deliveries(ctx context.Context, tenant string, q jobs.DeliveriesRequest) ([]ledger.Delivery, error)
}

func (s *suite) webhooks() webhooks {
	s.Helper()
	w, ok := s.Store.(webhooks)
	if !ok {
		s.Fatalf("a %T keeps no webhooks", s.Store)
	}
	return w
}

// endpoint is one that sets every field, with an old secret beside the new.
func (s *suite) endpoint(tenant string) ledger.Endpoint {
	id := s.id()
	return ledger.Endpoint{
		ID: id, Tenant: tenant, Enabled: true, URL: "https://example.org/<&>?of=" + tenant, Events: []string{jobs.HookEnded, jobs.HookRunning}, Format: "cloudevents",
		Description: "ü '\"", CreatedAt: s.now, FailingSince: s.now.Add(time.Second), FailedAt: s.now.Add(time.Minute),
		Secrets: []ledger.Secret{{Value: "whsec_new+/=", CreatedAt: s.now}, {Value: "whsec_old", CreatedAt: s.now.Add(-time.Hour), ExpiresAt: s.now.Add(24 * time.Hour)}},
	}
}

// delivery is one that is due, of a job to an endpoint.
func (s *suite) delivery(e *ledger.Endpoint) ledger.Delivery {
	id := s.id()
	return ledger.Delivery{
		Delivery: jobs.Delivery{
			ID: id, Endpoint: e.ID, URL: e.URL, Event: jobs.HookEnded, Job: s.id(), State: jobs.DeliveryPending, CreatedAt: s.now, NextAt: s.now.Add(time.Minute), Body: `{"a":"ü<&>"}`,
		},
		Tenant: e.Tenant, Format: e.Format, Target: e.ID,
	}
}

// fillWebhooks puts in endpoints, one of them disabled, callbacks' secrets, and deliveries in each state, with their tries.
func (s *suite) fillWebhooks() {
	s.Helper()
	w := s.webhooks()
	must := func(what string, err error) {
		s.Helper()
		if err != nil {
			s.Fatalf("%s: %v", what, err)
		}
	}
	tried := func(d *ledger.Delivery, t jobs.Try, state jobs.DeliveryState, step int) {
		s.Helper()
		t.At, t.DurationMS = s.tick(), 12.5
		next := time.Time{}
		if state == jobs.DeliveryPending {
			next = s.now.Add(time.Hour)
		}
		must("try", w.DeliveryTried(s.ctx(), ledger.DeliveryTry{Tenant: d.Tenant, ID: d.ID, Try: t, State: state, NextAt: next, Step: step}))
	}
	enabled, disabled := s.endpoint("t"), s.endpoint("other")
	var list []ledger.Delivery
	for _, e := range []ledger.Endpoint{enabled, disabled} {
		if added, err := w.AddEndpoint(s.ctx(), e, 10); !added || err != nil {
			s.Fatalf("add endpoint: %t, %v", added, err)
		}
		for range 3 {
			list = append(list, s.delivery(&e))
			must("add delivery", w.AddDelivery(s.ctx(), list[len(list)-1]))
		}
	}
	refused, silent := jobs.Try{Status: 500, Error: "the answer is 500", Response: "no\x00 ü"}, jobs.Try{Error: "nobody answers"}
	tried(&list[0], refused, jobs.DeliveryPending, 1)
	tried(&list[0], silent, jobs.DeliveryPending, 2)
	tried(&list[1], refused, jobs.DeliveryPending, 1)
	tried(&list[1], jobs.Try{Status: 204}, jobs.DeliveryDelivered, 2)
	tried(&list[3], silent, jobs.DeliveryFailed, 1)
	_, err := w.ChangeEndpoint(s.ctx(), disabled.Tenant, disabled.ID, func(e *ledger.Endpoint) {
		e.Enabled, e.DisabledReason, e.DisabledAt = false, "410 ü", s.now
	})
	must("disable", err) // which fails what was still to be sent there
	for _, tenant := range []string{"t", "other"} {
		_, err := w.ChangeCallbackSecrets(s.ctx(), tenant, func([]ledger.Secret) []ledger.Secret { return s.endpoint(tenant).Secrets })
		must("callback secrets", err)
	}
	hooks, err := s.Hooks(s.ctx(), 1000)
	must("hooks", err)
	if len(hooks) < 2 {
		s.Fatalf("%d hooks, want two: one to be spread, one to wait", len(hooks))
	}
	callback := s.delivery(&ledger.Endpoint{Tenant: "t", URL: "https://example.org/<&>", Format: "standard"})
	callback.Target, callback.Batch = "t https://example.org", s.id()
	must("spread", w.SpreadHooks(s.ctx(), []ledger.Spread{{Hook: hooks[0].ID, Deliveries: []ledger.Delivery{callback}}}))
}

// webhooked is all that a ledger shows of webhooks, besides Hooks.
type webhooked struct {
	Endpoints  map[string][]ledger.Endpoint
	Secrets    map[string][]ledger.Secret
	Deliveries []ledger.Delivery
	Targets    []ledger.DeliveryTarget
	Pending    map[string][]ledger.Delivery
}

// webhooked is for a ledger into which fillWebhooks has put something.
func (s *suite) webhooked() webhooked {
	s.Helper()
	w := s.webhooks()
	all := webhooked{Endpoints: map[string][]ledger.Endpoint{}, Secrets: map[string][]ledger.Secret{}, Pending: map[string][]ledger.Delivery{}}
	var errs [4]error
	states := map[jobs.DeliveryState]int{}
	for _, tenant := range []string{"t", "other"} {
		var list []ledger.Delivery
		all.Endpoints[tenant], errs[0] = w.Endpoints(s.ctx(), tenant)
		all.Secrets[tenant], errs[1] = w.CallbackSecrets(s.ctx(), tenant)
		list, errs[2] = w.Deliveries(s.ctx(), tenant, jobs.DeliveriesRequest{Limit: 1000})
		all.Targets, errs[3] = w.DeliveryTargets(s.ctx())
		if err := errors.Join(errs[:]...); err != nil {
			s.Fatal("webhooks:", err)
		}
		for _, d := range list {
			whole, err := w.Delivery(s.ctx(), tenant, d.ID)
			if err != nil || len(whole.Tries) != whole.Attempts || whole.Body == "" {
				s.Errorf("delivery %s: %d tries of %d, %d bytes, %v", d.ID, len(whole.Tries), whole.Attempts, len(whole.Body), err)
			}
			all.Deliveries = append(all.Deliveries, whole)
			states[d.State]++
		}
	}
	for _, t := range all.Targets {
		list, err := w.PendingDeliveries(s.ctx(), t.Target, 1000)
		if err != nil {
			s.Fatal("pending deliveries:", err)
		}
		all.Pending[t.Target] = list
	}
	s.same("deliveries by state", map[jobs.DeliveryState]int{jobs.DeliveryPending: 3, jobs.DeliveryDelivered: 1, jobs.DeliveryFailed: 3}, states)
	return all
}
