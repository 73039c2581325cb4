package match

import (
	"slices"
	"strings"
	"time"
)

// Queue holds the items that wait, and knows those that run. An item is one of both at a time: Push, Hold and Match move it. It is not
// safe for concurrent use.
type Queue struct {
	cfg     Config
	at      map[string]*place
	held    map[string]*holding
	unsized []*holding // those of which the size is not known yet
	tenants map[string]*tenant
	pools   map[string]*pool
	later   sorted[*place] // items that time will change, the soonest first
	// seq counts items, turn turns of tenants, round matches, from 1: 0 is none of them.
	seq, turn, round uint64
	mostLooked       int
}

// place is where an item stands: in a line unless it is too early.
type place struct {
	id    string
	line  *line
	order int64  // when it came, less what its priority is worth
	seq   uint64 // its number: of equals the first goes first
	from  int64  // when it might first have gone
	late  *late  // what time will change; nil for nothing
	in    int32  // its line
}

// late is an item that time will change, and when.
type late struct {
	Item
	until int64
	in    int32 // Queue.later
}

// New gives an empty queue.
func New(cfg Config) *Queue {
	if cfg.AgeStep == 0 {
		cfg.AgeStep = 30 * time.Second
	}
	if cfg.ReserveAfter == 0 {
		cfg.ReserveAfter = 30 * time.Second
	}
	return &Queue{
		cfg: cfg, round: 1, mostLooked: mostLooked, at: map[string]*place{}, held: map[string]*holding{}, tenants: map[string]*tenant{}, pools: map[string]*pool{},
		later: sorted[*place]{less: sooner, place: func(p *place) *int32 { return &p.late.in }},
	}
}

func sooner(a, b *place) bool {
	if a.late.until != b.late.until {
		return a.late.until < b.late.until
	}
	return a.seq < b.seq
}

// Len is how many items wait.
func (q *Queue) Len() int { return len(q.at) }

const highest = 9 // priority

// Push puts an item to those that wait. One that was held is not any more: its attempt has ended.
func (q *Queue) Push(i Item) {
	q.Remove(i.ID)
	q.Release(i.ID)
	q.seq++
	p := &place{
		id: i.ID, seq: q.seq, in: -1,
		order: stamp(i.Since) - int64(min(max(i.Priority, 0), highest))*int64(q.cfg.AgeStep),
		from:  max(stamp(i.Since), stamp(i.NotBefore)),
	}
	q.at[i.ID] = p
	q.put(p, i, 0) // as if time had not begun: the next match advances it
}

// Remove takes an item out of those that wait, and tells whether it was there. What is held stays so.
func (q *Queue) Remove(id string) bool {
	p := q.at[id]
	if p == nil {
		return false
	}
	q.leave(p)
	delete(q.at, id)
	return true
}

// put places an item as it stands at a time.
func (q *Queue) put(p *place, i Item, now int64) {
	avoid := ""
	switch {
	case now < stamp(i.NotBefore):
		p.late = &late{i, stamp(i.NotBefore), -1}
		q.later.add(p)
		return
	case len(i.Avoid) > 0 && now < stamp(i.AvoidUntil):
		p.late = &late{i, stamp(i.AvoidUntil), -1}
		q.later.add(p)
		names := slices.Sorted(slices.Values(i.Avoid))
		avoid = strings.Join(slices.Compact(names), ",")
	}
	q.join(p, &i, avoid)
}

// join puts an item into its line.
func (q *Queue) join(p *place, i *Item, avoid string) {
	t := q.tenant(i.Tenant)
	pl := q.pool(poolName(i.Pool))
	k := pl.kind(kindOf{i.Image, i.Network, i.Requires, i.Resources, i.Hurry, avoid})
	p.line = q.line(q.group(k, q.account(pl, t), p), i.Concurrency)
	p.line.items.add(p)
	q.settle(p.line)
}

// leave takes an item out of where it stands.
func (q *Queue) leave(p *place) {
	if p.late != nil {
		q.later.remove(p)
		p.late = nil
	}
	l := p.line
	if l == nil {
		return
	}
	p.line = nil
	l.items.remove(p)
	q.settle(l)
}

// advance places anew what time has changed.
func (q *Queue) advance(now int64) {
	for q.later.Len() > 0 && q.later.list[0].late.until <= now {
		p := q.later.list[0]
		i := p.late.Item
		q.leave(p)
		q.put(p, i, now)
	}
}
