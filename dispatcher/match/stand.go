package match

import (
	"github.com/paddockvm/paddock/jobs"
)

// pool is the workers of one name, and the round of the tenants that have something to run there.
type pool struct {
	name     string
	kinds    map[kindOf]*kind
	accounts map[*tenant]*account
	stands   sorted[*stand]
	// clock is where the round stands: the account of who had the last turn, before it.
	clock    int64
	partly   partly
	idle     sorted[*account] // tenants that have nothing here, and have been given more than where the round stands
	reserved *reservation
	round    uint64 // the last match that served it
}

// account is what a tenant was given in a pool, over its weight.
type account struct {
	tenant *tenant
	pool   *pool
	given  int64
	turn   uint64 // its last turn
	groups []*group
	own    stand
	inIdle int32
	looked looked
}

// kind is the items of a pool that are the same to every worker.
type kind struct {
	kindOf
	pool    *pool
	of      map[*account]*group
	stand   stand
	blocked uint64 // the match in which no worker that asked could take it
	// of this match: others could take it; some that are busy have a ready machine for it, or the template
	others, warm, template answer
}

// group is a tenant's items of one kind.
type group struct {
	kind    *kind
	account *account
	stand   *stand
	n       int   // in account.groups
	from    int64 // when its first item might first have gone: since then it has not been empty
	lines   map[jobs.Concurrency]*line
	open    sorted[*line] // those of which the key is not at its limit
	parked  bool          // its tenant's caps leave too little room for it, until something of the tenant ends
	passed  uint64        // the match that has passed it over
	aside   bool          // looked.aside has it
	in      int32         // its stand
}

// line is the items of a group with the same concurrency key and limit.
type line struct {
	of    jobs.Concurrency
	group *group
	key   *key // nil: none
	items sorted[*place]
	in    int32 // group.open
}

// stand is where groups wait for their turn, those first whose turn is next: a kind's, so that a match looks at one of a kind that nobody
// can take, and not at every tenant; or the account's own, where that has many, so that a turn moves one stand and not every group.
type stand struct {
	groups sorted[*group]
	owner  *account // nil: a kind's
	passed uint64   // the match that has passed it over
	in     int32    // pool.stands
}

// manyKinds is from how many groups on an account has a stand of its own.
const manyKinds = 8

// before tells whether a group goes before another.
func (g *group) before(o *group) bool {
	a, b := g.account, o.account
	switch {
	case a.given != b.given:
		return a.given < b.given
	case a.turn != b.turn:
		return a.turn < b.turn
	}
	return g.first().before(o.first())
}

func (p *place) before(o *place) bool {
	if p.order != o.order {
		return p.order < o.order
	}
	return p.seq < o.seq
}

// first is the group's next item; there is one in a group that stands.
func (g *group) first() *place { return g.open.list[0].items.list[0] }

func newStand(owner *account) stand {
	return stand{owner: owner, in: -1, groups: sorted[*group]{less: (*group).before, place: func(g *group) *int32 { return &g.in }}}
}

func (q *Queue) pool(name string) *pool {
	p := q.pools[name]
	if p == nil {
		p = &pool{
			name: name, kinds: map[kindOf]*kind{}, accounts: map[*tenant]*account{},
			stands: sorted[*stand]{less: func(a, b *stand) bool { return a.groups.list[0].before(b.groups.list[0]) }, place: func(s *stand) *int32 { return &s.in }},
			idle:   sorted[*account]{less: func(a, b *account) bool { return a.given < b.given }, place: func(a *account) *int32 { return &a.inIdle }},
		}
		q.pools[name] = p
	}
	return p
}

func (p *pool) kind(of kindOf) *kind {
	k := p.kinds[of]
	if k == nil {
		k = &kind{kindOf: of, pool: p, of: map[*account]*group{}, stand: newStand(nil)}
		p.kinds[of] = k
	}
	return k
}

// account gives a tenant's account in a pool. One that comes, or comes back, begins where the round stands. Who comes back before the round has
// come to where it was keeps its last turn: it is longer ago than that of one who came meanwhile and has had one.
func (q *Queue) account(p *pool, t *tenant) *account {
	a := p.accounts[t]
	if a == nil {
		a = &account{tenant: t, pool: p, inIdle: -1}
		a.own = newStand(a)
		p.accounts[t] = a
		t.accounts = append(t.accounts, a)
	}
	if len(a.groups) == 0 {
		p.idle.remove(a)
		if a.given <= p.clock {
			q.turn++
			a.given, a.turn = p.clock, q.turn
		}
	}
	return a
}

// group gives the group that an item is to join.
func (q *Queue) group(k *kind, a *account, first *place) *group {
	g := k.of[a]
	if g == nil {
		g = &group{
			kind: k, account: a, stand: &k.stand, n: len(a.groups), from: first.from, lines: map[jobs.Concurrency]*line{}, in: -1,
			open: sorted[*line]{less: func(a, b *line) bool { return a.items.list[0].before(b.items.list[0]) }, place: func(l *line) *int32 { return &l.in }},
		}
		k.of[a] = g
		a.groups = append(a.groups, g)
		switch {
		case len(a.groups) > manyKinds && a.groups[0].stand != &a.own:
			q.gather(a)
		case a.groups[0].stand == &a.own:
			g.stand = &a.own
		}
	}
	return g
}

// gather moves an account's groups into a stand of its own.
func (q *Queue) gather(a *account) {
	for _, g := range a.groups {
		g.stand.groups.remove(g)
		q.settleStand(a.pool, g.stand)
		g.stand = &a.own
		q.settleGroup(g)
	}
}

func (q *Queue) line(g *group, c jobs.Concurrency) *line {
	c.Limit = max(c.Limit, 1)
	l := g.lines[c]
	if l == nil {
		l = &line{of: c, group: g, in: -1, items: sorted[*place]{less: (*place).before, place: func(p *place) *int32 { return &p.in }}}
		if c.Key != "" {
			l.key = g.account.tenant.key(c.Key)
			l.key.lines = append(l.key.lines, l)
		}
		g.lines[c] = l
	}
	return l
}

// settle puts a line, and all that it stands in, where they belong after it has changed.
func (q *Queue) settle(l *line) {
	g := l.group
	g.open.set(l, l.items.Len() > 0 && (l.key == nil || l.key.held < l.of.Limit))
	if l.items.Len() == 0 {
		q.dropLine(l)
	}
	q.settleGroup(g)
	if len(g.lines) == 0 {
		q.dropGroup(g)
	}
}

func (q *Queue) settleGroup(g *group) {
	s := g.stand
	s.groups.set(g, g.ready() && g.passed != q.round && !g.aside && (s.owner != nil || !g.account.tenant.full))
	q.settleStand(g.kind.pool, s)
}

// ready tells whether the group has items that neither their key nor their size holds back.
func (g *group) ready() bool { return g.open.Len() > 0 && !g.parked }

// mayGo tells whether the tenant's caps and the keys' limits let an item of the group go.
func (g *group) mayGo() bool { return g.ready() && !g.account.tenant.full }

// settleStand puts a stand where it belongs. An account's own is out as a whole while its tenant is at a cap.
func (q *Queue) settleStand(p *pool, s *stand) {
	p.stands.set(s, s.groups.Len() > 0 && s.passed != q.round && (s.owner == nil || !s.owner.tenant.full))
}
