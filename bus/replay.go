package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

const (
	// replaysAtOnce bounds the memory that replies take while they are made, and how many reads stand between a publisher and the
	// stream's lock; further requests wait for their tenant's turn.
	replaysAtOnce = 4
	// scanBytes is how much is read at a time where nothing of it is to be given.
	scanBytes = 512 << 10
	// nearEnough is how many messages of the stream are read rather than halved again in search of a position.
	nearEnough = 64
	// nearEnoughBytes is what is read of them at a time.
	nearEnoughBytes = 64 << 10
	// sureToBeOut is how long after its end a job's final event may still be on its way, unless the servers are away.
	sureToBeOut = 20 * time.Second
)

// replays answers who asks for events that have been. It is stateless: a request tells all that there is to know of whoever asks, so
// that any dispatcher can answer the next, and a slow viewer costs nothing.
func (s *serving) replays() handler {
	return inTime(func(ctx context.Context, m *nats.Msg) any {
		if m.Reply == "" {
			return nil
		}
		var q jobs.ReplayRequest
		warnings, err := jobs.DecodeRequest(m.Data, &q)
		var r *replay
		if err == nil {
			r, err = s.replay(ctx, token(m.Subject, 3), q)
		}
		if err != nil {
			return &jobs.ReplayReply{Warnings: warnings, Error: s.errorOf(err)}
		}
		data := r.encode(warnings)
		if !s.bus.nc.fits(len(data)) {
			return failure{&jobs.Error{Code: jobs.CodeTooLarge, Message: fmt.Sprintf("the events have %d bytes, more than the NATS server takes", len(data))}}
		}
		_ = m.Respond(data) // encoding anew what the stream has encoded would take longer than all the rest
		return nil
	})
}

// replay is one reply in the making.
type replay struct {
	bus     *Bus
	reads   *conn
	brain   Brain
	tenant  string
	q       jobs.ReplayRequest
	subject string
	limit   int
	room    int64 // for the bytes of events

	events [][]byte
	size   int64
	next   jobs.Position
	closed int  // the attempt that has ended, where its worker may not know it
	before bool // an event at or before the position that was asked is still kept: then nothing after it is gone for its age
	more   bool
	ended  bool
}

func (s *serving) replay(ctx context.Context, tenant string, q jobs.ReplayRequest) (*replay, error) {
	r := &replay{bus: s.bus, reads: s.reads, brain: s.brain, tenant: tenant, q: q, limit: q.Limit, room: q.MaxBytes, next: q.After}
	id := q.Job
	r.subject = jobs.EventSubject(tenant, id)
	if q.Batch != "" {
		id = q.Batch
		r.subject = jobs.BatchEventSubject(tenant, id)
	}
	if _, err := jobs.ParseID(id); err != nil {
		return nil, &jobs.Error{Code: jobs.CodeNotFound, Message: "no such job or batch"}
	}
	if r.limit == 0 {
		r.limit = jobs.DefaultReplayEvents
	}
	if r.room == 0 {
		r.room = jobs.DefaultReplayBytes
	}
	r.room = min(r.room, s.bus.nc.MaxPayload()-2*headroom)
	if err := r.fill(ctx); err != nil {
		return nil, err
	}
	if len(r.events) == 0 && r.q.Job != "" {
		return r, r.end(ctx)
	}
	return r, nil
}

// fill takes what follows the position, as far as there is room. It begins where the position says that all before has been seen, if
// that is true, and reads on from there; where much has been seen, it searches.
func (r *replay) fill(ctx context.Context) error {
	n, size := max(r.limit+1, nearEnough), max(r.room, nearEnoughBytes)
	from, hinted, searched := r.q.After.At, r.q.After.At > 0, false
	for {
		events, more, err := r.reads.keptFrom(ctx, r.subject, from, n, size)
		if err != nil {
			return err
		}
		if hinted && (len(events) == 0 || events[0].at != from || !r.seen(&events[0])) { // the stream is another than when it was told
			from, hinted = 0, false
			continue
		}
		hinted = false
		for i := range events {
			if !r.take(&events[i]) {
				r.more = true
				return nil
			}
			if r.ended {
				return nil
			}
		}
		if !more || len(events) == 0 {
			return nil
		}
		if len(r.events) > 0 {
			r.more = true
			return nil
		}
		if from = events[len(events)-1].at + 1; !searched {
			if from, err = r.search(ctx, from); err != nil {
				return err
			}
			searched = true
			continue
		}
		n, size = jobs.MaxReplayEvents, scanBytes
	}
}

// seen tells whether an event is at or before the position.
func (r *replay) seen(e *kept) bool { return !r.q.After.Before(e.attempt, e.seq) }

// take adds an event where it follows what is there already, after a mark where something is missing. It gives false where there is no
// room for it.
func (r *replay) take(e *kept) bool {
	if e.seq == 0 { // nobody's
		return true
	}
	late := !e.final && r.closed > 0 && e.attempt <= r.closed
	if e.closed {
		r.closed = max(r.closed, e.attempt)
	}
	if !e.final && !r.next.Before(e.attempt, e.seq) || late { // seen, or late
		r.before = true
		return true
	}
	if !e.readable() {
		return true
	}
	if lost := r.lost(e); lost != nil {
		mark := jobs.Event{Type: jobs.EventLost, Attempt: e.attempt, Seq: e.seq - 1, Time: timeOf(e.data), Lost: lost}
		if !r.add(r.encodeEvent(mark)) {
			return false
		}
		r.next.Attempt, r.next.Seq = mark.Attempt, mark.Seq
	}
	if !r.add(e.data) {
		return false
	}
	r.next, r.before, r.ended = jobs.Position{Attempt: e.attempt, Seq: e.seq, At: e.at}, true, e.final
	return true
}

// add gives false where there is no room; there always is for one.
func (r *replay) add(event []byte) bool {
	n := len(r.events)
	if n > 0 && (n >= r.limit || r.size+int64(len(event))+1 > r.room) {
		return false
	}
	r.events = append(r.events, event)
	r.size += int64(len(event)) + 1
	return true
}

// lost tells what is missing before an event. Every attempt has one event at least, and ends with it; so where a whole attempt is
// missing, it is lost, while that an attempt's last ones are missing can only be known by whether what came before them is kept.
func (r *replay) lost(e *kept) *jobs.Lost {
	p := r.next
	switch {
	case r.q.Batch != "": // each event has the whole, and those between were not sent
		return nil
	case p.Next(e.attempt, e.seq), e.attempt == p.Attempt && e.seq <= p.Seq, e.attempt < p.Attempt: // the latter are of finals
		return nil
	case e.attempt == p.Attempt:
		return &jobs.Lost{Attempt: p.Attempt, Seq: p.Seq + 1, Events: e.seq - p.Seq - 1}
	case !r.before && (p.Attempt > 0 || p.Seq > 0):
		return &jobs.Lost{Attempt: p.Attempt, Seq: p.Seq + 1}
	case e.attempt > p.Attempt+1:
		return &jobs.Lost{Attempt: p.Attempt + 1, Seq: 1}
	case e.seq > 1:
		return &jobs.Lost{Attempt: e.attempt, Seq: 1, Events: e.seq - 1}
	}
	return nil
}

// search gives a place from which to read on: all between low, before which all has been seen, and there has been, too. It is there that
// attempts count: the events of one are in the order of their seq, and the place is found by halving. Where attempts follow each other,
// late ones of the first may stand between the second's, and only reading them all finds it.
func (r *replay) search(ctx context.Context, low int64) (int64, error) {
	if r.q.Job != "" {
		j, err := r.brain.Get(ctx, r.tenant, r.q.Job)
		switch e := jobs.ErrorOf(err); {
		case e != nil && e.Code == jobs.CodeNotFound: // its events outlive its record
			return low, nil
		case e != nil:
			return 0, err
		case j.Attempt > 1:
			return low, nil
		}
	}
	last, err := r.bus.lastKept(ctx, r.subject)
	if err != nil || last == nil || last.seq == 0 {
		return low, err
	}
	if r.seen(last) {
		return last.at, nil
	}
	for high := last.at; high-low > nearEnough; {
		middle := low + (high-low)/2
		events, _, err := r.reads.keptFrom(ctx, r.subject, middle, 1, 1)
		switch {
		case err != nil:
			return 0, err
		case len(events) == 0 || events[0].at >= high || !r.seen(&events[0]):
			high = middle
		default:
			low = events[0].at
		}
	}
	return low, nil
}

// end is for what nothing follows: it gives the end of a job that is over, once more where it has been seen, and from the job's record
// where the stream has none.
func (r *replay) end(ctx context.Context) error {
	j, err := r.brain.Get(ctx, r.tenant, r.q.Job)
	if err != nil {
		return err
	}
	if !j.State.Terminal() || time.Since(j.EndedAt) < sureToBeOut {
		return nil
	}
	for from, more := int64(0), true; more; {
		var events []kept
		if events, more, err = r.reads.keptFrom(ctx, r.subject, from, jobs.MaxReplayEvents, scanBytes); err != nil {
			return err
		}
		for i := range events {
			if e := &events[i]; e.final && e.readable() {
				r.take(e)
				return nil
			}
			from = events[i].at + 1
		}
		more = more && len(events) > 0
	}
	r.made(&j)
	return nil
}

// made gives the final event that the stream does not have.
func (r *replay) made(j *jobs.Job) {
	e := jobs.Event{Attempt: max(j.Attempt, r.next.Attempt), Time: j.EndedAt}
	if e.Attempt == r.next.Attempt {
		e.Seq = r.next.Seq + 1
	}
	if !r.before && j.Attempt > 0 { // nothing at all is left of it
		mark := e
		mark.Type, mark.Lost = jobs.EventLost, &jobs.Lost{Attempt: max(r.next.Attempt, 1), Seq: r.next.Seq + 1}
		r.add(r.encodeEvent(mark))
		e.Seq++
	}
	e.Seq = max(e.Seq, 1)
	e.Type, e.Final, e.Result = jobs.EventResult, true, j.Result
	r.limit, r.room = len(r.events)+1, r.bus.nc.MaxPayload()
	r.add(r.encodeEvent(e))
	r.next, r.ended = jobs.Position{Attempt: e.Attempt, Seq: e.Seq}, true
}

// encodeEvent encodes an event of the replay's own.
func (r *replay) encodeEvent(e jobs.Event) []byte {
	e.Job, e.Tenant = r.q.Job, r.tenant
	data, err := encode(&e)
	if err != nil {
		panic(err) // plain data
	}
	return data
}

// encode makes a jobs.ReplayReply of what is encoded already.
func (r *replay) encode(warnings []string) []byte {
	rest, err := encode(struct {
		Next     jobs.Position `json:"next"`
		More     bool          `json:"more,omitempty"`
		Ended    bool          `json:"ended,omitempty"`
		Warnings []string      `json:"warnings,omitempty"`
	}{r.next, r.more, r.ended, warnings})
	if err != nil {
		panic(err) // plain data
	}
	b := bytes.NewBuffer(make([]byte, 0, r.size+int64(len(rest))+16))
	b.WriteString(`{"events":[`)
	b.Write(bytes.Join(r.events, []byte{','}))
	b.WriteString(`],`)
	b.Write(rest[1:])
	return b.Bytes()
}

func timeOf(event []byte) time.Time {
	var e struct{ Time time.Time }
	_ = json.Unmarshal(event, &e) // else it has none
	return e.Time
}
