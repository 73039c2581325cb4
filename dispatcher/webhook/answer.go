package webhook

import (
	"context"
	"fmt"

	"github.com/paddockvm/paddock/jobs"
)

// Webhook answers a request of the contract: what is asked, and the request's body. The error is not in the reply.
func (s *Service) Webhook(ctx context.Context, tenant, op string, body []byte) (r jobs.WebhookReply, err error) {
	if err := jobs.ValidTenant(tenant); err != nil {
		return r, err
	}
	answer := map[string]func(context.Context, string, []byte, *jobs.WebhookReply) error{
		jobs.WebhookAdd: s.answerAdd, jobs.WebhookList: s.answerList, jobs.WebhookSecret: s.answerSecret, jobs.WebhookRotate: s.answerRotate,
		jobs.WebhookGet: endpoint(s.Get), jobs.WebhookRemove: endpoint(s.Remove), jobs.WebhookEnable: endpoint(s.Enable), jobs.WebhookDisable: endpoint(s.Disable),
		jobs.WebhookTest: s.answerTest, jobs.WebhookDelivery: s.answerDelivery, jobs.WebhookDeliveries: s.answerDeliveries, jobs.WebhookReplay: s.answerReplay,
	}[op]
	if answer == nil {
		return r, &jobs.Error{Code: jobs.CodeNotFound, Message: fmt.Sprintf("webhooks cannot be asked to %.40q", op)}
	}
	if err := answer(ctx, tenant, body, &r); err != nil {
		return jobs.WebhookReply{Warnings: r.Warnings}, err
	}
	return r, nil
}

// endpoint answers what is asked of one endpoint with that endpoint.
func endpoint(do func(ctx context.Context, tenant, id string) (jobs.Endpoint, error)) func(context.Context, string, []byte, *jobs.WebhookReply) error {
	return func(ctx context.Context, tenant string, body []byte, r *jobs.WebhookReply) (err error) {
		var q jobs.EndpointID
		if r.Warnings, err = jobs.DecodeRequest(body, &q); err != nil {
			return err
		}
		e, err := do(ctx, tenant, q.ID)
		r.Endpoint = &e
		return err
	}
}

func (s *Service) answerAdd(ctx context.Context, tenant string, body []byte, r *jobs.WebhookReply) (err error) {
	var q jobs.EndpointRequest
	if r.Warnings, err = jobs.DecodeRequest(body, &q); err != nil {
		return err
	}
	e, secret, err := s.Add(ctx, tenant, q)
	r.Endpoint, r.Secret = &e, secret
	return err
}

func (s *Service) answerList(ctx context.Context, tenant string, _ []byte, r *jobs.WebhookReply) (err error) {
	r.Endpoints, err = s.List(ctx, tenant)
	return err
}

func (s *Service) answerSecret(ctx context.Context, tenant string, _ []byte, r *jobs.WebhookReply) (err error) {
	r.Secret, err = s.Secret(ctx, tenant)
	return err
}

func (s *Service) answerRotate(ctx context.Context, tenant string, body []byte, r *jobs.WebhookReply) (err error) {
	var q jobs.RotateRequest
	if r.Warnings, err = jobs.DecodeRequest(body, &q); err != nil {
		return err
	}
	r.Secret, err = s.Rotate(ctx, tenant, q)
	return err
}

func (s *Service) answerTest(ctx context.Context, tenant string, body []byte, r *jobs.WebhookReply) (err error) {
	var q jobs.EndpointID
	if r.Warnings, err = jobs.DecodeRequest(body, &q); err != nil {
		return err
	}
	d, err := s.Test(ctx, tenant, q.ID)
	r.Delivery = &d
	return err
}

func (s *Service) answerDelivery(ctx context.Context, tenant string, body []byte, r *jobs.WebhookReply) (err error) {
	var q jobs.DeliveryID
	if r.Warnings, err = jobs.DecodeRequest(body, &q); err != nil {
		return err
	}
	d, err := s.Delivery(ctx, tenant, q.ID)
	r.Delivery = &d
	return err
}

func (s *Service) answerDeliveries(ctx context.Context, tenant string, body []byte, r *jobs.WebhookReply) (err error) {
	var q jobs.DeliveriesRequest
	if r.Warnings, err = jobs.DecodeRequest(body, &q); err != nil {
		return err
	}
	r.Deliveries, r.Next, err = s.Deliveries(ctx, tenant, q)
	return err
}

func (s *Service) answerReplay(ctx context.Context, tenant string, body []byte, r *jobs.WebhookReply) (err error) {
	var q jobs.RedeliverRequest
	if r.Warnings, err = jobs.DecodeRequest(body, &q); err != nil {
		return err
	}
	r.Count, err = s.Redeliver(ctx, tenant, q)
	return err
}
