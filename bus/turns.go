package bus

import (
	"context"
	"slices"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

// turns has tenants' requests answered in turns, a bounded number at once. Neither of the places nor of the room for requests that wait does
// a tenant get more than is left for others then: so whoever comes finds some of both, as long as there are fewer tenants than places.
type turns struct {
	answer func(*nats.Msg)

	mu      sync.Mutex
	places  int // that are free
	room    int // for what waits, in bytes, that is free
	tenants map[string]*turn
	waiting []*turn // those for whom something waits, whose turn it is first
	all     sync.WaitGroup
}

// turn is a tenant's part.
type turn struct {
	tenant  string
	busy    int // places
	bytes   int // that wait
	waiting []*nats.Msg
}

// messageBytes is what a message takes beside what is in it, about.
const messageBytes = 1 << 10

func newTurns(places, room int, answer func(*nats.Msg)) *turns {
	return &turns{answer: answer, places: places, room: room, tenants: map[string]*turn{}}
}

// add has a request answered when it is its tenant's turn; false: too much waits.
func (t *turns) add(tenant string, m *nats.Msg) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.tenants[tenant]
	if o == nil {
		o = &turn{tenant: tenant}
	}
	n := m.Size() + messageBytes
	if o.bytes+n > t.room-n {
		return false
	}
	t.tenants[tenant] = o
	if len(o.waiting) == 0 {
		t.waiting = append(t.waiting, o)
	}
	o.waiting = append(o.waiting, m)
	o.bytes, t.room = o.bytes+n, t.room-n
	t.start()
	return true
}

// start starts what may be answered now; t.mu is held.
func (t *turns) start() {
	for t.places > 0 {
		i := slices.IndexFunc(t.waiting, func(o *turn) bool { return o.busy == 0 || t.places > o.busy+1 })
		if i < 0 {
			return
		}
		o := t.waiting[i]
		m := o.waiting[0]
		o.waiting[0] = nil // what is under way is not kept twice
		o.waiting = o.waiting[1:]
		t.waiting = slices.Delete(t.waiting, i, i+1)
		if len(o.waiting) > 0 {
			t.waiting = append(t.waiting, o)
		}
		n := m.Size() + messageBytes
		o.bytes, t.room = o.bytes-n, t.room+n
		o.busy, t.places = o.busy+1, t.places-1
		t.all.Go(func() {
			t.answer(m)
			t.mu.Lock()
			defer t.mu.Unlock()
			o.busy, t.places = o.busy-1, t.places+1
			t.start()
			if o.busy == 0 && len(o.waiting) == 0 {
				delete(t.tenants, o.tenant)
			}
		})
	}
}

// inTurns is answer for requests of tenants, of which none is to wait for another's many: so many are answered at once, half as many of one tenant's
// where others ask for nothing.
func (s *serving) inTurns(places int) func(context.Context, *nats.Subscription, handler) error {
	return func(ctx context.Context, sub *nats.Subscription, answer handler) error {
		defer sub.Unsubscribe() //nolint:errcheck // the connection's end does it too
		t := newTurns(places, maxPendingBytes, func(m *nats.Msg) { s.bus.reply(m, answer(ctx, m)) })
		defer t.all.Wait()
		return s.each(ctx, sub, func(m *nats.Msg) {
			if !t.add(token(m.Subject, 3), m) {
				s.bus.reply(m, failure{waitTooMany()})
			}
		})
	}
}

func waitTooMany() *jobs.Error {
	return &jobs.Error{Code: jobs.CodeUnavailable, Message: "too many of the tenant's requests wait", RetryAfterMS: 1000}
}
