package match

import (
	"math"
	"slices"

	"github.com/paddockvm/paddock/jobs"
)

// tenant is what a tenant has, waiting and held, in all pools.
type tenant struct {
	Share
	name     string
	accounts []*account
	running  int
	size     jobs.Resources // of what is held, as far as it is known
	unsized  int            // held, of a size that is not known
	on       map[string]int // held, by worker
	keys     map[string]*key
	full     bool // nothing more may be held, however small
	parked   []*group
}

// key is a concurrency key of a tenant.
type key struct {
	name  string
	held  int
	lines []*line
}

// holding is an item that a worker has.
type holding struct {
	tenant *tenant
	worker string
	key    *key
	image  string
	asked  jobs.Resources
	size   jobs.Resources // zero while it is not known
}

func (q *Queue) tenant(name string) *tenant {
	t := q.tenants[name]
	if t == nil {
		t = &tenant{name: name, on: map[string]int{}, keys: map[string]*key{}}
		if q.cfg.Share != nil {
			t.Share = q.cfg.Share(name)
		}
		t.Weight = min(max(t.Weight, 1), maxWeight)
		q.tenants[name] = t
	}
	return t
}

func (t *tenant) key(name string) *key {
	k := t.keys[name]
	if k == nil {
		k = &key{name: name}
		t.keys[name] = k
	}
	return k
}

func (t *tenant) dropKey(k *key) {
	if k.held == 0 && len(k.lines) == 0 {
		delete(t.keys, k.name)
	}
}

// room is what the tenant's caps leave for one item more. While the size of something held is not known, nothing of what has a cap.
func (t *tenant) room() jobs.Resources {
	left := func(limit, used int) int {
		switch {
		case limit <= 0:
			return math.MaxInt
		case t.unsized > 0:
			return 0
		}
		return max(limit-used, 0)
	}
	if t.MaxRunning > 0 && t.running >= t.MaxRunning {
		return jobs.Resources{}
	}
	return jobs.Resources{VCPUs: left(t.MaxVCPUs, t.size.VCPUs), MemoryMiB: left(t.MaxMemoryMiB, t.size.MemoryMiB)}
}

// Hold notes that an item runs already, on a worker: its queue has been told anew. It counts for its tenant's caps and its key until Release.
// Where it has no size of its own that is the image's on its worker, known when the fleet names that worker; until then the tenant gets
// no more of what has a cap.
func (q *Queue) Hold(i Item, worker string) {
	q.Remove(i.ID)
	q.Release(i.ID)
	h := &holding{tenant: q.tenant(i.Tenant), worker: worker, image: i.Image, asked: i.Resources}
	if i.Concurrency.Key != "" {
		h.key = h.tenant.key(i.Concurrency.Key)
	}
	if i.Resources.VCPUs > 0 && i.Resources.MemoryMiB > 0 {
		h.size = i.Resources
	} else {
		h.tenant.unsized++
		q.unsized = append(q.unsized, h)
	}
	q.hold(i.ID, h)
	q.review(h.tenant)
}

func (q *Queue) hold(id string, h *holding) {
	t := h.tenant
	q.held[id] = h
	t.running++
	t.on[h.worker]++
	t.size.VCPUs += h.size.VCPUs
	t.size.MemoryMiB += h.size.MemoryMiB
	if h.key != nil {
		h.key.held++
		q.reviewKey(h.key)
	}
}

// Release notes that an item is held no more: its attempt has ended, or was not given after all. It tells whether it was held.
func (q *Queue) Release(id string) bool {
	h := q.held[id]
	if h == nil {
		return false
	}
	delete(q.held, id)
	t := h.tenant
	t.running--
	if t.on[h.worker]--; t.on[h.worker] == 0 {
		delete(t.on, h.worker)
	}
	t.size.VCPUs -= h.size.VCPUs
	t.size.MemoryMiB -= h.size.MemoryMiB
	if h.size == (jobs.Resources{}) {
		t.unsized--
		q.unsized = slices.DeleteFunc(q.unsized, func(o *holding) bool { return o == h })
	}
	if h.key != nil {
		h.key.held--
		q.reviewKey(h.key)
		t.dropKey(h.key)
	}
	q.unpark(t)
	q.dropTenant(t)
	return true
}

// review takes what a tenant has out of the round while it is at a cap, and back into it.
func (q *Queue) review(t *tenant) {
	room := t.room()
	full := room.VCPUs < 1 || room.MemoryMiB < 1
	if full == t.full {
		return
	}
	t.full = full
	for _, a := range t.accounts {
		q.unlift(a)
	}
}

// unpark has another look at what was too large for the tenant's caps.
func (q *Queue) unpark(t *tenant) {
	q.review(t)
	for _, g := range t.parked {
		g.parked = false
		q.settleGroup(g)
	}
	t.parked = nil
}

// reviewKey takes a key's lines out of the round while it is at their limit, and back into it.
func (q *Queue) reviewKey(k *key) {
	for _, l := range k.lines {
		if in := k.held < l.of.Limit; in != (l.in >= 0) {
			l.group.open.set(l, in)
			q.settleGroup(l.group)
		}
	}
}
