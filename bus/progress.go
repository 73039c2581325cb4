package bus

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

// Progress tells how far a batch is, on its subject; its end is final.
func (b *Bus) Progress(ctx context.Context, batch jobs.Batch) error {
	e := jobs.Event{
		Type: jobs.EventBatch, Job: batch.ID, Tenant: batch.Tenant, Seq: int64(batch.Ended), Time: batch.EndedAt, Final: !batch.EndedAt.IsZero(), Batch: &batch,
	}
	if !e.Final {
		e.Time = time.Now().UTC()
	}
	data, err := encode(e)
	if err != nil {
		return err
	}
	id := fmt.Sprintf("batch-%s.0.%d", batch.ID, batch.Ended) // the stream knows its messages by it alone, and a job may have the batch's id
	if e.Final {
		id += ".final"
	}
	m := &nats.Msg{Subject: jobs.BatchEventSubject(batch.Tenant, batch.ID), Data: data, Header: nats.Header{nats.MsgIdHdr: {id}}}
	if _, err := b.js.PublishMsg(ctx, m); err != nil {
		return unavailable("tell how far a batch is", err)
	}
	return nil
}
