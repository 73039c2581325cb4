package match

import "github.com/paddockvm/paddock/jobs"

// reservation is a worker that gets nothing else until an item of a group fits, but what goes first.
type reservation struct {
	group  *group
	worker string
	// given and turn are where the group's account stood in the round when it got this: whose turn was before goes first. rest is how many
	// processors of the worker may go to those yet: all of them once, or others who come and come would keep the group from ever going.
	given int64
	turn  uint64
	rest  int
}

// lets tells whether a group goes before the one that the worker is reserved for.
func (v *reservation) lets(g *group, size jobs.Resources) bool {
	a := g.account
	return v != nil && size.VCPUs <= v.rest && (a.given < v.given || a.given == v.given && a.turn < v.turn)
}

// serveReserved gives a group that has a reservation its item where that fits now, on whatever worker; else the reserved one is kept for
// it. A reservation that serves nobody, because the worker is gone or the group could not go if it fitted, is given up.
func (r *round) serveReserved(p *pool) {
	r.kept = ""
	v := p.reserved
	if v == nil {
		return
	}
	w := r.workers()[v.worker]
	if w == nil || poolName(w.Pool) != p.name || !w.could(&v.group.kind.kindOf) || !v.group.mayGo() {
		p.reserved = nil
		return
	}
	n, size, what := r.pick(v.group)
	switch what {
	case goes: // out of its turn: the round stays where it is
		p.reserved = nil
		r.give(v.group, n, size)
	case nobody, short:
		r.kept = v.worker
	default:
		p.reserved = nil
	}
}

// reserve keeps a worker for a group whose turn it is and for which there is too little room: of those that ask the one that lacks least.
func (r *round) reserve(g *group) {
	k, p := g.kind, g.kind.pool
	if p.reserved != nil || r.cfg.ReserveAfter < 0 || r.now < g.first().from+int64(r.cfg.ReserveAfter) {
		return
	}
	room := g.account.tenant.room()
	var host *Worker
	least := 0
	for _, n := range r.open {
		w := &r.asking[n]
		size := w.sizeOn(k.image, k.resources)
		if !w.offers(&k.kindOf) || !within(size, w.Capacity) || !within(size, room) || k.avoided(w.Name) && r.othersCould(k) {
			continue
		}
		if left := w.left(size); host == nil || left > least {
			host, least = w, left
		}
	}
	if host != nil {
		p.reserved = &reservation{group: g, worker: host.Name, given: g.account.given, turn: g.account.turn, rest: host.Capacity.VCPUs}
		r.kept = host.Name
	}
}
