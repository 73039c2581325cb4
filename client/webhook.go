package client

import (
	"context"

	"github.com/paddockvm/paddock/jobs"
)

// Webhook asks something of the tenant's webhooks: op is jobs.WebhookAdd and so on, whose comments say which request goes with each (nil
// for none) and what the reply has.
func (c *Client) Webhook(ctx context.Context, op string, request any) (jobs.WebhookReply, error) {
	r, err := ask[jobs.WebhookReply](ctx, c, jobs.WebhookSubject(c.tenant, op), request)
	if err == nil && r.Error != nil {
		err = r.Error
	}
	return r, err
}
