package client

import (
	"context"

	"github.com/paddockvm/paddock/jobs"
)

// Resize gives a running job's machine another size, within its spec's headroom, and tells what it has then. What r leaves out stays.
func (c *Client) Resize(ctx context.Context, id string, r jobs.ResizeRequest) (jobs.Resources, error) {
	if err := named(id); err != nil {
		return jobs.Resources{}, err
	}
	subject := jobs.ResizeSubject(c.tenant, id)
	reply, err := ask[jobs.ResizeReply](ctx, c, subject, r)
	switch {
	case err != nil:
		return jobs.Resources{}, unheard(err, "nobody resizes the job's machine: it does not run, or its spec has no headroom")
	case reply.Error != nil:
		return jobs.Resources{}, reply.Error
	case reply.Resources == nil:
		return jobs.Resources{}, strange(subject)
	}
	return *reply.Resources, nil
}
