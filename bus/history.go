package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
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

// aged tells whether an event's time lets it have been stored longer ago than the stream remembers. One of a clock that was set back since,
// by whatever, has none that says so, but for one that has not come yet: who knows that an event may have been stored says so himself.
func aged(e *jobs.Event) bool { return time.Since(e.Time).Abs() > oldAfter }

// unstored leaves out doubtful events that the stream has: those of an outbox or a worker that could not be published, or of which nobody
// knows whether they were. Others, which is all of them as long as nothing has failed, cost nothing here: the stream knows its own.
func (b *Bus) unstored(ctx context.Context, events []jobs.Event, doubtful func(*jobs.Event) bool) ([]jobs.Event, error) {
	if !slices.ContainsFunc(events, func(e jobs.Event) bool { return doubtful(&e) }) {
		return events, nil
	}
	var missing []jobs.Event
	histories := map[string]*history{}
	for _, e := range events {
		if doubtful(&e) {
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

// Has tells whether an event is stored. One whose Seq is 0 is what CloseAttempt takes: then it is whether the attempt has such a one, or the job
// its final one.
func (b *Bus) Has(ctx context.Context, e jobs.Event) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	h, err := b.history(ctx, jobs.EventSubject(e.Tenant, e.Job))
	if err != nil {
		return false, err
	}
	return h.has(ctx, &e)
}

// wrongLastSequence is JSStreamWrongLastSequenceErrF and JSStreamWrongLastSequenceConstantErr of nats-server's errors.json: something has
// been stored since.
var wrongLastSequence = []int{10071, 10164}

// CloseAttempt stores the last event of an attempt whose worker may not know yet that it has lost it, and go on writing: as the one after the
// last that is there then, whatever e.Seq is. What that worker writes later comes after it, and has no part in the attempt: where the job then
// ends without another attempt, its final event is the one after the attempt's end.
func (b *Bus) CloseAttempt(ctx context.Context, e jobs.Event) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	for {
		h, err := b.history(ctx, jobs.EventSubject(e.Tenant, e.Job))
		if err != nil {
			return err
		}
		seq, err := h.lastOf(ctx, &e)
		if err != nil {
			return err
		}
		e.Seq = seq + 1
		m, err := b.message(&e)
		if err != nil {
			return err
		}
		if !e.Final {
			m.Header.Set(nats.MsgIdHdr, messageID(&e)+"."+closed)
		}
		at := int64(0)
		if h.last != nil {
			at = h.last.at
		}
		m.Header.Set(nats.ExpectedLastSubjSeqHdr, strconv.FormatInt(at, 10))
		err = b.pub.request(ctx, m)
		if refusal, ok := errors.AsType[*apiError](err); !ok || !slices.Contains(wrongLastSequence, refusal.Code) {
			return typed(err)
		}
		if there, err := b.Has(ctx, unnumbered(e)); there || err != nil { // it was this, by a request whose answer was lost
			return err
		}
	}
}

func unnumbered(e jobs.Event) jobs.Event {
	e.Seq = 0
	return e
}

// history is what the stream has of one job.
type history struct {
	stream  jetstream.Stream
	subject string
	last    *kept  // nil where there is none
	all     []kept // oldest first, without their data; read when last does not tell enough
}

func (b *Bus) history(ctx context.Context, subject string) (*history, error) {
	last, err := b.lastKept(ctx, subject)
	return &history{stream: b.events, subject: subject, last: last}, err
}

// lastKept gives the last event on a subject of the stream EVENTS, as its leader has it; nil where there is none. nats.go would ask
// whichever server is next where the stream allows that, and one that lags behind would have a number given twice.
func (b *Bus) lastKept(ctx context.Context, subject string) (*kept, error) {
	body, err := encode(struct {
		Last string `json:"last_by_subj"`
	}{subject})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, toldWithin)
	defer cancel()
	m, err := b.nc.ask(ctx, &nats.Msg{Subject: lastSubject, Data: body})
	if err != nil {
		return nil, unavailable("read the last event", err)
	}
	var reply struct { // JSApiMsgGetResponse of nats-server
		Message *struct {
			Seq    int64  `json:"seq"`
			Header []byte `json:"hdrs"`
			Data   []byte `json:"data"`
		} `json:"message"`
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &reply); err != nil {
		return nil, fmt.Errorf("read the last event: decode the answer: %w", err)
	}
	switch {
	case reply.Error != nil && reply.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, nil
	case reply.Error != nil:
		return nil, unavailable("read the last event", reply.Error)
	case reply.Message == nil:
		return nil, errors.New("read the last event: the answer has no message")
	}
	header, err := nats.DecodeHeadersMsg(reply.Message.Header)
	if err != nil && len(reply.Message.Header) > 0 {
		return nil, fmt.Errorf("read the last event: decode its header: %w", err)
	}
	k := &kept{at: reply.Message.Seq, data: reply.Message.Data}
	k.name(header.Get(nats.MsgIdHdr))
	return k, nil
}

const lastSubject = "$JS.API.STREAM.MSG.GET." + jobs.StreamEvents

// has tells whether an event is stored. An attempt's events are stored in order, so the job's last mostly tells; not where attempts
// mix, because a worker that has lost the job goes on for a moment.
func (h *history) has(ctx context.Context, e *jobs.Event) (bool, error) {
	switch last := h.last; {
	case last == nil:
		return false, nil
	case e.Final && last.final, e.Seq == 0 && !e.Final && last.closed && last.attempt == e.Attempt:
		return true, nil
	case e.Seq == 0:
	case last.attempt == e.Attempt && last.seq < e.Seq:
		return false, nil
	case last.attempt == e.Attempt && !last.final && !e.Final:
		return true, nil
	}
	err := h.read(ctx)
	return slices.ContainsFunc(h.all, func(k kept) bool {
		switch {
		case e.Final:
			return k.final
		case k.attempt != e.Attempt:
			return false
		case e.Seq == 0:
			return k.closed
		}
		return k.seq == e.Seq && !k.final
	}), err
}

// lastOf gives the Seq of the last event of e's attempt, of the one that has closed it where e, which is final, comes after that; 0 where it has
// none.
func (h *history) lastOf(ctx context.Context, e *jobs.Event) (seq int64, err error) {
	switch {
	case h.last == nil:
		return 0, nil
	case h.last.attempt == e.Attempt && (h.last.closed || !e.Final):
		return h.last.seq, nil
	}
	err = h.read(ctx)
	for _, k := range h.all {
		switch {
		case k.attempt != e.Attempt:
		case k.closed:
			return k.seq, err
		default:
			seq = max(seq, k.seq)
		}
	}
	return seq, err
}

const (
	// toldWithin bounds each question about what is stored: while nobody leads the stream nobody answers, nor later what was asked before.
	toldWithin = 5 * time.Second
	// readAtOnce is how many headers are asked for at a time.
	readAtOnce = 1000
	// newConsumerPause is before one that nobody knows yet is asked again.
	newConsumerPause = 20 * time.Millisecond
	// unheard is half of the time without a word after which it is asked again: a request may have been lost among a cluster's servers.
	unheard = 500 * time.Millisecond
)

// read fetches the headers of all of the job's events, to the one that was the last.
func (h *history) read(ctx context.Context) error {
	if h.all != nil {
		return nil
	}
	c, err := h.stream.CreateConsumer(ctx, jetstream.ConsumerConfig{
		FilterSubject: h.subject, AckPolicy: jetstream.AckNonePolicy, HeadersOnly: true, MemoryStorage: true, InactiveThreshold: time.Minute,
	})
	if err != nil {
		return unavailable("read the job's events", err)
	}
	defer h.stream.DeleteConsumer(context.WithoutCancel(ctx), c.CachedInfo().Name) //nolint:errcheck // its threshold does it too
	var all []kept
	known := time.Now().Add(toldWithin)
	for at := int64(0); h.last != nil && at < h.last.at; {
		to, l, err := h.fetch(ctx, c, at)
		all, at = append(all, l...), to
		switch {
		case at >= h.last.at:
		case (errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoHeartbeat)) && ctx.Err() == nil && time.Now().Before(known): // a cluster's servers have not told each other of the consumer yet
			pause(ctx, newConsumerPause)
		case err != nil:
			return unavailable("read the job's events", err)
		case len(l) == 0:
			return unavailable("read the job's events", errors.New("the last of them did not come"))
		}
	}
	h.all = all
	return nil
}

// fetch fetches some headers, to the one that was the last, and tells how far it came.
func (h *history) fetch(ctx context.Context, c jetstream.Consumer, at int64) (to int64, l []kept, err error) {
	ctx, cancel := context.WithTimeout(ctx, toldWithin)
	defer cancel()
	batch, err := c.Fetch(readAtOnce, jetstream.FetchContext(ctx), jetstream.FetchHeartbeat(unheard))
	if err != nil {
		return at, nil, err
	}
	for m := range batch.Messages() {
		var k kept
		k.name(m.Headers().Get(nats.MsgIdHdr))
		l = append(l, k)
		if meta, err := m.Metadata(); err == nil {
			at = int64(meta.Sequence.Stream)
		}
		if at >= h.last.at {
			break
		}
	}
	return at, l, batch.Error()
}
