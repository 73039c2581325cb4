package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/paddockvm/paddock/jobs"
)

// publisher stores events. Syncing each on its own would bound the whole system by the disk; so what comes from all callers while one
// batch is being stored makes the next, as one JetStream atomic batch (ADR-50 of NATS), which the server syncs once.
type publisher struct {
	nc    *nats.Conn
	in    chan *publication
	ended chan struct{}
	stop  chan struct{}
	once  sync.Once
}

type publication struct {
	msgs []*nats.Msg
	done chan error
}

const (
	// maxAtomic is the server's bound on an atomic batch.
	maxAtomic = 1000
	// maxAtomicBytes keeps a batch far below the server's bound on what a client may have in flight.
	maxAtomicBytes = 8 << 20
	publishTimeout = 10 * time.Second
)

var errBusClosed = errors.New("bus closed")

func newPublisher(nc *nats.Conn) *publisher {
	p := &publisher{nc: nc, in: make(chan *publication, 256), ended: make(chan struct{}), stop: make(chan struct{})}
	go p.run()
	return p
}

func (p *publisher) close() {
	p.once.Do(func() { close(p.stop) })
	<-p.ended
}

// Publish stores events, in order, and returns when they are durable. An event that is stored already, by job, attempt and seq, is
// passed over, so that whatever fails can be repeated.
func (b *Bus) Publish(ctx context.Context, events ...jobs.Event) error {
	if len(events) == 0 {
		return nil
	}
	pub := &publication{msgs: make([]*nats.Msg, len(events)), done: make(chan error, 1)}
	for i := range events {
		data, err := json.Marshal(&events[i])
		if err != nil {
			return fmt.Errorf("encode event: %w", err)
		}
		e := &events[i]
		pub.msgs[i] = &nats.Msg{Subject: jobs.EventSubject(e.Tenant, e.Job), Data: data, Header: nats.Header{
			nats.MsgIdHdr: {e.Job + "." + strconv.Itoa(e.Attempt) + "." + strconv.FormatInt(e.Seq, 10)},
		}}
	}
	select {
	case b.pub.in <- pub:
	case <-b.pub.stop:
		return unavailable("publish events", errBusClosed)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-pub.done:
		return err
	case <-b.pub.ended:
		select {
		case err := <-pub.done:
			return err
		default:
			return unavailable("publish events", errBusClosed)
		}
	}
}

// run stores batch after batch.
func (p *publisher) run() {
	defer close(p.ended)
	for {
		select {
		case <-p.stop:
			return
		case first := <-p.in:
			p.store(p.collect(first))
		}
	}
}

// collect takes what waits, as far as it fits into one atomic batch. A publication larger than that goes alone, in several.
func (p *publisher) collect(first *publication) []*publication {
	batch, n, size := []*publication{first}, len(first.msgs), first.size()
	for n < maxAtomic/2 && size < maxAtomicBytes/2 {
		select {
		case next := <-p.in:
			batch = append(batch, next)
			n += len(next.msgs)
			size += next.size()
		default:
			return batch
		}
	}
	return batch
}

func (pub *publication) size() (n int) {
	for _, m := range pub.msgs {
		n += len(m.Data)
	}
	return n
}

// store stores a batch and tells each of its publications.
func (p *publisher) store(batch []*publication) {
	var msgs []*nats.Msg
	for _, b := range batch {
		msgs = append(msgs, b.msgs...)
	}
	err := p.storeAll(msgs)
	for _, b := range batch {
		b.done <- err
	}
}

func (p *publisher) storeAll(msgs []*nats.Msg) error {
	for len(msgs) > 0 {
		n, size := 0, 0
		for n < len(msgs) && n < maxAtomic && (n == 0 || size+len(msgs[n].Data) <= maxAtomicBytes) {
			size += len(msgs[n].Data)
			n++
		}
		if err := p.storeSome(msgs[:n]); err != nil {
			return unavailable("publish events", err)
		}
		msgs = msgs[n:]
	}
	return nil
}

// storeSome stores one batch at once; where the server will not have it whole, because some of it is there already, one by one.
func (p *publisher) storeSome(msgs []*nats.Msg) error {
	if len(msgs) > 1 {
		err := p.atomic(msgs)
		var refused *apiError
		if err == nil || !errors.As(err, &refused) {
			return err
		}
		for _, m := range msgs {
			for _, h := range []string{batchID, batchSeq, batchCommit} {
				m.Header.Del(h)
			}
		}
	}
	return p.oneByOne(msgs)
}

const (
	batchID     = "Nats-Batch-Id"
	batchSeq    = "Nats-Batch-Sequence"
	batchCommit = "Nats-Batch-Commit"
)

func (p *publisher) atomic(msgs []*nats.Msg) error {
	id := nuid.Next()
	for i, m := range msgs {
		m.Header.Set(batchID, id)
		m.Header.Set(batchSeq, strconv.Itoa(i+1))
		if i < len(msgs)-1 {
			if err := p.nc.PublishMsg(m); err != nil {
				return err
			}
		}
	}
	last := msgs[len(msgs)-1]
	last.Header.Set(batchCommit, "1")
	return p.request(last)
}

// oneByOne sends all, and then waits for all: the server answers each when it is stored.
func (p *publisher) oneByOne(msgs []*nats.Msg) error {
	inbox := p.nc.NewRespInbox()
	sub, err := p.nc.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer sub.Unsubscribe() //nolint:errcheck // the connection's end does it too
	for _, m := range msgs {
		m.Reply = inbox
		if err := p.nc.PublishMsg(m); err != nil {
			return err
		}
	}
	end := time.Now().Add(publishTimeout)
	for range msgs {
		reply, err := sub.NextMsg(time.Until(end))
		if err != nil {
			return err
		}
		if err := ackOf(reply); err != nil {
			return err
		}
	}
	return nil
}

func (p *publisher) request(m *nats.Msg) error {
	reply, err := p.nc.RequestMsg(m, publishTimeout)
	if err != nil {
		return err
	}
	return ackOf(reply)
}

// apiError is JetStream's refusal of a message.
type apiError struct {
	Code        int    `json:"err_code"`
	Description string `json:"description"`
}

func (e *apiError) Error() string { return fmt.Sprintf("jetstream: %s (%d)", e.Description, e.Code) }

func ackOf(reply *nats.Msg) error {
	if reply.Header.Get("Status") == "503" {
		return nats.ErrNoResponders
	}
	var ack struct {
		Error *apiError `json:"error"`
	}
	if err := json.Unmarshal(reply.Data, &ack); err != nil {
		return fmt.Errorf("jetstream's answer %.80q: %w", reply.Data, err)
	}
	if ack.Error != nil {
		return ack.Error
	}
	return nil
}

func decodeEvent(b []byte) (e jobs.Event, err error) {
	if err := json.Unmarshal(b, &e); err != nil {
		return e, fmt.Errorf("decode event: %w", err)
	}
	return e, nil
}

// deadLetter is an entry of the dead-letter queue.
type deadLetter struct {
	Tenant string      `json:"tenant"`
	Job    *jobs.Job   `json:"job,omitempty"`
	Body   string      `json:"body,omitempty"` // of a spec that could not be read
	Reason string      `json:"reason"`
	Error  *jobs.Error `json:"error,omitempty"`
	Time   time.Time   `json:"time"`
}

// DeadLetter puts a job that can never run into the dead-letter queue.
func (b *Bus) DeadLetter(ctx context.Context, job jobs.Job, reason string) error {
	return b.bury(ctx, "job."+job.ID, deadLetter{Tenant: job.Tenant, Job: &job, Reason: reason, Time: time.Now().UTC()})
}

func (b *Bus) bury(ctx context.Context, id string, l deadLetter) error {
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	m := &nats.Msg{Subject: jobs.DLQSubject(l.Tenant), Data: data, Header: nats.Header{nats.MsgIdHdr: {id}}}
	if _, err := b.js.PublishMsg(ctx, m); err != nil {
		return unavailable("write the dead-letter queue", err)
	}
	return nil
}
