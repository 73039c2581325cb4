package match

import "slices"

// What has become empty goes: the queue keeps nothing of tenants, kinds and keys that have nothing in it, but for tenants that have been given more
// than where the round stands.

// mostIdle is how many tenants a pool remembers that have nothing in it. The round does not move while each of those who come has one item and
// does not come again: without a bound it would remember all of them.
const mostIdle = 10_000

func (q *Queue) dropLine(l *line) {
	g := l.group
	delete(g.lines, l.of)
	if l.key == nil {
		return
	}
	l.key.lines = slices.DeleteFunc(l.key.lines, func(o *line) bool { return o == l })
	g.account.tenant.dropKey(l.key)
}

func (q *Queue) dropGroup(g *group) {
	k, a := g.kind, g.account
	p, t := k.pool, a.tenant
	delete(k.of, a)
	if len(k.of) == 0 {
		delete(p.kinds, k.kindOf)
	}
	last := a.groups[len(a.groups)-1]
	a.groups[g.n], last.n = last, g.n
	a.groups = a.groups[:len(a.groups)-1]
	if g.parked {
		t.parked = slices.DeleteFunc(t.parked, func(o *group) bool { return o == g })
	}
	if p.reserved != nil && p.reserved.group == g {
		p.reserved = nil
	}
	if len(a.groups) == 0 {
		p.idle.add(a)
		q.dropIdle(p)
	}
}

// dropIdle forgets the accounts of tenants that have nothing in a pool once they have no more than where the round stands, and of too many those
// that have least.
func (q *Queue) dropIdle(p *pool) {
	for p.idle.Len() > 0 && (p.idle.list[0].given <= p.clock || p.idle.Len() > mostIdle) {
		a := p.idle.list[0]
		p.idle.remove(a)
		delete(p.accounts, a.tenant)
		a.tenant.accounts = slices.DeleteFunc(a.tenant.accounts, func(o *account) bool { return o == a })
		q.dropTenant(a.tenant)
	}
	if len(p.accounts) == 0 {
		delete(q.pools, p.name)
	}
}

func (q *Queue) dropTenant(t *tenant) {
	if len(t.accounts) == 0 && t.running == 0 {
		delete(q.tenants, t.name)
	}
}
