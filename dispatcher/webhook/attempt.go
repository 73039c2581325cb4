package webhook

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

const (
	// failsFor is after how long without a success an endpoint is disabled; failuresApart is how far apart failures may be that count as one
	// time: no further than the schedule's longest pause, and its jitter.
	failsFor      = 5 * 24 * time.Hour
	failuresApart = 36 * time.Hour
)

// Why endpoints are disabled.
const (
	reasonAsked   = "disabled by the tenant"
	reasonGone    = "answered 410"
	reasonFailing = "every delivery has failed for 5 days"
)

// attempt makes a delivery once, keeps what came of it, and gives when it is to be made again; zero: never.
func (s *Service) attempt(ctx context.Context, d *ledger.Delivery, t *target) (again time.Time) {
	secrets, why, err := s.secretsOf(ctx, d)
	switch {
	case err != nil:
		return s.later(ctx, "read webhook endpoint", err)
	case why != "":
		err := s.cfg.Store.DeliveryTried(ctx, ledger.DeliveryTry{Tenant: d.Tenant, ID: d.ID, Try: jobs.Try{At: time.Now().UTC(), Error: why}, State: jobs.DeliveryFailed, Step: d.Step})
		if err != nil {
			return s.later(ctx, "keep webhook delivery", err)
		}
		return again
	}
	began := time.Now()
	o := s.send(ctx, d, secrets)
	if ctx.Err() != nil {
		return again // aborted: it says nothing of the server, and whoever leads next makes it again
	}
	now := time.Now()
	took := now.Sub(began)
	s.judged(t, &o, took, now)
	tried := s.follow(d, &o, now)
	tried.Try = jobs.Try{At: began.UTC(), DurationMS: float64(took.Microseconds()) / 1000, Status: o.status, Error: o.text, Response: o.response}
	disabled := ""
	tried.Change = func(e *ledger.Endpoint) bool {
		var changed bool
		changed, disabled = health(e, &o, now)
		return changed
	}
	if err := s.cfg.Store.DeliveryTried(ctx, tried); err != nil {
		return s.later(ctx, "keep webhook delivery", err)
	}
	s.metrics.tried(d, &o, tried.State, began, took)
	if disabled != "" {
		s.tellDisabled(ctx, d, disabled)
	}
	return tried.NextAt
}

// later has a delivery made again when the ledger may answer again.
func (s *Service) later(ctx context.Context, what string, err error) time.Time {
	if ctx.Err() == nil {
		zerolog.Ctx(ctx).Warn().Err(err).Msg(what)
	}
	return time.Now().Add(againAfter)
}

// secretsOf gives what a delivery is signed with; why it is not to be made, where it is not.
func (s *Service) secretsOf(ctx context.Context, d *ledger.Delivery) (_ []ledger.Secret, why string, _ error) {
	if d.Endpoint == "" {
		l, err := s.callbackSecrets(ctx, d.Tenant)
		return l, "", err
	}
	e, err := s.cfg.Store.Endpoint(ctx, d.Tenant, d.Endpoint)
	switch {
	case errors.Is(err, ledger.ErrNoWebhook):
		return nil, "the endpoint was removed", nil
	case err != nil:
		return nil, "", err
	case !e.Enabled:
		return nil, "the endpoint is disabled: " + e.DisabledReason, nil
	}
	return active(e.Secrets, time.Now()), "", nil
}

// callbackSecrets gives what a tenant's callbacks are signed with, and makes it where there is none.
func (s *Service) callbackSecrets(ctx context.Context, tenant string) ([]ledger.Secret, error) {
	l, err := s.cfg.Store.CallbackSecrets(ctx, tenant)
	if err != nil || len(l) > 0 {
		return active(l, time.Now()), err
	}
	made := newSecret("", time.Now().UTC())
	return s.cfg.Store.ChangeCallbackSecrets(ctx, tenant, func(old []ledger.Secret) []ledger.Secret {
		if len(old) > 0 {
			return old // somebody was faster
		}
		return []ledger.Secret{made}
	})
}

// judged says to a target's circuit and width what a try came to.
func (s *Service) judged(t *target, o *outcome, took time.Duration, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.slow = !o.ok() || took > slowAfter
	if o.ok() {
		t.succeeded()
	} else {
		t.failed(now, jitter())
	}
	if t.slow {
		t.width = max(1, t.width/2)
	} else {
		t.width = min(t.width+1, s.queue.bounds.endpoint)
	}
	if o.after > 0 {
		t.wait(now.Add(o.after))
	}
}

// follow says what becomes of a delivery: the next try, or the end.
func (s *Service) follow(d *ledger.Delivery, o *outcome, now time.Time) ledger.DeliveryTry {
	tried := ledger.DeliveryTry{Tenant: d.Tenant, ID: d.ID, State: jobs.DeliveryPending, Step: d.Step + 1, Endpoint: d.Endpoint}
	switch {
	case o.ok():
		tried.State = jobs.DeliveryDelivered
	case o.class == "gone", tried.Step >= len(s.cfg.Schedule):
		tried.State = jobs.DeliveryFailed
	default:
		tried.NextAt = now.Add(max(spreadOut(s.cfg.Schedule[tried.Step], jitter()), o.after)).UTC()
	}
	return tried
}

// health notes in an endpoint what a try came to, and tells whether it has changed, and why it is disabled by it.
func health(e *ledger.Endpoint, o *outcome, now time.Time) (changed bool, disabled string) {
	if !e.Enabled {
		return false, ""
	}
	if o.ok() {
		changed = !e.FailingSince.IsZero()
		e.FailingSince, e.FailedAt = time.Time{}, time.Time{}
		return changed, ""
	}
	now = now.UTC()
	if e.FailingSince.IsZero() || now.Sub(e.FailedAt) > failuresApart {
		e.FailingSince = now
	}
	e.FailedAt = now
	switch {
	case o.class == "gone":
		disabled = reasonGone
	case now.Sub(e.FailingSince) >= failsFor:
		disabled = reasonFailing
	}
	if disabled != "" {
		e.Enabled, e.DisabledReason, e.DisabledAt = false, disabled, now
	}
	return true, disabled
}

// tellDisabled tells the operator that an endpoint is told no more.
func (s *Service) tellDisabled(ctx context.Context, d *ledger.Delivery, why string) {
	zerolog.Ctx(ctx).Error().Str("tenant", d.Tenant).Str("endpoint", d.Endpoint).Str("reason", why).Msg("webhook endpoint disabled")
	s.metrics.disabled.Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue.drop(d.Target, time.Now())
}
