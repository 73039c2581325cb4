package webhook

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

const (
	// maxEndpoints is how many endpoints a tenant may have.
	maxEndpoints = 50
	// defaultGrace is how long rotated secrets sign on.
	defaultGrace = 24 * time.Hour
)

// What tenants ask for. Every error is a *jobs.Error.

// Add makes an endpoint, and gives it with its secret, which is told this once.
func (s *Service) Add(ctx context.Context, tenant string, q jobs.EndpointRequest) (e jobs.Endpoint, secret string, _ error) {
	if err := s.guard.Check(q.URL); err != nil {
		return e, "", &jobs.Error{Code: jobs.CodeInvalid, Message: "invalid webhook endpoint", Faults: []jobs.Fault{{Path: "url", Message: err.Error()}}}
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	kept := ledger.Endpoint{
		ID: jobs.NewID(), Tenant: tenant, Enabled: true, URL: q.URL, Events: q.Events, Format: q.Format, Description: q.Description, CreatedAt: now,
		Secrets: []ledger.Secret{newSecret(q.Secret, now)},
	}
	if len(kept.Events) == 0 {
		kept.Events = []string{jobs.HookEnded, jobs.HookBatchEnded}
	}
	if kept.Format == "" {
		kept.Format = jobs.FormatStandard
	}
	taken, err := s.cfg.Store.AddEndpoint(ctx, kept, maxEndpoints)
	switch {
	case err != nil:
		return e, "", s.broken(ctx, "add webhook endpoint", err)
	case !taken:
		return e, "", &jobs.Error{Code: jobs.CodeQuota, Message: fmt.Sprintf("there are %d webhook endpoints, and no more are taken: remove one", maxEndpoints)}
	}
	return s.shown(&kept), kept.Secrets[0].Value, nil
}

// CheckURL says why nothing would be sent to a URL, as far as that can be told without resolving its name.
func (s *Service) CheckURL(url string) error { return s.guard.Check(url) }

// Get gives an endpoint.
func (s *Service) Get(ctx context.Context, tenant, id string) (jobs.Endpoint, error) {
	e, err := s.cfg.Store.Endpoint(ctx, tenant, id)
	if err != nil {
		return jobs.Endpoint{}, s.absent(ctx, "endpoint", id, err)
	}
	return s.shown(&e), nil
}

// List gives all endpoints of a tenant, the oldest first.
func (s *Service) List(ctx context.Context, tenant string) ([]jobs.Endpoint, error) {
	list, err := s.cfg.Store.Endpoints(ctx, tenant)
	if err != nil {
		return nil, s.broken(ctx, "list webhook endpoints", err)
	}
	shown := make([]jobs.Endpoint, 0, len(list))
	for _, e := range list {
		shown = append(shown, s.shown(&e))
	}
	return shown, nil
}

// Remove takes an endpoint away and gives what it was. What it was still to be told fails; the log of its deliveries stays for its time.
func (s *Service) Remove(ctx context.Context, tenant, id string) (jobs.Endpoint, error) {
	e, err := s.cfg.Store.RemoveEndpoint(ctx, tenant, id, time.Now().UTC())
	if err != nil {
		return jobs.Endpoint{}, s.absent(ctx, "endpoint", id, err)
	}
	s.dropped(id)
	return s.shown(&e), nil
}

// Enable has an endpoint told again, of what happens from now on.
func (s *Service) Enable(ctx context.Context, tenant, id string) (jobs.Endpoint, error) {
	return s.change(ctx, tenant, id, func(e *ledger.Endpoint) {
		if e.Enabled {
			return
		}
		e.Enabled, e.DisabledReason, e.DisabledAt, e.FailingSince, e.FailedAt = true, "", time.Time{}, time.Time{}, time.Time{}
	})
}

// Disable has an endpoint told no more. What it was still to be told fails, and can be replayed.
func (s *Service) Disable(ctx context.Context, tenant, id string) (jobs.Endpoint, error) {
	return s.change(ctx, tenant, id, func(e *ledger.Endpoint) {
		if e.Enabled {
			e.Enabled, e.DisabledReason, e.DisabledAt = false, reasonAsked, time.Now().UTC()
		}
	})
}

func (s *Service) change(ctx context.Context, tenant, id string, change func(*ledger.Endpoint)) (jobs.Endpoint, error) {
	e, err := s.cfg.Store.ChangeEndpoint(ctx, tenant, id, change)
	if err != nil {
		return jobs.Endpoint{}, s.absent(ctx, "endpoint", id, err)
	}
	s.dropped(id)
	return s.shown(&e), nil
}

// dropped has the queue read a target anew, its circuit closed.
func (s *Service) dropped(target string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue.drop(target, time.Now())
	s.wake()
}

// Rotate makes an endpoint, or the tenant's callbacks, sign with a new secret, which it gives, and with the old ones until the grace is over.
func (s *Service) Rotate(ctx context.Context, tenant string, q jobs.RotateRequest) (secret string, _ error) {
	grace := defaultGrace
	if q.GraceMS != nil {
		grace = time.Duration(*q.GraceMS) * time.Millisecond
	}
	made := newSecret(q.Secret, time.Now().UTC().Truncate(time.Microsecond))
	if q.ID == jobs.CallbacksID {
		_, err := s.cfg.Store.ChangeCallbackSecrets(ctx, tenant, func(old []ledger.Secret) []ledger.Secret { return rotate(old, made, grace) })
		if err != nil {
			return "", s.broken(ctx, "rotate webhook secret", err)
		}
		return made.Value, nil
	}
	_, err := s.cfg.Store.ChangeEndpoint(ctx, tenant, q.ID, func(e *ledger.Endpoint) { e.Secrets = rotate(e.Secrets, made, grace) })
	if err != nil {
		return "", s.absent(ctx, "endpoint", q.ID, err)
	}
	return made.Value, nil
}

// Secret gives the newest secret of a tenant's callbacks, and makes it where there is none. Unlike endpoints' it can be asked for again:
// it may have been made by a job that came before anybody asked.
func (s *Service) Secret(ctx context.Context, tenant string) (string, error) {
	l, err := s.callbackSecrets(ctx, tenant)
	if err != nil {
		return "", s.broken(ctx, "read webhook secret", err)
	}
	return l[0].Value, nil
}

// shown is what may be told of an endpoint, with what its circuit is like.
func (s *Service) shown(e *ledger.Endpoint) jobs.Endpoint {
	now := time.Now()
	j := jobs.Endpoint{
		ID: e.ID, URL: e.URL, Events: e.Events, Format: e.Format, Description: e.Description, CreatedAt: e.CreatedAt,
		Enabled: e.Enabled, DisabledReason: e.DisabledReason, DisabledAt: e.DisabledAt, FailingSince: e.FailingSince, Circuit: "closed",
	}
	for _, x := range active(e.Secrets, now) {
		j.Secrets = append(j.Secrets, jobs.SecretInfo{Hint: x.Value[max(0, len(x.Value)-4):], CreatedAt: x.CreatedAt, ExpiresAt: x.ExpiresAt})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.queue.targets[e.ID]; t != nil && t.until.After(now) {
		j.Circuit, j.RetryAt = "open", t.until.UTC()
	}
	return j
}

// absent is the error about an endpoint or a delivery.
func (s *Service) absent(ctx context.Context, what, id string, err error) error {
	if errors.Is(err, ledger.ErrNoWebhook) {
		return &jobs.Error{Code: jobs.CodeNotFound, Message: fmt.Sprintf("no webhook %s %.80q", what, id)}
	}
	return s.broken(ctx, "webhook "+what, err)
}

// broken logs a failure of the ledger and gives what clients may know of it.
func (s *Service) broken(ctx context.Context, what string, err error) error {
	if e, ok := errors.AsType[*jobs.Error](err); ok {
		return e
	}
	zerolog.Ctx(ctx).Error().Err(err).Msg(what)
	return &jobs.Error{Code: jobs.CodeUnavailable, Message: "the ledger cannot be written or read at the moment: " + what, RetryAfterMS: 1000}
}
