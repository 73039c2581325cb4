package match_test

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/paddockvm/paddock/dispatcher/match"
	"github.com/paddockvm/paddock/jobs"
)

// model is the package's rules over plain lists, without a thought of what they cost.
type model struct {
	cfg      match.Config
	waiting  []*entry
	held     []*entry
	accounts map[[2]string]*account // by pool and tenant
	clocks   map[string]int
	groups   map[group]*state
	reserved map[string]reserved // by pool
	turns    int
	seq      int
	// of one match
	now            time.Time
	asking, fleet  []match.Worker
	passed         map[group]bool
	blocked        map[kind]bool
	warms, holders map[kind]bool // busy workers that are better: with a ready machine, with the template
	kept           string
	next           time.Time
}

type entry struct {
	match.Item
	seq    int
	at     group // where it stands; it stands nowhere while it is too early
	joined bool
	avoids bool
	worker string         // of one that is held
	size   jobs.Resources // likewise; zero while it is not known
}

type account struct{ given, turn int }

type kind struct {
	pool, image, network, requires, avoid string
	resources                             jobs.Resources
	hurry                                 bool
}

type group struct {
	kind
	tenant string
}

type state struct {
	from   time.Time
	parked bool
}

type reserved struct {
	group
	worker string
	was    account
	rest   int
}

func newModel(cfg match.Config) *model {
	return &model{cfg: cfg, accounts: map[[2]string]*account{}, clocks: map[string]int{}, groups: map[group]*state{}, reserved: map[string]reserved{}}
}

// group gives where an item stands, or would.
func (e *entry) group() group {
	g := group{kind{cmp.Or(e.Pool, jobs.DefaultPool), e.Image, e.Network, e.Requires, "", e.Resources, e.Hurry}, e.Tenant}
	if e.avoids {
		names := slices.Sorted(slices.Values(e.Avoid))
		g.avoid = strings.Join(slices.Compact(names), ",")
	}
	return g
}

func (e *entry) from() time.Time {
	if e.NotBefore.After(e.Since) {
		return e.NotBefore
	}
	return e.Since
}

func (e *entry) rank(step time.Duration) time.Time {
	return e.Since.Add(-time.Duration(min(max(e.Priority, 0), 9)) * step)
}

func (m *model) push(i match.Item) {
	m.seq++
	e := &entry{Item: i, seq: m.seq}
	m.waiting = append(m.waiting, e)
	if i.NotBefore.IsZero() {
		m.join(e, len(i.Avoid) > 0 && !i.AvoidUntil.IsZero())
	}
}

func (m *model) join(e *entry, avoids bool) {
	e.avoids = avoids
	g := e.group()
	e.at = g
	a := m.account(g)
	if !slices.ContainsFunc(m.waiting, func(o *entry) bool { return o.joined && o.at.pool == g.pool && o.Tenant == g.tenant }) {
		if clock := m.clocks[g.pool]; a.given <= clock {
			m.turns++
			a.given, a.turn = clock, m.turns
		}
	}
	if m.groups[g] == nil {
		m.groups[g] = &state{from: e.from()}
	}
	e.joined = true
}

func (m *model) account(g group) *account {
	at := [2]string{g.pool, g.tenant}
	if m.accounts[at] == nil {
		m.accounts[at] = &account{}
	}
	return m.accounts[at]
}

func (m *model) leave(e *entry) {
	e.joined = false
	g := e.at
	if !slices.ContainsFunc(m.waiting, func(o *entry) bool { return o.joined && o.at == g }) {
		delete(m.groups, g)
		if m.reserved[g.pool].group == g {
			delete(m.reserved, g.pool)
		}
	}
}

func (m *model) remove(id string) bool {
	n := slices.IndexFunc(m.waiting, func(e *entry) bool { return e.ID == id })
	if n < 0 {
		return false
	}
	m.leave(m.waiting[n])
	m.waiting = slices.Delete(m.waiting, n, n+1)
	return true
}

func (m *model) hold(i match.Item, worker string) {
	e := &entry{Item: i, worker: worker}
	if i.Resources.VCPUs > 0 && i.Resources.MemoryMiB > 0 {
		e.size = i.Resources
	}
	m.held = append(m.held, e)
}

func (m *model) release(id string) bool {
	n := slices.IndexFunc(m.held, func(e *entry) bool { return e.ID == id })
	if n < 0 {
		return false
	}
	m.unpark(m.held[n].Tenant)
	m.held = slices.Delete(m.held, n, n+1)
	return true
}

func (m *model) unpark(tenant string) {
	for g, s := range m.groups {
		s.parked = s.parked && g.tenant != tenant
	}
}

func (m *model) room(tenant string) jobs.Resources {
	share, running, known := m.cfg.Share(tenant), 0, true
	room := jobs.Resources{VCPUs: cmp.Or(share.MaxVCPUs, math.MaxInt), MemoryMiB: cmp.Or(share.MaxMemoryMiB, math.MaxInt)}
	for _, e := range m.held {
		if e.Tenant == tenant {
			running++
			known = known && e.size.VCPUs > 0
			room.VCPUs -= min(e.size.VCPUs*share.MaxVCPUs, e.size.VCPUs)
			room.MemoryMiB -= min(e.size.MemoryMiB*share.MaxMemoryMiB, e.size.MemoryMiB)
		}
	}
	if share.MaxRunning > 0 && running >= share.MaxRunning {
		return jobs.Resources{}
	}
	if !known && share.MaxVCPUs > 0 {
		room.VCPUs = 0
	}
	if !known && share.MaxMemoryMiB > 0 {
		room.MemoryMiB = 0
	}
	return room
}

func (m *model) match(now time.Time, asking, fleet []match.Worker) (out []match.Assignment, next time.Time) {
	m.now, m.asking, m.fleet, m.next = now, asking, fleet, time.Time{}
	m.passed, m.blocked, m.warms, m.holders = map[group]bool{}, map[kind]bool{}, map[kind]bool{}, map[kind]bool{}
	m.advance()
	for _, e := range m.held {
		for _, w := range fleet {
			if e.size.VCPUs == 0 && w.Name == e.worker {
				e.size = size(e.Resources, e.Image, &w)
				m.unpark(e.Tenant)
			}
		}
	}
	done := map[string]bool{}
	for _, w := range asking {
		if pool := cmp.Or(w.Pool, jobs.DefaultPool); !done[pool] {
			done[pool] = true
			out = append(out, m.serve(pool)...)
		}
	}
	for _, e := range m.waiting {
		if at := m.late(e); !at.IsZero() {
			m.comeBack(at)
		}
	}
	return out, m.next
}

func (m *model) comeBack(at time.Time) {
	if m.next.IsZero() || at.Before(m.next) {
		m.next = at
	}
}

// late is when time will change an item.
func (m *model) late(e *entry) time.Time {
	switch {
	case !e.joined:
		return e.NotBefore
	case e.avoids:
		return e.AvoidUntil
	}
	return time.Time{}
}

func (m *model) advance() {
	var due []*entry
	for _, e := range m.waiting {
		if at := m.late(e); !at.IsZero() && !m.now.Before(at) {
			due = append(due, e)
		}
	}
	slices.SortFunc(due, func(a, b *entry) int { return cmp.Or(m.late(a).Compare(m.late(b)), cmp.Compare(a.seq, b.seq)) })
	for _, e := range due {
		if e.joined {
			m.leave(e)
		}
		m.join(e, len(e.Avoid) > 0 && m.now.Before(e.AvoidUntil))
	}
}

// ready gives a group's next item whose key is not at its limit.
func (m *model) ready(g group) *entry { return m.readies()[g] }

// readies gives the next items of all groups that have one.
func (m *model) readies() map[group]*entry {
	first := map[group]*entry{}
	for _, e := range m.waiting {
		if o := first[e.at]; e.joined && (o == nil || m.before(e, o)) && !m.atLimit(e) {
			first[e.at] = e
		}
	}
	return first
}

func (m *model) before(a, b *entry) bool {
	return cmp.Or(a.rank(m.cfg.AgeStep).Compare(b.rank(m.cfg.AgeStep)), cmp.Compare(a.seq, b.seq)) < 0
}

func (m *model) atLimit(e *entry) bool {
	if e.Concurrency.Key == "" {
		return false
	}
	n := 0
	for _, h := range m.held {
		if h.Tenant == e.Tenant && h.Concurrency.Key == e.Concurrency.Key {
			n++
		}
	}
	return n >= max(e.Concurrency.Limit, 1)
}

// mayGo tells whether caps and keys let something of a group go.
func (m *model) mayGo(g group) bool { return m.allowed(g) && m.ready(g) != nil }

func (m *model) allowed(g group) bool {
	room := m.room(g.tenant)
	return m.groups[g] != nil && !m.groups[g].parked && room.VCPUs > 0 && room.MemoryMiB > 0
}

// turn gives the group whose turn it is.
func (m *model) turn(pool string) (first group, found bool) {
	ready := m.readies()
	for g, e := range ready {
		if g.pool != pool || m.passed[g] || m.blocked[g.kind] || !m.allowed(g) {
			continue
		}
		a, b := m.account(g), m.account(first)
		if c := cmp.Or(cmp.Compare(a.given, b.given), cmp.Compare(a.turn, b.turn)); !found || c < 0 || c == 0 && m.before(e, ready[first]) {
			first, found = g, true
		}
	}
	return first, found
}

func (m *model) slots(pool string) (n int) {
	for _, w := range m.asking {
		if cmp.Or(w.Pool, jobs.DefaultPool) == pool {
			n += max(w.Slots, 0)
		}
	}
	return n
}

func (m *model) serve(pool string) (out []match.Assignment) {
	if out = m.serveReserved(pool); m.slots(pool) == 0 {
		return out
	}
	for {
		g, found := m.turn(pool)
		if !found || m.slots(pool) == 0 {
			return out
		}
		w, what := m.pick(g)
		switch {
		case w >= 0:
			m.clocks[pool] = max(m.clocks[pool], m.account(g).given)
			out = append(out, m.give(g, w))
		case what == "capped" && slices.ContainsFunc(m.held, func(e *entry) bool { return e.Tenant == g.tenant }):
			m.groups[g].parked = true
		case what == "waits" || what == "capped":
			m.passed[g] = true
		default:
			if what == "short" {
				m.reserve(g)
			}
			m.blocked[g.kind] = true
		}
	}
}

func (m *model) serveReserved(pool string) []match.Assignment {
	v, ok := m.reserved[pool]
	m.kept = ""
	if !ok {
		return nil
	}
	alive := slices.ContainsFunc(m.fleet, func(w match.Worker) bool { return w.Name == v.worker && m.could(v.kind, &w) })
	if !alive || !m.mayGo(v.group) {
		delete(m.reserved, pool)
		return nil
	}
	w, what := m.pick(v.group)
	if w < 0 && (what == "nobody" || what == "short") {
		m.kept = v.worker
		return nil
	}
	delete(m.reserved, pool)
	if w < 0 {
		return nil
	}
	return []match.Assignment{m.give(v.group, w)}
}

func (m *model) give(g group, n int) match.Assignment {
	e, a, w := m.ready(g), m.account(g), &m.asking[n]
	e.worker, e.size = w.Name, size(e.Resources, e.Image, w)
	if v, ok := m.reserved[g.pool]; ok && v.worker == w.Name {
		v.rest -= e.size.VCPUs
		m.reserved[g.pool] = v
	}
	w.Slots--
	w.Free.VCPUs -= e.size.VCPUs
	w.Free.MemoryMiB -= e.size.MemoryMiB
	if w.Warm[e.Image] > 0 {
		w.Warm[e.Image]--
	}
	m.turns++
	a.given, a.turn = max(a.given, m.clocks[g.pool])+e.size.VCPUs<<20/max(m.cfg.Share(g.tenant).Weight, 1), m.turns
	m.held = append(m.held, e)
	m.remove(e.ID)
	return match.Assignment{ID: e.ID, Worker: n}
}

func (m *model) pick(g group) (int, string) {
	found, what, room := -1, "nobody", m.room(g.tenant)
	for n := range m.asking {
		w := &m.asking[n]
		s := size(g.resources, g.image, w)
		switch {
		case w.Slots <= 0 || cmp.Or(w.Pool, jobs.DefaultPool) != g.pool || w.Name == m.kept && !m.first(g, s) || !offers(g.kind, w) || m.avoids(g.kind, w.Name):
		case !fits(s, w.Free):
			if what == "nobody" && fits(s, w.Capacity) {
				what = "short"
			}
		case !fits(s, room):
			what = "capped"
		case found < 0 || m.better(g, w, &m.asking[found]) < 0:
			found = n
		}
	}
	if found >= 0 && !g.hurry && m.waits(g, &m.asking[found]) {
		return -1, "waits"
	}
	return found, what
}

func (m *model) better(g group, a, b *match.Worker) int {
	on := func(w *match.Worker) (n int) {
		for _, e := range m.held {
			if e.Tenant == g.tenant && e.worker == w.Name {
				n++
			}
		}
		return n
	}
	left := func(w *match.Worker) int {
		s := size(g.resources, g.image, w)
		return min((w.Free.VCPUs-s.VCPUs)*64/max(w.Capacity.VCPUs, w.Free.VCPUs, 1), (w.Free.MemoryMiB-s.MemoryMiB)*64/max(w.Capacity.MemoryMiB, w.Free.MemoryMiB, 1))
	}
	return cmp.Or(cmp.Compare(steps(g.kind, a), steps(g.kind, b)), cmp.Compare(left(a), left(b)), cmp.Compare(on(a), on(b)), cmp.Compare(b.Slots, a.Slots))
}

// steps is what has to be made before an item runs on a worker: nothing, a machine, or its template too.
func steps(k kind, w *match.Worker) int {
	switch {
	case w.Templates != nil && !hasTemplate(k, w):
		return 2
	case w.Warm[k.image] == 0:
		return 1
	}
	return 0
}

func hasTemplate(k kind, w *match.Worker) bool {
	return jobs.SnapshotTenant(k.image) != "" || slices.Contains(w.Templates[k.image], jobs.Shape{Resources: machine(k.resources, w.Images[k.image]), NIC: k.network != ""})
}

// machine is the size of a machine that is made: memory in steps of 64 MiB, or what the image has.
func machine(r, image jobs.Resources) jobs.Resources {
	whole := (r.MemoryMiB + 63) &^ 63
	if r.MemoryMiB == image.MemoryMiB {
		whole = image.MemoryMiB
	}
	return jobs.Resources{VCPUs: cmp.Or(r.VCPUs, image.VCPUs, 1), MemoryMiB: cmp.Or(whole, image.MemoryMiB, 1)}
}

// waits tells whether a group is held up where this worker is the best for it that asks.
func (m *model) waits(g group, best *match.Worker) bool {
	switch steps(g.kind, best) {
	case 2:
		holds := func(w *match.Worker) bool { return hasTemplate(g.kind, w) }
		if m.waitsFor(g, m.cfg.TemplateWait, m.holders, holds) {
			return true
		}
	case 0:
		return false
	}
	return m.waitsFor(g, m.cfg.WarmWait(g.image), m.warms, func(w *match.Worker) bool { return steps(g.kind, w) == 0 })
}

func (m *model) waitsFor(g group, most time.Duration, known map[kind]bool, better func(*match.Worker) bool) bool {
	until := m.groups[g].from.Add(most)
	if !m.now.Before(until) {
		return false
	}
	if _, ok := known[g.kind]; !ok {
		there := func(w match.Worker) bool {
			return better(&w) && w.Name != m.kept && m.could(g.kind, &w) && !slices.Contains(strings.Split(g.avoid, ","), w.Name)
		}
		known[g.kind] = slices.ContainsFunc(m.asking, there) || slices.ContainsFunc(m.fleet, func(w match.Worker) bool {
			return there(w) && !slices.ContainsFunc(m.asking, func(a match.Worker) bool { return a.Name == w.Name })
		})
	}
	if known[g.kind] {
		m.comeBack(until)
	}
	return known[g.kind]
}

func (m *model) reserve(g group) {
	if _, ok := m.reserved[g.pool]; ok || m.now.Before(m.ready(g).from().Add(m.cfg.ReserveAfter)) {
		return
	}
	host, least, rest := "", math.MinInt, 0
	for n := range m.asking {
		w := &m.asking[n]
		s := size(g.resources, g.image, w)
		if w.Slots <= 0 || !m.could(g.kind, w) || !fits(s, m.room(g.tenant)) || m.avoids(g.kind, w.Name) {
			continue
		}
		left := min((w.Free.VCPUs-s.VCPUs)*64/max(w.Capacity.VCPUs, w.Free.VCPUs, 1), (w.Free.MemoryMiB-s.MemoryMiB)*64/max(w.Capacity.MemoryMiB, w.Free.MemoryMiB, 1))
		if left > least {
			host, least, rest = w.Name, left, w.Capacity.VCPUs
		}
	}
	if host != "" {
		m.reserved[g.pool], m.kept = reserved{g, host, *m.account(g), rest}, host
	}
}

// first tells whether a group goes before the one that its pool's worker is reserved for.
func (m *model) first(g group, s jobs.Resources) bool {
	v, a := m.reserved[g.pool], m.account(g)
	return g.tenant != v.tenant && s.VCPUs <= v.rest && cmp.Or(cmp.Compare(a.given, v.was.given), cmp.Compare(a.turn, v.was.turn)) < 0
}

func (m *model) could(k kind, w *match.Worker) bool {
	return cmp.Or(w.Pool, jobs.DefaultPool) == k.pool && offers(k, w) && fits(size(k.resources, k.image, w), w.Capacity)
}

func (m *model) avoids(k kind, name string) bool {
	avoid := strings.Split(k.avoid, ",")
	return slices.Contains(avoid, name) && slices.ContainsFunc(m.fleet, func(w match.Worker) bool { return !slices.Contains(avoid, w.Name) && m.could(k, &w) })
}

func offers(k kind, w *match.Worker) bool {
	_, image := w.Images[k.image]
	label, value, _ := strings.Cut(k.requires, "=")
	return (image || w.Images == nil) && (k.network == "" || slices.Contains(w.Networks, k.network)) && (k.requires == "" || w.Labels[label] == value)
}

func size(r jobs.Resources, image string, w *match.Worker) jobs.Resources {
	d := w.Images[image]
	return jobs.Resources{VCPUs: cmp.Or(r.VCPUs, d.VCPUs, 1), MemoryMiB: cmp.Or(r.MemoryMiB, d.MemoryMiB, 1)}
}

func fits(s, room jobs.Resources) bool { return s.VCPUs <= room.VCPUs && s.MemoryMiB <= room.MemoryMiB }
