package match_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher/match"
	"github.com/paddockvm/paddock/jobs"
)

// TestProperties holds the queue against a plain list, over random items and workers. A failure prints its seed.
func TestProperties(t *testing.T) {
	for seed := range uint64(300) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			m := &model{t: t, r: rand.New(rand.NewPCG(seed, 1)), q: match.New(), now: now}
			for range 60 {
				m.step()
			}
			m.sort()
			if diff := gocmp.Diff(ids(m.waiting), drain(m.q)); diff != "" {
				t.Errorf("what is left (-want +got):\n%s", diff)
			}
		})
	}
}

// model is the queue as a list in the order of its items.
type model struct {
	t       *testing.T
	r       *rand.Rand
	q       *match.Queue
	now     time.Time
	waiting []placed
	made    int
}

// placed is an item with its place among those of its priority.
type placed struct {
	match.Item
	at int
}

func ids(list []placed) []string {
	out := []string{}
	for _, p := range list {
		out = append(out, p.ID)
	}
	return out
}

var (
	images = []string{"base", "python", "windows"}
	names  = []string{"a", "b", "c"}

	networks = []string{"internet", "allowlist"}
)

func one[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

func (m *model) step() {
	switch m.r.IntN(8) {
	case 0, 1, 2:
		for range m.r.IntN(6) {
			m.push()
		}
	case 3:
		if len(m.waiting) > 0 {
			n := m.r.IntN(len(m.waiting))
			if !m.q.Remove(m.waiting[n].ID) {
				m.t.Fatalf("%s was lost", m.waiting[n].ID)
			}
			m.waiting = slices.Delete(m.waiting, n, n+1)
		}
	case 4:
		m.now = m.now.Add(time.Duration(m.r.IntN(5)) * time.Second)
	default:
		m.match()
	}
	if m.q.Len() != len(m.waiting) {
		m.t.Fatalf("%d items wait, want %d", m.q.Len(), len(m.waiting))
	}
}

func (m *model) push() {
	m.made++
	p := placed{match.Item{ID: fmt.Sprint(m.made), Image: one(m.r, images), Priority: m.r.IntN(3) * 4}, m.made}
	if m.r.IntN(3) == 0 {
		p.Resources = jobs.Resources{VCPUs: m.r.IntN(5), MemoryMiB: m.r.IntN(4) * 256}
	}
	if m.r.IntN(4) == 0 {
		p.Network = one(m.r, networks)
	}
	if m.r.IntN(4) == 0 {
		p.Avoid, p.AvoidUntil = one(m.r, names), m.now.Add(time.Duration(m.r.IntN(12))*time.Second)
	}
	if m.r.IntN(4) == 0 {
		p.NotBefore = m.now.Add(time.Duration(m.r.IntN(8)) * time.Second)
	}
	if m.r.IntN(4) == 0 {
		p.at = -m.made
		m.q.PushFront(p.Item)
	} else {
		m.q.Push(p.Item)
	}
	m.waiting = append(m.waiting, p)
}

func (m *model) sort() {
	slices.SortFunc(m.waiting, func(a, b placed) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.at, b.at))
	})
}

func (m *model) workers() []match.Worker {
	list := make([]match.Worker, m.r.IntN(4))
	for i := range list {
		w := match.Worker{Name: one(m.r, names), Slots: m.r.IntN(5), Free: jobs.Resources{VCPUs: m.r.IntN(8), MemoryMiB: m.r.IntN(2048)}, Warm: map[string]int{}}
		if m.r.IntN(2) == 0 {
			w.Networks = networks[:m.r.IntN(3)]
		}
		for _, image := range images {
			w.Warm[image] = max(0, m.r.IntN(4)-1)
		}
		if m.r.IntN(3) > 0 {
			w.Images = map[string]jobs.Resources{}
			for _, image := range images[:1+m.r.IntN(3)] {
				w.Images[image] = jobs.Resources{VCPUs: m.r.IntN(3), MemoryMiB: m.r.IntN(512)}
			}
		}
		list[i] = w
	}
	return list
}

// match replays a match: before each assignment, and after the last, nobody who waits before it could have been taken instead.
func (m *model) match() {
	workers := m.workers()
	left := slices.Clone(workers)
	for i := range left {
		left[i].Warm = maps.Clone(left[i].Warm)
	}
	lonely := m.r.IntN(3) == 0
	others := func(string, match.Item) bool { return !lonely }
	out, next := m.q.Match(m.now, workers, others)
	m.sort()
	can := func(i match.Item, w *match.Worker) bool {
		return !m.now.Before(i.NotBefore) && w.Slots > 0 && (w.Name != i.Avoid || lonely || !m.now.Before(i.AvoidUntil)) && m.fits(i, w)
	}
	var after placed
	for _, a := range out {
		n := slices.IndexFunc(m.waiting, func(p placed) bool { return p.ID == a.Item.ID })
		if n < 0 {
			m.t.Fatalf("%s was matched and did not wait", a.Item.ID)
		}
		p, w := m.waiting[n], &left[a.Worker]
		if diff := gocmp.Diff(p.Item, a.Item); diff != "" {
			m.t.Fatalf("item %s changed (-pushed +matched):\n%s", p.ID, diff)
		}
		if after.ID != "" && (p.Priority > after.Priority || p.Priority == after.Priority && p.at < after.at) {
			m.t.Errorf("%s was matched after %s", p.ID, after.ID)
		}
		after = p
		if !can(p.Item, w) {
			m.t.Errorf("%s does not fit %+v (avoid %q, not before %v)", p.ID, *w, p.Avoid, p.NotBefore.Sub(m.now))
		}
		for i := range left {
			if can(p.Item, &left[i]) && left[i].Warm[p.Image] > 0 && w.Warm[p.Image] == 0 {
				m.t.Errorf("%s went to %s, which is cold, and %s is warm", p.ID, w.Name, left[i].Name)
			}
		}
		m.overtaken(m.waiting[:n], left, can, p.ID)
		m.take(p.Item, w)
		m.waiting = slices.Delete(m.waiting, n, n+1)
	}
	m.overtaken(m.waiting, left, can, "the end")
	if diff := gocmp.Diff(left, workers); diff != "" {
		m.t.Errorf("what the workers have left (-want +got):\n%s", diff)
	}
	m.checkNext(next)
}

// overtaken checks that none of those before could be taken by anybody.
func (m *model) overtaken(before []placed, left []match.Worker, can func(match.Item, *match.Worker) bool, by string) {
	for _, p := range before {
		for i := range left {
			if can(p.Item, &left[i]) {
				m.t.Errorf("%s could have gone to %s before %s", p.ID, left[i].Name, by)
			}
		}
	}
}

// checkNext: it is known when the first item will not be too early any more, or will avoid nobody any more.
func (m *model) checkNext(next time.Time) {
	var want time.Time
	for _, p := range m.waiting {
		at := p.NotBefore
		if !m.now.Before(at) {
			at = p.AvoidUntil
		}
		if m.now.Before(at) && (want.IsZero() || at.Before(want)) {
			want = at
		}
	}
	if !next.Equal(want) {
		m.t.Errorf("next is %v, want %v", next, want)
	}
}

// size is a machine's: the item's, else the image's, and never nothing.
func (m *model) size(i match.Item, w *match.Worker) jobs.Resources {
	image := w.Images[i.Image]
	return jobs.Resources{VCPUs: cmp.Or(i.Resources.VCPUs, image.VCPUs, 1), MemoryMiB: cmp.Or(i.Resources.MemoryMiB, image.MemoryMiB, 1)}
}

func (m *model) fits(i match.Item, w *match.Worker) bool {
	if _, ok := w.Images[i.Image]; !ok && w.Images != nil {
		return false
	}
	offered := i.Network == ""
	for _, n := range w.Networks {
		offered = offered || n == i.Network
	}
	s := m.size(i, w)
	return offered && w.Free.VCPUs >= s.VCPUs && w.Free.MemoryMiB >= s.MemoryMiB
}

func (m *model) take(i match.Item, w *match.Worker) {
	s := m.size(i, w)
	w.Slots--
	w.Free.VCPUs -= s.VCPUs
	w.Free.MemoryMiB -= s.MemoryMiB
	if w.Warm[i.Image] > 0 {
		w.Warm[i.Image]--
	}
	if w.Slots < 0 || w.Free.VCPUs < 0 || w.Free.MemoryMiB < 0 {
		m.t.Errorf("%s put %s over its capacity: %+v", i.ID, w.Name, *w)
	}
}
