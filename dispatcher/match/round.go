package match

import (
	"github.com/paddockvm/paddock/jobs"
)

// round is one match.
type round struct {
	*Queue
	now     int64
	asking  []Worker
	fleetOf func() []Worker
	fleet   map[string]*Worker // nil until it is needed
	open    []int              // those of the pool that have slots
	kept    string             // the worker of the pool that is reserved
	// stands and groups were passed over: nobody can take them, and workers have only less and less while they are matched.
	stands []*stand
	groups []*group
	tired  []*group // likewise, those of accounts' own stands
	out    []Assignment
	next   int64
}

// outcome is what becomes of a group whose turn it is.
type outcome int

const (
	goes   outcome = iota
	nobody         // no worker that asks can take it
	short          // likewise, and one could that has too little room left
	capped         // its tenant's caps leave too little room
	waits          // for a worker on which it starts sooner
)

// comeBack asks for another match at a time.
func (r *round) comeBack(at int64) {
	if r.next == 0 || at < r.next {
		r.next = at
	}
}

// serve matches the workers of one pool.
func (r *round) serve(p *pool) {
	r.open = r.open[:0]
	for n := range r.asking {
		if poolName(r.asking[n].Pool) == p.name && r.asking[n].Slots > 0 {
			r.open = append(r.open, n)
		}
	}
	p.partly.again = p.partly.again || len(p.partly.accounts) > 0 && r.grown(p)
	r.serveReserved(p)
	for len(r.open) > 0 && p.stands.Len() > 0 {
		g := p.stands.list[0].groups.list[0]
		w, size, what := r.pick(g)
		if what == goes {
			p.clock = max(p.clock, g.account.given)
			r.give(g, w, size)
			continue
		}
		r.pass(g, what)
	}
	r.back(p)
}

// choice is a worker for a group's item.
type choice struct {
	n int // in those that ask
	*Worker
	size jobs.Resources
	how  start
}

// pick finds the worker for a group whose turn it is.
func (r *round) pick(g *group) (worker int, size jobs.Resources, what outcome) {
	k, room := g.kind, g.account.tenant.room()
	if k.blocked == r.round {
		return -1, size, nobody
	}
	best, what := choice{n: -1}, nobody
	for _, n := range r.open {
		w := &r.asking[n]
		s := w.sizeOn(k.image, k.resources)
		switch {
		case w.Name == r.kept && !k.pool.reserved.lets(g, s) || !w.offers(&k.kindOf) || k.avoided(w.Name) && r.othersCould(k):
		case !within(s, w.Free):
			if what == nobody && within(s, w.Capacity) {
				what = short
			}
		case !within(s, room):
			if best.n < 0 {
				what = capped
			}
		default:
			if c := (choice{n, w, s, w.starts(&k.kindOf)}); best.n < 0 || c.better(&best, g.account.tenant) {
				best, what = c, goes
			}
		}
	}
	if what == goes && r.waitsFor(g, best.how) {
		what = waits
	}
	return best.n, best.size, what
}

// better tells whether a worker is better for a tenant's item than another.
func (a *choice) better(b *choice, t *tenant) bool {
	if a.how != b.how {
		return a.how < b.how
	}
	if leftA, leftB := a.left(a.size), b.left(b.size); leftA != leftB {
		return leftA < leftB
	}
	if t.on[a.Name] != t.on[b.Name] {
		return t.on[a.Name] < t.on[b.Name]
	}
	return a.Slots > b.Slots
}

const (
	// unit is what one processor costs a tenant of weight 1.
	unit      = 1 << 20
	maxWeight = 1_000_000
)

// give gives a group's next item to a worker and has its tenant pay for it.
func (r *round) give(g *group, worker int, size jobs.Resources) {
	p, a, w := g.first(), g.account, &r.asking[worker]
	h := &holding{tenant: a.tenant, worker: w.Name, key: p.line.key, image: g.kind.image, size: size}
	w.take(g.kind.image, size)
	if v := a.pool.reserved; v != nil && v.worker == w.Name {
		v.rest -= size.VCPUs
	}
	if w.Slots == 0 {
		r.close(worker)
	}
	r.out = append(r.out, Assignment{p.id, worker})
	r.lift(a)
	r.turn++
	a.given, a.turn = max(a.given, a.pool.clock)+int64(size.VCPUs)*unit/int64(a.tenant.Weight), r.turn
	r.hold(p.id, h)
	r.Remove(p.id)
	r.unlift(a)
	r.review(a.tenant)
	r.dropIdle(a.pool)
}

// close strikes a worker that has no slot left.
func (r *round) close(worker int) {
	for i, n := range r.open {
		if n == worker {
			r.open = append(r.open[:i], r.open[i+1:]...)
			return
		}
	}
}

// lift takes an account out of the round, so that its place in it may change: a heap bears one change at a time.
func (q *Queue) lift(a *account) {
	if a.groups[0].stand == &a.own {
		a.pool.stands.remove(&a.own)
		return
	}
	for _, g := range a.groups {
		g.stand.groups.remove(g)
		q.settleStand(a.pool, g.stand)
	}
}

// unlift puts it back.
func (q *Queue) unlift(a *account) {
	if len(a.groups) > 0 && a.groups[0].stand == &a.own {
		q.settleStand(a.pool, &a.own)
		return
	}
	for _, g := range a.groups {
		q.settleGroup(g)
	}
}

// pass takes a group that cannot go out of this match, and all of its kind where no worker can take those.
func (r *round) pass(g *group, what outcome) {
	t := g.account.tenant
	switch {
	case what == capped && t.running > 0:
		g.parked = true
		t.parked = append(t.parked, g)
		r.settleGroup(g)
		return
	case what == short:
		r.reserve(g)
		fallthrough
	case what == nobody:
		g.kind.blocked = r.round
		if g.stand.owner == nil {
			g.stand.passed = r.round
			r.stands = append(r.stands, g.stand)
			r.settleStand(g.kind.pool, g.stand)
			return
		}
	}
	g.passed = r.round
	r.settleGroup(g)
	if g.stand.owner != nil && what != waits {
		r.tire(g)
		return
	}
	r.groups = append(r.groups, g)
}

// back puts what was passed over back into the round.
func (r *round) back(p *pool) {
	r.rest(p)
	for _, s := range r.stands {
		s.passed = 0
		r.settleStand(p, s)
	}
	for _, g := range r.groups {
		g.passed = 0
		r.settleGroup(g)
	}
	r.stands, r.groups = r.stands[:0], r.groups[:0]
}
