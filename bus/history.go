package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/jobs"
)

const (
	// dedupeWindow is how long the stream remembers the ids of what it stores. An hour's would take gigabytes of its memory.
	dedupeWindow = 2 * time.Minute
	// oldAfter is the age from which an event may have been stored longer ago than the stream remembers. An event is not stored before
	// it happens, so one that is younger than the window cannot have been forgotten; the other half is for clocks that differ.
	oldAfter = dedupeWindow / 2
)

// unstored leaves out old events that the stream has: those of an outbox or a worker that could not be published, or of which nobody
// knows whether they were. Fresh ones, which is all of them as long as nothing has failed, cost nothing here: the stream knows its own.
func (b *Bus) unstored(ctx context.Context, events []jobs.Event) ([]jobs.Event, error) {
	old := func(e jobs.Event) bool { return time.Since(e.Time) > oldAfter }
	if !slices.ContainsFunc(events, old) {
		return events, nil
	}
	var missing []jobs.Event
	histories := map[string]*history{}
	for _, e := range events {
		if old(e) {
			subject := jobs.EventSubject(e.Tenant, e.Job)
			h := histories[subject]
			if h == nil {
				var err error
				if h, err = b.history(ctx, subject); err != nil {
					return nil, err
				}
				histories[subject] = h
			}
			if has, err := h.has(ctx, &e); err != nil {
				return nil, err
			} else if has {
				continue
			}
		}
		missing = append(missing, e)
	}
	return missing, nil
}

// LastSeq gives the Seq of the last event of a job's attempt; 0 where that has none.
func (b *Bus) LastSeq(ctx context.Context, tenant, job string, attempt int) (int64, error) {
	h, err := b.history(ctx, jobs.EventSubject(tenant, job))
	if err != nil || h.last == nil {
		return 0, err
	}
	if h.last.Attempt == attempt {
		return h.last.Seq, nil
	}
	return h.lastOf(ctx, attempt)
}

// history is what the stream has of one job.
type history struct {
	stream  jetstream.Stream
	subject string
	last    *jobs.Event // nil where there is none
	ids     []string    // of all, oldest first; read when last does not tell enough
}

func (b *Bus) history(ctx context.Context, subject string) (*history, error) {
	h := &history{stream: b.events, subject: subject}
	m, err := h.stream.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return h, nil
	}
	if err != nil {
		return nil, unavailable("read the last event", err)
	}
	h.last = new(jobs.Event)
	if err := json.Unmarshal(m.Data, h.last); err != nil {
		return nil, fmt.Errorf("decode event: %w", err)
	}
	return h, nil
}

// has tells whether an event is stored. An attempt's events are stored in order, so the job's last mostly tells; not where attempts
// mix, because a worker that has lost the job goes on for a moment.
func (h *history) has(ctx context.Context, e *jobs.Event) (bool, error) {
	switch {
	case h.last == nil:
		return false, nil
	case h.last.Attempt == e.Attempt && h.last.Seq < e.Seq:
		return false, nil
	case h.last.Attempt == e.Attempt && h.last.Final == e.Final:
		return true, nil
	}
	err := h.read(ctx)
	return slices.Contains(h.ids, messageID(e)), err
}

func (h *history) lastOf(ctx context.Context, attempt int) (seq int64, err error) {
	err = h.read(ctx)
	for _, id := range h.ids {
		f := strings.Split(id, ".")
		if len(f) < 3 || f[1] != strconv.Itoa(attempt) {
			continue
		}
		if n, err := strconv.ParseInt(f[2], 10, 64); err == nil {
			seq = max(seq, n)
		}
	}
	return seq, err
}

// readAtOnce is how many headers are asked for at a time.
const readAtOnce = 1000

// read fetches the headers of all of the job's events.
func (h *history) read(ctx context.Context) error {
	if h.ids != nil {
		return nil
	}
	c, err := h.stream.CreateConsumer(ctx, jetstream.ConsumerConfig{
		FilterSubject: h.subject, AckPolicy: jetstream.AckNonePolicy, HeadersOnly: true, MemoryStorage: true, InactiveThreshold: time.Minute,
	})
	if err != nil {
		return unavailable("read the job's events", err)
	}
	defer h.stream.DeleteConsumer(context.WithoutCancel(ctx), c.CachedInfo().Name) //nolint:errcheck // its threshold does it too
	for {
		batch, err := c.FetchNoWait(readAtOnce)
		if err != nil {
			return unavailable("read the job's events", err)
		}
		n := len(h.ids)
		for m := range batch.Messages() {
			h.ids = append(h.ids, m.Headers().Get(nats.MsgIdHdr))
		}
		if err := batch.Error(); err != nil {
			h.ids = nil
			return unavailable("read the job's events", err)
		}
		if len(h.ids) == n {
			return nil
		}
	}
}
