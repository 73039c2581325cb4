package bus

import (
	"context"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

// deadLetter is an entry of the dead-letter queue.
type deadLetter struct {
	Tenant string    `json:"tenant"`
	Job    *jobs.Job `json:"job,omitempty"`
	// Body is the beginning of a spec that could not be read, as UTF-8; BodyBytes is how long it was.
	Body      string      `json:"body,omitempty"`
	BodyBytes int         `json:"body_bytes,omitempty"`
	Reason    string      `json:"reason"`
	Error     *jobs.Error `json:"error,omitempty"`
	Time      time.Time   `json:"time"`
}

// maxLetterBody is how much of a body a letter repeats: six times as much, which JSON may make of it, still is a message.
const maxLetterBody = 64 << 10

// DeadLetter puts a job that can never run into the dead-letter queue; without its spec where that does not fit.
func (b *Bus) DeadLetter(ctx context.Context, job jobs.Job, reason string) error {
	l := deadLetter{Tenant: job.Tenant, Job: &job, Reason: reason, Time: time.Now().UTC()}
	data, err := encode(l)
	if err != nil {
		return err
	}
	if !b.nc.fits(len(data)) {
		job.Spec = nil // the job's record has it
	}
	return b.bury(ctx, "job."+job.ID, l)
}

// deadBody is the letter about a spec that is no job's.
func deadBody(tenant string, body []byte, e *jobs.Error, at time.Time) deadLetter {
	return deadLetter{
		Tenant: tenant, Body: strings.ToValidUTF8(string(body[:min(len(body), maxLetterBody)]), "\uFFFD"), BodyBytes: len(body),
		Reason: string(jobs.Rejected), Error: e, Time: at,
	}
}

func (b *Bus) bury(ctx context.Context, id string, l deadLetter) error {
	data, err := encode(l)
	if err != nil {
		return err
	}
	m := &nats.Msg{Subject: jobs.DLQSubject(l.Tenant), Data: data, Header: nats.Header{nats.MsgIdHdr: {id}}}
	if _, err := b.js.PublishMsg(ctx, m); err != nil {
		return unavailable("write the dead-letter queue", err)
	}
	return nil
}
