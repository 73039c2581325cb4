package match

import (
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Queue holds items in their order. It is not safe for concurrent use.
//
// Items that are the same to every worker stand in one line. Where nobody can take them a match looks at the first only, however many
// there are: they hold up neither the others nor the matcher.
type Queue struct {
	at    map[string]*place
	lines map[shape]*line
	heads sorted[*line]  // the lines, by their first item
	later sorted[*place] // items that time will change, the soonest first
	// first and last are the least and the largest seq that were given.
	first, last int
}

// shape is what tells whether a worker can take an item, and the item's priority.
type shape struct {
	band      int
	image     string
	resources jobs.Resources
	network   string
	avoid     string
}

// line holds the items of one shape; there are no empty ones.
type line struct {
	shape
	items  sorted[*place]
	inHead int
}

// place is where an item stands: in a line unless it is too early, and in Queue.later while there is a time that changes that.
type place struct {
	Item
	seq             int // its turn among those of its priority
	line            *line
	inLine, inLater int
	until           time.Time
}

// New gives an empty queue.
func New() *Queue {
	return &Queue{
		at: map[string]*place{}, lines: map[shape]*line{},
		heads: sorted[*line]{less: sooner, place: func(l *line) *int { return &l.inHead }},
		later: sorted[*place]{less: func(a, b *place) bool { return a.until.Before(b.until) }, place: func(p *place) *int { return &p.inLater }},
	}
}

func sooner(a, b *line) bool {
	if a.band != b.band {
		return a.band < b.band
	}
	return a.items.list[0].seq < b.items.list[0].seq
}

// Len is how many items wait.
func (q *Queue) Len() int { return len(q.at) }

// Push adds an item behind those of its priority.
func (q *Queue) Push(i Item) {
	q.last++
	q.add(i, q.last)
}

// PushFront adds an item before those of its priority: one that has waited its time already.
func (q *Queue) PushFront(i Item) {
	q.first--
	q.add(i, q.first)
}

// add places an item as if time had not begun: the next match advances it.
func (q *Queue) add(i Item, seq int) {
	p := &place{Item: i, seq: seq, inLine: -1, inLater: -1}
	q.at[i.ID] = p
	q.put(p, time.Time{})
}

// Remove takes an item out and tells whether it was in.
func (q *Queue) Remove(id string) bool {
	p := q.at[id]
	if p == nil {
		return false
	}
	q.leave(p)
	delete(q.at, id)
	return true
}

const priorities = 10

func band(i Item) int { return priorities - 1 - min(max(i.Priority, 0), priorities-1) }

// put places an item as it stands at a time.
func (q *Queue) put(p *place, now time.Time) {
	avoid := p.Avoid
	switch {
	case now.Before(p.NotBefore):
		p.until = p.NotBefore
		q.later.add(p)
		return
	case avoid != "" && now.Before(p.AvoidUntil):
		p.until = p.AvoidUntil
		q.later.add(p)
	default:
		avoid = ""
	}
	q.join(p, shape{band(p.Item), p.Image, p.Resources, p.Network, avoid})
}

// join puts an item into its line.
func (q *Queue) join(p *place, s shape) {
	l := q.lines[s]
	if l == nil {
		l = &line{shape: s, inHead: -1, items: sorted[*place]{less: func(a, b *place) bool { return a.seq < b.seq }, place: func(p *place) *int { return &p.inLine }}}
		q.lines[s] = l
	}
	p.line = l
	l.items.add(p)
	if l.inHead < 0 {
		q.heads.add(l)
		return
	}
	q.heads.moved(l)
}

// leave takes an item out of where it stands.
func (q *Queue) leave(p *place) {
	q.later.remove(p)
	l := p.line
	if l == nil {
		return
	}
	p.line = nil
	l.items.remove(p)
	if l.items.Len() > 0 {
		q.heads.moved(l)
		return
	}
	q.heads.remove(l)
	delete(q.lines, l.shape)
}

// advance places anew what time has changed.
func (q *Queue) advance(now time.Time) {
	for q.later.Len() > 0 && !now.Before(q.later.list[0].until) {
		p := q.later.list[0]
		q.leave(p)
		q.put(p, now)
	}
}
