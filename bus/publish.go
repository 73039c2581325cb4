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
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/jobs"
)

// Publish stores events, in order, and returns when they are durable. An event that is stored already, by job, attempt and seq, is
// passed over, where that was in the last minutes or its time says that it may be longer ago. One that no message can carry is "too_large",
// and then none is stored.
func (b *Bus) Publish(ctx context.Context, events ...jobs.Event) error {
	return b.publish(ctx, events, aged)
}

// Republish is Publish for events that may have been stored before, however long ago, and whatever clock they have their times from: so what
// fails can be repeated.
func (b *Bus) Republish(ctx context.Context, events ...jobs.Event) error {
	return b.publish(ctx, events, func(*jobs.Event) bool { return true })
}

// publish stores events; of those that are doubtful it looks first whether they are stored.
func (b *Bus) publish(ctx context.Context, events []jobs.Event, doubtful func(*jobs.Event) bool) error {
	events, err := b.unstored(ctx, events, doubtful)
	if err != nil || len(events) == 0 {
		return err
	}
	pub := &publication{msgs: make([]*nats.Msg, len(events)), done: make(chan error, 1)}
	for i := range events {
		if pub.msgs[i], err = b.message(&events[i]); err != nil {
			return err
		}
		pub.size += len(pub.msgs[i].Data)
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

func (b *Bus) message(e *jobs.Event) (*nats.Msg, error) {
	data, err := encode(e)
	if err != nil {
		return nil, fmt.Errorf("encode event: %w", err)
	}
	if !b.nc.fits(len(data)) {
		return nil, &jobs.Error{Code: jobs.CodeTooLarge, Message: fmt.Sprintf("event %s has %d bytes, the NATS server takes %d", messageID(e), len(data), b.nc.MaxPayload())}
	}
	return &nats.Msg{Subject: jobs.EventSubject(e.Tenant, e.Job), Data: data, Header: nats.Header{nats.MsgIdHdr: {messageID(e)}}}, nil
}

// messageID is what the stream knows an event by. The final event has one of its own, so that it is told from a late one of its number. That
// of a spec that was rejected has its tenant's: it names a job as it likes, another's too, whose final event it must not be taken for.
func messageID(e *jobs.Event) string {
	id := e.Job
	if e.Result != nil && e.Result.Ending == jobs.Rejected {
		id = e.Tenant + "." + id
	}
	id += "." + strconv.Itoa(e.Attempt) + "." + strconv.FormatInt(e.Seq, 10)
	if e.Final {
		id += "." + final
	}
	return id
}

// Ends of the ids of events that end a job, and of those that end a lost attempt of one.
const (
	final  = "final"
	closed = "closed"
)

// publisher stores events. Syncing each on its own would bound the whole system by the disk; so what comes from all callers while one
// batch is being stored makes the next, as one JetStream atomic batch (ADR-50 of NATS), which the server syncs once.
type publisher struct {
	nc    *conn
	in    chan *publication
	next  *publication // did not fit into the batch before
	aside errgroup.Group
	ended chan struct{}
	stop  chan struct{}
	once  sync.Once
}

type publication struct {
	msgs []*nats.Msg
	size int // of the bodies
	done chan error
}

const (
	// minAtomic is from how many messages an atomic batch is worth while: the server makes a directory for each, with files that it syncs.
	minAtomic = 5
	// maxAtomic is the server's bound on an atomic batch.
	maxAtomic = 1000
	// maxAtomicBytes keeps a batch far below the server's bound on what a client may have in flight.
	maxAtomicBytes = 8 << 20
	publishTimeout = 10 * time.Second
	// asideAtOnce bounds how many publications are stored on their own at once: as many as wait to be collected.
	asideAtOnce = 256
)

func newPublisher(nc *conn) *publisher {
	p := &publisher{nc: nc, in: make(chan *publication, asideAtOnce), ended: make(chan struct{}), stop: make(chan struct{})}
	p.aside.SetLimit(asideAtOnce)
	go p.run()
	return p
}

// close stores what was handed in.
func (p *publisher) close() {
	p.once.Do(func() { close(p.stop) })
	<-p.ended
}

// run stores batch after batch.
func (p *publisher) run() {
	defer close(p.ended)
	defer p.aside.Wait() //nolint:errcheck // they give none
	for {
		select {
		case first := <-p.in:
			p.storeFrom(first)
		case <-p.stop:
			for first := p.waiting(); first != nil; first = p.waiting() {
				p.storeFrom(first)
			}
			return
		}
	}
}

// storeFrom stores a publication with what else waits.
func (p *publisher) storeFrom(first *publication) {
	for first != nil {
		p.store(p.collect(first))
		first, p.next = p.next, nil
	}
}

// waiting gives the next publication that waits; nil where none does.
func (p *publisher) waiting() *publication {
	select {
	case pub := <-p.in:
		return pub
	default:
		return nil
	}
}

// collect takes what waits, as far as it fits into one atomic batch. A publication larger than that goes alone, in several.
func (p *publisher) collect(first *publication) []*publication {
	batch, n, size := []*publication{first}, len(first.msgs), first.size
	for n < maxAtomic && size < maxAtomicBytes {
		pub := p.waiting()
		if pub == nil {
			break
		}
		n, size = n+len(pub.msgs), size+pub.size
		if n > maxAtomic || size > maxAtomicBytes {
			p.next = pub
			break
		}
		batch = append(batch, pub)
	}
	return batch
}

// store stores a batch and tells each of its publications. Where the server will not have the batch, each goes on its own: the fault is
// one's, and no other's. They go aside, for each of their messages then waits for an answer of its own, and what comes next waits for none.
func (p *publisher) store(batch []*publication) {
	var msgs []*nats.Msg
	for _, pub := range batch {
		msgs = append(msgs, pub.msgs...)
	}
	if len(msgs) < minAtomic { // together, so that who is not answered holds up the others once
		var each sync.WaitGroup
		for _, pub := range batch {
			each.Go(func() { pub.done <- typed(p.oneByOne(pub.msgs)) })
		}
		each.Wait()
		return
	}
	left, err := p.together(msgs)
	if !refused(err) {
		for _, pub := range batch {
			pub.done <- typed(err)
		}
		return
	}
	if len(batch) == 1 {
		batch[0].msgs = left
	}
	for _, pub := range batch {
		p.aside.Go(func() error {
			pub.done <- typed(p.alone(pub.msgs))
			return nil
		})
	}
}

// together stores messages in as few batches as they fit into. It gives those that are left where one was not stored.
func (p *publisher) together(msgs []*nats.Msg) (left []*nats.Msg, _ error) {
	for len(msgs) > 0 {
		n := fitting(msgs)
		if err := p.batch(msgs[:n]); err != nil {
			return msgs, err
		}
		msgs = msgs[n:]
	}
	return nil, nil
}

// fitting is how many of the messages an atomic batch may have: one at least.
func fitting(msgs []*nats.Msg) (n int) {
	size := 0
	for n < len(msgs) && n < maxAtomic && (n == 0 || size+len(msgs[n].Data) <= maxAtomicBytes) {
		size += len(msgs[n].Data)
		n++
	}
	return n
}

// alone stores a publication's messages; where the server will not have a batch of them, because some are there already, one after the other:
// so they stay in order whatever becomes of one.
func (p *publisher) alone(msgs []*nats.Msg) error {
	for len(msgs) > 0 {
		n := fitting(msgs)
		err := p.batch(msgs[:n])
		if refused(err) {
			err = p.oneByOne(msgs[:n])
		}
		if err != nil {
			return err
		}
		msgs = msgs[n:]
	}
	return nil
}

// batch stores messages that fit into an atomic batch, as one where that is worth while.
func (p *publisher) batch(msgs []*nats.Msg) error {
	if len(msgs) < minAtomic {
		return p.oneByOne(msgs)
	}
	return p.atomic(msgs)
}

// oneByOne stores messages up to the first that is not stored.
func (p *publisher) oneByOne(msgs []*nats.Msg) error {
	for _, m := range msgs {
		for _, h := range []string{batchID, batchSeq, batchCommit} {
			m.Header.Del(h)
		}
		if err := p.request(context.Background(), m); err != nil {
			return err
		}
	}
	return nil
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
		m.Header.Del(batchCommit)
		if i < len(msgs)-1 {
			if err := p.nc.PublishMsg(m); err != nil {
				return err
			}
		}
	}
	last := msgs[len(msgs)-1]
	last.Header.Set(batchCommit, "1")
	return p.request(context.Background(), last)
}

func (p *publisher) request(ctx context.Context, m *nats.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	reply, err := p.nc.ask(ctx, m)
	if err != nil {
		return err
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

// apiError is JetStream's refusal of a message.
type apiError struct {
	Code        int    `json:"err_code"`
	Description string `json:"description"`
}

func (e *apiError) Error() string { return fmt.Sprintf("jetstream: %s (%d)", e.Description, e.Code) }

func refused(err error) bool {
	_, ok := errors.AsType[*apiError](err)
	return ok
}

// streamMessageTooLarge is JSStreamMessageExceedsMaximumErr of nats-server's errors.json: somebody has given the stream a bound.
const streamMessageTooLarge = 10054

// typed gives what a caller can act on.
func typed(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*apiError](err); ok && e.Code == streamMessageTooLarge {
		return &jobs.Error{Code: jobs.CodeTooLarge, Message: "publish events: " + e.Error()}
	}
	return unavailable("publish events", err)
}
