package client

import (
	"context"
	"errors"

	"github.com/paddockvm/paddock/jobs"
)

// Resize gives a running job's machine another size, within its spec's headroom, and tells what it has then. What r leaves out stays.
func (c *Client) Resize(ctx context.Context, id string, r jobs.ResizeRequest) (jobs.Resources, error) {
	if err := named(id); err != nil {
		return jobs.Resources{}, err
	}
	subject := jobs.ResizeSubject(c.tenant, id)
	reply, err := ask[jobs.ResizeReply](ctx, c, subject, r)
	if e, ok := errors.AsType[*jobs.Error](err); ok && e.Code == jobs.CodeUnavailable {
		return jobs.Resources{}, &jobs.Error{Code: jobs.CodeUnavailable, Message: "nobody resizes the job's machine: it does not run, or its spec has no headroom", RetryAfterMS: e.RetryAfterMS}
	}
	switch {
	case err != nil:
		return jobs.Resources{}, err
	case reply.Error != nil:
		return jobs.Resources{}, reply.Error
	case reply.Resources == nil:
		return jobs.Resources{}, strange(subject)
	}
	return *reply.Resources, nil
}
