package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// SubmitBatch brings in many jobs at once, and gives the outcome of each. An error says that nothing was taken. Specs that are too many bytes
// for a message go as an object.
func (c *Client) SubmitBatch(ctx context.Context, r *jobs.BatchRequest) (jobs.BatchReply, error) {
	r, err := c.fitting(ctx, r)
	if err != nil {
		return jobs.BatchReply{}, err
	}
	reply, err := ask[jobs.BatchReply](ctx, c, jobs.BatchSubject(c.tenant, "submit"), r)
	switch {
	case err != nil:
		return reply, err
	case reply.Error != nil:
		return reply, reply.Error
	case reply.Batch == nil:
		return reply, strange(jobs.BatchSubject(c.tenant, "submit"))
	}
	return reply, nil
}

// fitting gives a request that a message can carry.
func (c *Client) fitting(ctx context.Context, r *jobs.BatchRequest) (*jobs.BatchRequest, error) {
	size := len(r.Defaults) + 1024
	for _, j := range r.Jobs {
		size += len(j) + 1
	}
	if int64(size) <= c.nc.MaxPayload() {
		return r, nil
	}
	var lines bytes.Buffer
	for _, j := range r.Jobs {
		if err := json.Compact(&lines, j); err != nil {
			return nil, fmt.Errorf("a job of the batch is no JSON: %w", err)
		}
		lines.WriteByte('\n')
	}
	ref, err := c.putBytes(ctx, lines.Bytes())
	if err != nil {
		return nil, err
	}
	large := *r
	large.Jobs, large.Object = nil, &ref
	return &large, nil
}

// Batch gives how far a batch is.
func (c *Client) Batch(ctx context.Context, id string) (jobs.Batch, error) {
	r, err := c.batches(ctx, "get", jobs.BatchQuery{ID: id})
	if err == nil && len(r.Batches) != 1 {
		err = strange(jobs.BatchSubject(c.tenant, "get"))
	}
	if err != nil {
		return jobs.Batch{}, err
	}
	return r.Batches[0], nil
}

// Batches gives a page of batches, newest first.
func (c *Client) Batches(ctx context.Context, q jobs.BatchQuery) (jobs.BatchesReply, error) {
	return c.batches(ctx, "list", q)
}

// CancelBatch cancels the jobs of a batch that have not ended, and gives how many those were.
func (c *Client) CancelBatch(ctx context.Context, id string) (int, error) {
	r, err := c.batches(ctx, "cancel", jobs.BatchQuery{ID: id})
	return r.Canceled, err
}

func (c *Client) batches(ctx context.Context, op string, q jobs.BatchQuery) (jobs.BatchesReply, error) {
	r, err := ask[jobs.BatchesReply](ctx, c, jobs.BatchSubject(c.tenant, op), q)
	if err == nil && r.Error != nil {
		err = r.Error
	}
	return r, err
}

// PutSchedule makes a schedule, or changes the one of its name, and gives it with the time of its next job.
func (c *Client) PutSchedule(ctx context.Context, s jobs.Schedule) (jobs.Schedule, error) {
	r, err := c.schedules(ctx, "put", s)
	if err == nil && len(r.Schedules) != 1 {
		err = strange(jobs.ScheduleSubject(c.tenant, "put"))
	}
	if err != nil {
		return s, err
	}
	return r.Schedules[0], nil
}

// Schedules gives all schedules, by name.
func (c *Client) Schedules(ctx context.Context) ([]jobs.Schedule, error) {
	r, err := c.schedules(ctx, "list", nil)
	return r.Schedules, err
}

// DeleteSchedule takes a schedule away.
func (c *Client) DeleteSchedule(ctx context.Context, name string) error {
	_, err := c.schedules(ctx, "delete", jobs.ScheduleQuery{Name: name})
	return err
}

func (c *Client) schedules(ctx context.Context, op string, body any) (jobs.SchedulesReply, error) {
	r, err := ask[jobs.SchedulesReply](ctx, c, jobs.ScheduleSubject(c.tenant, op), body)
	if err == nil && r.Error != nil {
		err = r.Error
	}
	return r, err
}

// Redrive brings a dead job in again, and gives the new one.
func (c *Client) Redrive(ctx context.Context, id string) (jobs.Job, error) {
	return c.dead(ctx, "redrive", id)
}

// DropDead takes a dead job from among those that wait for somebody to decide, and gives it.
func (c *Client) DropDead(ctx context.Context, id string) (jobs.Job, error) {
	return c.dead(ctx, "drop", id)
}

func (c *Client) dead(ctx context.Context, op, id string) (jobs.Job, error) {
	subject := jobs.DeadSubject(c.tenant, op)
	r, err := ask[jobs.DeadReply](ctx, c, subject, jobs.DeadRequest{ID: id})
	switch {
	case err != nil:
		return jobs.Job{}, err
	case r.Error != nil:
		return jobs.Job{}, r.Error
	case r.Job == nil:
		return jobs.Job{}, strange(subject)
	}
	return *r.Job, nil
}

// Workers gives the fleet's workers. These, and what follows, are an operator's.
func (c *Client) Workers(ctx context.Context) ([]jobs.WorkerInfo, error) {
	return c.fleet(ctx, "list", jobs.FleetRequest{})
}

// Cordon keeps further jobs from a worker; Uncordon lets it have some again. Drain does as Cordon, and gives what the worker has not ended
// within a time to others; 0 lets it end what it has. RemoveWorker forgets one that is gone.
func (c *Client) Cordon(ctx context.Context, worker string) ([]jobs.WorkerInfo, error) {
	return c.fleet(ctx, "cordon", jobs.FleetRequest{Worker: worker})
}

// Uncordon is explained at Cordon.
func (c *Client) Uncordon(ctx context.Context, worker string) ([]jobs.WorkerInfo, error) {
	return c.fleet(ctx, "uncordon", jobs.FleetRequest{Worker: worker})
}

// Drain is explained at Cordon.
func (c *Client) Drain(ctx context.Context, worker string, within time.Duration) ([]jobs.WorkerInfo, error) {
	return c.fleet(ctx, "drain", jobs.FleetRequest{Worker: worker, WithinMS: within.Milliseconds()})
}

// RemoveWorker is explained at Cordon.
func (c *Client) RemoveWorker(ctx context.Context, worker string) ([]jobs.WorkerInfo, error) {
	return c.fleet(ctx, "remove", jobs.FleetRequest{Worker: worker})
}

func (c *Client) fleet(ctx context.Context, op string, q jobs.FleetRequest) ([]jobs.WorkerInfo, error) {
	r, err := ask[jobs.FleetReply](ctx, c, jobs.FleetSubject(op), q)
	if err == nil && r.Error != nil {
		err = r.Error
	}
	return r.Workers, err
}
