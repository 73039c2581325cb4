package match

import "time"

// answer is what a match has found out once.
type answer struct {
	round uint64
	yes   bool
}

func (r *round) once(a *answer, find func() bool) bool {
	if a.round != r.round {
		*a = answer{r.round, find()}
	}
	return a.yes
}

// workers gives the fleet, by name.
func (r *round) workers() map[string]*Worker {
	if r.fleet != nil {
		return r.fleet
	}
	all := r.asking
	if r.fleetOf != nil {
		all = r.fleetOf()
	}
	r.fleet = make(map[string]*Worker, len(all))
	for n := range all {
		r.fleet[all[n].Name] = &all[n]
	}
	return r.fleet
}

// othersCould tells whether a worker that items of the kind do not avoid could take them, busy or not.
func (r *round) othersCould(k *kind) bool {
	return r.once(&k.others, func() bool {
		for _, w := range r.workers() { // in any order: there is one or there is none
			if poolName(w.Pool) == k.pool.name && !k.avoided(w.Name) && w.could(&k.kindOf) {
				return true
			}
		}
		return false
	})
}

// waitsFor tells whether a group is held up: it came lately, and on a busy worker it would start sooner than on the best that asks.
func (r *round) waitsFor(g *group, here start) bool {
	k := g.kind
	if here == ready || k.hurry {
		return false
	}
	if here == built && r.heldUp(g, r.cfg.TemplateWait, &k.template, func(w *Worker) bool { return w.hasTemplate(&k.kindOf) }) {
		return true
	}
	return r.cfg.WarmWait != nil && r.heldUp(g, r.cfg.WarmWait(k.image), &k.warm, func(w *Worker) bool { return w.starts(&k.kindOf) == ready })
}

// heldUp tells whether a group is held up, as long as it may be, for a worker that is better.
func (r *round) heldUp(g *group, most time.Duration, found *answer, better func(*Worker) bool) bool {
	until := g.from + int64(most)
	if most <= 0 || r.now >= until || !r.once(found, func() bool { return r.elsewhere(g.kind, better) }) {
		return false
	}
	r.comeBack(until)
	return true
}

// elsewhere tells whether a worker that has no room for the kind now is better.
func (r *round) elsewhere(k *kind, better func(*Worker) bool) bool {
	waited := func(w *Worker) bool {
		return poolName(w.Pool) == k.pool.name && w.Name != r.kept && !k.avoided(w.Name) && w.could(&k.kindOf) && better(w)
	}
	asks := make(map[string]bool, len(r.asking))
	for n := range r.asking {
		w := &r.asking[n]
		asks[w.Name] = true
		if waited(w) {
			return true
		}
	}
	for name, w := range r.workers() { // in any order: there is one or there is none
		if !asks[name] && waited(w) {
			return true
		}
	}
	return false
}

// measure finds the sizes of what is held by Hold.
func (r *round) measure() {
	if len(r.unsized) == 0 {
		return
	}
	still := r.unsized[:0:0]
	for _, h := range r.unsized {
		w, t := r.workers()[h.worker], h.tenant
		if w == nil {
			still = append(still, h)
			continue
		}
		h.size = w.sizeOn(h.image, h.asked)
		t.unsized--
		t.size.VCPUs += h.size.VCPUs
		t.size.MemoryMiB += h.size.MemoryMiB
		r.unpark(t)
	}
	r.unsized = still
}
