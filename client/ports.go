package client

import (
	"context"

	"github.com/paddockvm/paddock/jobs"
)

// Ports tells where a job's ports can be reached now, by what its attempt told when it began to run. There are none before that, none after
// the job's end, and none of a job whose spec lists none; nor where the event that told of them is not kept any more.
func (c *Client) Ports(ctx context.Context, id string) ([]jobs.Port, error) {
	j, err := c.Get(ctx, id)
	if err != nil || j.State != jobs.StateRunning && j.State != jobs.StateLeased { // the record says leased for a moment when a job runs
		return nil, err
	}
	subject := jobs.ReplaySubject(c.tenant)
	var ports []jobs.Port
	for at := (jobs.Position{Attempt: j.Attempt}); ; {
		r, err := ask[jobs.ReplayReply](ctx, c, subject, jobs.ReplayRequest{Job: id, After: at, Limit: 8})
		switch {
		case err != nil:
			return nil, err
		case r.Error != nil:
			return nil, r.Error
		case r.Events == nil:
			return nil, strange(subject)
		}
		for i := range r.Events {
			switch e := &r.Events[i]; {
			case e.Final:
				return nil, nil
			case e.State == jobs.StateQueued: // it has been tried again meanwhile, or will be
				ports = nil
			case e.Type == jobs.EventPorts:
				ports = e.Ports
			case e.Type == jobs.EventOutput, e.Type == jobs.EventStep: // it would have come before
				return ports, nil
			}
		}
		if !r.More {
			return ports, nil
		}
		at = r.Next
	}
}
