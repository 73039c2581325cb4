package webhook

import (
	"container/heap"
	"net/url"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
)

// Bounds of requests at once. An endpoint begins with one, and gets more while it answers well; those that fail or are slow share a part
// of all, so that they can never take the whole.
const (
	inAll       = 256
	inSlow      = inAll / 2
	perTenant   = 64
	perHost     = 32
	perEndpoint = 8
)

// bounds are those bounds; tests have others.
type bounds struct{ all, slow, tenant, host, endpoint int }

// slowAfter is from when on an answer counts as slow.
const slowAfter = 3 * time.Second

// target is what deliveries wait for together: an endpoint, or the server of a tenant's callbacks.
type target struct {
	key, tenant, host string
	// next is when the ledger's earliest delivery is due that is neither here nor under way; zero: there is none.
	next time.Time
	// here are deliveries that are due and have been read; flying are under way.
	here   []ledger.Delivery
	flying map[string]bool
	// reading says that the ledger is being read, landed what has ended meanwhile: of those the ledger's answer may be older.
	reading bool
	landed  map[string]bool

	circuit
	// width is how many may be under way at once, slow whether the last one was.
	width int
	slow  bool

	at     time.Time // when it is its turn
	index  int       // in the heap; -1: not there
	parked string    // the bound that it waits for
}

// queue decides which delivery is made next. It is plain data: no clock, no locks, no I/O. Each target that has something due gets one
// delivery at a time, in turn; what waits for a bound is passed over until that has room.
type queue struct {
	bounds  bounds
	targets map[string]*target
	turns   turns
	reading int                  // how many are being read
	used    map[string]int       // of each bound
	parked  map[string][]*target // by the bound that they wait for
}

func newQueue(b bounds) *queue {
	return &queue{bounds: b, targets: map[string]*target{}, used: map[string]int{}, parked: map[string][]*target{}}
}

// turns are targets by when it is their turn.
type turns []*target

func (h turns) Len() int           { return len(h) }
func (h turns) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h turns) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *turns) Push(x any) { t := x.(*target); t.index = len(*h); *h = append(*h, t) }
func (h *turns) Pop() any {
	t := (*h)[len(*h)-1]
	t.index = -1
	*h = (*h)[:len(*h)-1]
	return t
}

// add says that a target has a delivery that is due at a time.
func (q *queue) add(key, tenant string, at, now time.Time) {
	t := q.targets[key]
	if t == nil {
		t = &target{key: key, tenant: tenant, flying: map[string]bool{}, landed: map[string]bool{}, width: 1, index: -1}
		q.targets[key] = t
	}
	t.sooner(at)
	q.place(t, now)
}

// sooner notes a delivery in the ledger.
func (t *target) sooner(at time.Time) {
	if t.next.IsZero() || at.Before(t.next) {
		t.next = at
	}
}

// place puts a target where it belongs: its turn comes when something is due and its circuit lets it. One that is not to be waited for is
// forgotten.
func (q *queue) place(t *target, now time.Time) {
	if t.parked != "" {
		return // it is placed when that bound has room
	}
	if t.index >= 0 {
		heap.Remove(&q.turns, t.index)
	}
	width := t.width
	if t.open() {
		width = 1 // the probe
	}
	switch {
	case len(t.flying) >= width || t.reading:
		return // when it ends
	case len(t.here) > 0:
		t.at = now
	case !t.next.IsZero():
		t.at = t.next
		if now.After(t.at) {
			t.at = now // its turn is after those of who waits already
		}
	case len(t.flying) > 0:
		return
	case !t.until.After(now):
		delete(q.targets, t.key)
		return
	default:
		t.at = t.until // until then its failures count
	}
	if t.until.After(t.at) {
		t.at = t.until
	}
	heap.Push(&q.turns, t)
}

// Bounds by name.
const boundAll, boundSlow = "all", "slow"

// boundsOf are the bounds that a target's deliveries count in, with their sizes.
func (q *queue) boundsOf(t *target) (names [4]string, most [4]int) {
	names, most = [4]string{boundAll, "", "tenant " + t.tenant, ""}, [4]int{q.bounds.all, 0, q.bounds.tenant, 0}
	if t.slow || t.failures > 0 {
		names[1], most[1] = boundSlow, q.bounds.slow
	}
	if t.host != "" {
		names[3], most[3] = "host "+t.host, q.bounds.host
	}
	return names, most
}

// turn is what is to be done next: read a target's deliveries, or make one.
type turn struct {
	target *target
	// delivery is to be made; nil: the ledger is to be read.
	delivery *ledger.Delivery
	held     [4]string // the bounds that it counts in
}

// take gives what is to be done now. false: nothing, until something changes or wake is there; zero: nothing is waited for.
func (q *queue) take(now time.Time) (next turn, wake time.Time, ok bool) {
	for len(q.turns) > 0 && q.used[boundAll] < q.bounds.all {
		t := q.turns[0]
		if t.at.After(now) {
			return turn{}, t.at, false
		}
		if len(t.here) == 0 && q.reading == readers {
			break
		}
		heap.Pop(&q.turns)
		if len(t.here) == 0 {
			t.reading, t.next = true, time.Time{}
			q.reading++
			return turn{target: t}, time.Time{}, true
		}
		names, most := q.boundsOf(t)
		if full := q.full(names, most); full != "" {
			t.parked = full
			q.parked[full] = append(q.parked[full], t)
			continue
		}
		for _, n := range names {
			if n != "" {
				q.used[n]++
			}
		}
		d := t.here[0]
		t.here = t.here[1:]
		t.flying[d.ID] = true
		q.place(t, now)
		return turn{target: t, delivery: &d, held: names}, time.Time{}, true
	}
	return turn{}, time.Time{}, false
}

func (q *queue) full(names [4]string, most [4]int) string {
	for i, n := range names {
		if n != "" && q.used[n] >= most[i] {
			return n
		}
	}
	return ""
}

func hostOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Host
}

// readMost is how many deliveries of a target are read at once.
const readMost = 16

// readers is how many targets are read at once.
const readers = 16

// ask is how many of a target's earliest deliveries to read: those that are under way are among them.
func (t *target) ask() int { return readMost + len(t.flying) }

// read takes what the ledger has of a target: its asked earliest pending deliveries, or all where they are fewer.
func (q *queue) read(t *target, list []ledger.Delivery, asked int, now time.Time) {
	t.reading = false
	q.reading--
	if t.host == "" && len(list) > 0 {
		t.host = hostOf(list[0].URL)
	}
	due := func(d *ledger.Delivery) time.Time {
		if d.Step == 0 {
			return now // as it was when it was made, by whatever clock
		}
		return d.NextAt
	}
	if len(list) == asked {
		t.sooner(due(&list[asked-1])) // there may be more
	}
	for _, d := range list {
		switch at := due(&d); {
		case t.flying[d.ID] || t.landed[d.ID]:
		case at.After(now):
			t.sooner(at)
		default:
			t.here = append(t.here, d)
		}
	}
	clear(t.landed)
	q.place(t, now)
}

// unread says that the ledger could not be read.
func (q *queue) unread(t *target, again, now time.Time) {
	t.reading = false
	q.reading--
	clear(t.landed)
	t.sooner(again)
	q.place(t, now)
}

// done ends a delivery that take has given. next is when it is to be tried again; zero: never.
func (q *queue) done(d turn, next, now time.Time) {
	t := d.target
	delete(t.flying, d.delivery.ID)
	if t.reading {
		t.landed[d.delivery.ID] = true
	}
	if !next.IsZero() {
		t.sooner(next)
	}
	for _, n := range d.held {
		if n == "" {
			continue
		}
		if q.used[n]--; q.used[n] == 0 {
			delete(q.used, n)
		}
	}
	q.place(t, now)
	for _, n := range d.held {
		q.unpark(n, now)
	}
}

// unpark lets those try again that wait for a bound, who waits longest first.
func (q *queue) unpark(bound string, now time.Time) {
	waiting := q.parked[bound]
	if bound == "" || len(waiting) == 0 {
		return
	}
	delete(q.parked, bound)
	for _, t := range waiting {
		t.parked = ""
		since := t.at
		q.place(t, now)
		if t.index >= 0 && since.Before(t.at) && !t.until.After(now) {
			t.at = since // it waits since then
			heap.Fix(&q.turns, t.index)
		}
	}
}

// drop forgets what has been read of a target: it is not to be delivered any more, or not as it was.
func (q *queue) drop(key string, now time.Time) {
	if t := q.targets[key]; t != nil {
		t.here, t.circuit = nil, circuit{}
		t.sooner(now)
		q.place(t, now)
	}
}

// openCircuits counts the targets that no more than a probe is made to.
func (q *queue) openCircuits() (n int) {
	for _, t := range q.targets {
		if t.open() {
			n++
		}
	}
	return n
}
