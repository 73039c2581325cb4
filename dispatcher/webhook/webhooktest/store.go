// Package webhooktest has what tests of webhooks need: a store in memory that behaves as the ledger does, the suite that both keep, and a
// server that takes deliveries.
package webhooktest

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/webhook"
	"github.com/paddockvm/paddock/jobs"
)

// Store is a webhook.Store in memory.
type Store struct {
	// Before may hold up or refuse an operation; nil does neither.
	Before func(op string) error

	mu         sync.Mutex
	endpoints  map[string]ledger.Endpoint
	secrets    map[string][]ledger.Secret
	hooks      []ledger.Hook
	deliveries map[string]*ledger.Delivery
	last       int64
	hooked     chan struct{}
}

var _ webhook.Store = (*Store)(nil)

// NewStore gives an empty one.
func NewStore() *Store {
	return &Store{endpoints: map[string]ledger.Endpoint{}, secrets: map[string][]ledger.Secret{}, deliveries: map[string]*ledger.Delivery{}, hooked: make(chan struct{}, 1)}
}

func (s *Store) before(op string) error {
	if s.Before == nil {
		return nil
	}
	return s.Before(op)
}

// Hook puts a state change in, as a transition of the ledger does.
func (s *Store) Hook(h ledger.Hook) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	h.ID = s.last
	s.hooks = append(s.hooks, h)
	select {
	case s.hooked <- struct{}{}:
	default:
	}
}

// AddEndpoint implements webhook.Store.
func (s *Store) AddEndpoint(_ context.Context, e ledger.Endpoint, most int) (bool, error) {
	if err := s.before("add endpoint"); err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.of(e.Tenant)) >= most {
		return false, nil
	}
	s.endpoints[e.ID] = copyOf(e)
	return true, nil
}

func copyOf(e ledger.Endpoint) ledger.Endpoint {
	e.Events, e.Secrets = slices.Clone(e.Events), slices.Clone(e.Secrets)
	return e
}

func (s *Store) of(tenant string) (l []ledger.Endpoint) {
	for _, e := range s.endpoints {
		if e.Tenant == tenant {
			l = append(l, copyOf(e))
		}
	}
	slices.SortFunc(l, func(a, b ledger.Endpoint) int { return strings.Compare(a.ID, b.ID) })
	return l
}

// Endpoint implements webhook.Store.
func (s *Store) Endpoint(_ context.Context, tenant, id string) (ledger.Endpoint, error) {
	if err := s.before("endpoint"); err != nil {
		return ledger.Endpoint{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.endpoints[id]
	if !ok || e.Tenant != tenant {
		return ledger.Endpoint{}, ledger.ErrNoWebhook
	}
	return copyOf(e), nil
}

// Endpoints implements webhook.Store.
func (s *Store) Endpoints(_ context.Context, tenant string) ([]ledger.Endpoint, error) {
	if err := s.before("endpoints"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of(tenant), nil
}

// ChangeEndpoint implements webhook.Store.
func (s *Store) ChangeEndpoint(_ context.Context, tenant, id string, change func(*ledger.Endpoint)) (ledger.Endpoint, error) {
	if err := s.before("change endpoint"); err != nil {
		return ledger.Endpoint{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.endpoints[id]
	if !ok || e.Tenant != tenant {
		return ledger.Endpoint{}, ledger.ErrNoWebhook
	}
	e = copyOf(e)
	change(&e)
	s.keep(e)
	return copyOf(e), nil
}

// keep keeps an endpoint, and fails what one that is not enabled was still to be told.
func (s *Store) keep(e ledger.Endpoint) {
	s.endpoints[e.ID] = e
	if !e.Enabled {
		s.fail(e.ID, "the endpoint is disabled: "+e.DisabledReason, e.DisabledAt)
	}
}

func (s *Store) fail(target, why string, at time.Time) {
	for _, d := range s.deliveries {
		if d.Target == target && d.State == jobs.DeliveryPending {
			d.State, d.Error, d.EndedAt, d.NextAt = jobs.DeliveryFailed, why, at, time.Time{}
		}
	}
}

// RemoveEndpoint implements webhook.Store.
func (s *Store) RemoveEndpoint(_ context.Context, tenant, id string, at time.Time) (ledger.Endpoint, error) {
	if err := s.before("remove endpoint"); err != nil {
		return ledger.Endpoint{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.endpoints[id]
	if !ok || e.Tenant != tenant {
		return ledger.Endpoint{}, ledger.ErrNoWebhook
	}
	delete(s.endpoints, id)
	s.fail(id, "the endpoint was removed", at)
	return e, nil
}

// CallbackSecrets implements webhook.Store.
func (s *Store) CallbackSecrets(_ context.Context, tenant string) ([]ledger.Secret, error) {
	if err := s.before("callback secrets"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.secrets[tenant]), nil
}

// ChangeCallbackSecrets implements webhook.Store.
func (s *Store) ChangeCallbackSecrets(_ context.Context, tenant string, change func([]ledger.Secret) []ledger.Secret) ([]ledger.Secret, error) {
	if err := s.before("change callback secrets"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets[tenant] = change(slices.Clone(s.secrets[tenant]))
	return slices.Clone(s.secrets[tenant]), nil
}

// Hooks implements webhook.Store.
func (s *Store) Hooks(_ context.Context, limit int) ([]ledger.Hook, error) {
	if err := s.before("hooks"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.hooks[:min(limit, len(s.hooks))]), nil
}

// Hooked implements webhook.Store.
func (s *Store) Hooked() <-chan struct{} { return s.hooked }

// SpreadHooks implements webhook.Store.
func (s *Store) SpreadHooks(_ context.Context, list []ledger.Spread) error {
	if err := s.before("spread"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range list {
		i := slices.IndexFunc(s.hooks, func(h ledger.Hook) bool { return h.ID == l.Hook })
		if i < 0 {
			continue
		}
		s.hooks = slices.Delete(s.hooks, i, i+1)
		for _, d := range l.Deliveries {
			s.deliveries[d.ID] = &d
		}
	}
	return nil
}

// AddDelivery implements webhook.Store.
func (s *Store) AddDelivery(_ context.Context, d ledger.Delivery) error {
	if err := s.before("add delivery"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deliveries[d.ID] = &d
	return nil
}

// DeliveryTargets implements webhook.Store.
func (s *Store) DeliveryTargets(context.Context) (l []ledger.DeliveryTarget, _ error) {
	if err := s.before("targets"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.deliveries {
		if d.State != jobs.DeliveryPending {
			continue
		}
		i := slices.IndexFunc(l, func(t ledger.DeliveryTarget) bool { return t.Target == d.Target })
		switch {
		case i < 0:
			l = append(l, ledger.DeliveryTarget{Target: d.Target, Tenant: d.Tenant, NextAt: d.NextAt})
		case d.NextAt.Before(l[i].NextAt):
			l[i].NextAt = d.NextAt
		}
	}
	slices.SortFunc(l, func(a, b ledger.DeliveryTarget) int { return strings.Compare(a.Target, b.Target) })
	return l, nil
}

// PendingDeliveries implements webhook.Store.
func (s *Store) PendingDeliveries(_ context.Context, target string, limit int) (l []ledger.Delivery, _ error) {
	if err := s.before("pending"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.deliveries {
		if d.Target == target && d.State == jobs.DeliveryPending {
			d := *d
			d.Tries = nil
			l = append(l, d)
		}
	}
	slices.SortFunc(l, func(a, b ledger.Delivery) int {
		if c := a.NextAt.Compare(b.NextAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return l[:min(limit, len(l))], nil
}

// DeliveryTried implements webhook.Store.
func (s *Store) DeliveryTried(_ context.Context, t ledger.DeliveryTry) error {
	if err := s.before("tried"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.deliveries[t.ID]
	if d == nil || d.Tenant != t.Tenant {
		return nil
	}
	d.Attempts++
	t.Try.Attempt = d.Attempts
	d.Tries = append(d.Tries, t.Try)
	if d.State == jobs.DeliveryPending || t.State == jobs.DeliveryDelivered {
		d.State, d.NextAt, d.Step, d.Error, d.EndedAt = t.State, t.NextAt, t.Step, t.Try.Error, time.Time{}
		if t.State != jobs.DeliveryPending {
			d.EndedAt = t.Try.At
		}
	}
	if e, ok := s.endpoints[t.Endpoint]; ok {
		if e = copyOf(e); t.Change(&e) {
			s.keep(e)
		}
	}
	return nil
}

// Delivery implements webhook.Store.
func (s *Store) Delivery(_ context.Context, tenant, id string) (ledger.Delivery, error) {
	if err := s.before("delivery"); err != nil {
		return ledger.Delivery{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.deliveries[id]
	if d == nil || d.Tenant != tenant {
		return ledger.Delivery{}, ledger.ErrNoWebhook
	}
	c := *d
	c.Tries = slices.Clone(d.Tries)
	return c, nil
}

// Deliveries implements webhook.Store.
func (s *Store) Deliveries(_ context.Context, tenant string, q jobs.DeliveriesRequest) (l []ledger.Delivery, _ error) {
	if err := s.before("deliveries"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.deliveries {
		if d.Tenant == tenant && told(d, q.Endpoint) && (q.Job == "" || d.Job == q.Job) && (len(q.States) == 0 || slices.Contains(q.States, d.State)) &&
			(q.Before == "" || d.ID < q.Before) {
			c := *d
			c.Tries, c.Body = nil, ""
			l = append(l, c)
		}
	}
	slices.SortFunc(l, func(a, b ledger.Delivery) int { return strings.Compare(b.ID, a.ID) })
	return l[:min(q.Limit+1, len(l))], nil
}

// told tells whether a delivery is for an endpoint, as requests name it.
func told(d *ledger.Delivery, endpoint string) bool {
	return endpoint == "" || d.Endpoint == endpoint || endpoint == jobs.CallbacksID && d.Endpoint == ""
}

// Redeliver implements webhook.Store.
func (s *Store) Redeliver(_ context.Context, tenant string, q jobs.RedeliverRequest, at time.Time) (targets []ledger.DeliveryTarget, n int, _ error) {
	if err := s.before("redeliver"); err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.deliveries {
		switch e, ok := s.endpoints[d.Endpoint]; {
		case d.Tenant != tenant, d.Endpoint != "" && (!ok || !e.Enabled):
			continue
		case q.ID != "" && d.ID != q.ID:
			continue
		case q.ID == "" && (d.State != jobs.DeliveryFailed || d.CreatedAt.Before(q.Since) || !told(d, q.Endpoint)):
			continue
		}
		d.State, d.NextAt, d.Step, d.Error, d.EndedAt = jobs.DeliveryPending, at, 0, "", time.Time{}
		n++
		if !slices.ContainsFunc(targets, func(t ledger.DeliveryTarget) bool { return t.Target == d.Target }) {
			targets = append(targets, ledger.DeliveryTarget{Target: d.Target, Tenant: d.Tenant, NextAt: at})
		}
	}
	return targets, n, nil
}

// ForgetDeliveries implements webhook.Store.
func (s *Store) ForgetDeliveries(_ context.Context, before time.Time, limit int) (n int, _ error) {
	if err := s.before("forget"); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, d := range s.deliveries {
		if n < limit && d.State != jobs.DeliveryPending && d.EndedAt.Before(before) {
			delete(s.deliveries, id)
			n++
		}
	}
	return n, nil
}
