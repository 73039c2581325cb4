package match_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher/match"
	"github.com/paddockvm/paddock/jobs"
)

// TestProperties holds the queue against the model, and both against what must be true, over random items and workers. A failure prints
// its seed; FuzzProperties plays on.
func TestProperties(t *testing.T) {
	for seed := range uint64(120) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { play(t, seed) })
	}
}

func FuzzProperties(f *testing.F) {
	f.Fuzz(func(t *testing.T, seed uint64) { play(t, seed) })
}

// TestSameCallsSameAnswers: nothing depends on the order of a map.
func TestSameCallsSameAnswers(t *testing.T) {
	for seed := range uint64(10) {
		if one, two := play(t, seed), play(t, seed); one != two {
			t.Errorf("seed %d gave\n%s\nand then\n%s", seed, one, two)
		}
	}
}

// play is one game; it gives what was answered.
func play(t *testing.T, seed uint64) string {
	r := rand.New(rand.NewPCG(seed, 1))
	cfg := randomConfig(r)
	g := &game{t: t, r: r, cfg: cfg, q: match.New(cfg), model: newModel(cfg), now: now, kinds: 1 + r.IntN(30)}
	for range 100 {
		if g.step(); t.Failed() {
			return ""
		}
	}
	g.drain()
	return g.trace.String()
}

type game struct {
	t     *testing.T
	r     *rand.Rand
	cfg   match.Config
	q     *match.Queue
	model *model
	now   time.Time
	kinds int // of images
	made  int
	trace strings.Builder
}

var (
	tenants = []string{"t", "u", "v", "w"}
	names   = []string{"a", "b", "c", "d"}
)

func randomConfig(r *rand.Rand) match.Config {
	of := map[string]match.Share{}
	for _, t := range tenants {
		s := match.Share{Weight: r.IntN(4)}
		if r.IntN(2) == 0 {
			s.MaxRunning = r.IntN(5)
		}
		if r.IntN(2) == 0 {
			s.MaxVCPUs = r.IntN(9)
		}
		if r.IntN(3) == 0 {
			s.MaxMemoryMiB = r.IntN(2048)
		}
		of[t] = s
	}
	after := time.Duration(1+r.IntN(5)) * time.Second
	return match.Config{
		Share: func(t string) match.Share { return of[t] }, AgeStep: 2 * time.Second, ReserveAfter: after,
		WarmWait:     func(image string) time.Duration { return time.Duration(image[0]-'a') * time.Second / 2 },
		TemplateWait: time.Duration(r.IntN(5)) * time.Second / 2,
	}
}

func one[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

func (g *game) step() {
	switch g.r.IntN(10) {
	case 0, 1, 2:
		for range g.r.IntN(6) {
			g.push(g.item())
		}
	case 3:
		if waiting := g.model.waiting; len(waiting) > 0 {
			id := one(g.r, waiting).ID
			g.same("removed", g.model.remove(id), g.q.Remove(id))
			g.same("removed again", false, g.q.Remove(id))
		}
	case 4:
		g.now = g.now.Add(time.Duration(g.r.IntN(5)) * time.Second / 2)
	case 5, 6:
		for range g.r.IntN(4) {
			g.end()
		}
	case 7:
		if g.r.IntN(4) == 0 {
			i, worker := g.item(), one(g.r, names)
			g.q.Hold(i, worker)
			g.model.hold(i, worker)
		}
	default:
		g.match(g.workers())
	}
	g.same("items that wait", len(g.model.waiting), g.q.Len())
}

func (g *game) same(what string, want, got any) {
	g.t.Helper()
	if reflect.DeepEqual(want, got) {
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		g.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func (g *game) push(i match.Item) {
	g.q.Push(i)
	g.model.push(i)
}

// end ends an attempt; now and then the item comes again.
func (g *game) end() {
	if len(g.model.held) == 0 {
		return
	}
	e := one(g.r, g.model.held)
	if g.r.IntN(4) == 0 {
		i := e.Item
		i.NotBefore = g.now.Add(time.Duration(g.r.IntN(3)) * time.Second)
		i.Avoid, i.AvoidUntil = append(slices.Clone(i.Avoid), e.worker), i.NotBefore.Add(time.Duration(g.r.IntN(5))*time.Second)
		g.model.release(i.ID)
		g.push(i)
		return
	}
	g.same("released", g.model.release(e.ID), g.q.Release(e.ID))
	g.same("released again", false, g.q.Release(e.ID))
}

func (g *game) image() string { return string(rune('a'+g.r.IntN(3))) + fmt.Sprint(g.r.IntN(g.kinds)) }

func (g *game) item() match.Item {
	g.made++
	i := match.Item{ID: fmt.Sprint(g.made), Tenant: one(g.r, tenants), Image: g.image(), Priority: g.r.IntN(11), Since: g.now}
	if g.r.IntN(3) == 0 {
		i.Resources = jobs.Resources{VCPUs: g.r.IntN(7), MemoryMiB: g.r.IntN(4) * 256}
	}
	if g.r.IntN(4) == 0 {
		i.Network = one(g.r, networks)
	}
	if g.r.IntN(4) == 0 {
		i.Requires = one(g.r, []string{"os=linux", "os=windows"})
	}
	if g.r.IntN(4) == 0 {
		i.Pool = one(g.r, []string{jobs.DefaultPool, "gpu"})
	}
	if g.r.IntN(4) == 0 {
		i.Concurrency = jobs.Concurrency{Key: one(g.r, names), Limit: g.r.IntN(3)}
	}
	if g.r.IntN(5) == 0 {
		i.Avoid, i.AvoidUntil = []string{one(g.r, names), one(g.r, names)}, g.now.Add(time.Duration(g.r.IntN(12))*time.Second)
	}
	if g.r.IntN(5) == 0 {
		i.Hurry = true
	}
	if g.r.IntN(5) == 0 {
		i.NotBefore = g.now.Add(time.Duration(g.r.IntN(8)) * time.Second)
	}
	return i
}

// workers gives those that ask, and the others of the fleet.
func (g *game) workers() (asking, others []match.Worker) {
	for _, name := range names {
		w := match.Worker{Name: name, Slots: g.r.IntN(5) - 1, Capacity: jobs.Resources{VCPUs: 1 + g.r.IntN(8), MemoryMiB: 256 + g.r.IntN(2048)}, Warm: map[string]int{}}
		w.Free = jobs.Resources{VCPUs: g.r.IntN(1 + w.Capacity.VCPUs), MemoryMiB: g.r.IntN(1 + w.Capacity.MemoryMiB)}
		if g.r.IntN(2) == 0 {
			w.Networks = networks[:g.r.IntN(3)]
		}
		if g.r.IntN(2) == 0 {
			w.Labels = map[string]string{"os": "linux"}
		}
		if g.r.IntN(4) == 0 {
			w.Pool = "gpu"
		}
		if g.r.IntN(3) > 0 {
			w.Images = map[string]jobs.Resources{}
		}
		if g.r.IntN(3) > 0 {
			w.Templates = map[string][]jobs.Shape{}
		}
		for range 3 * g.kinds {
			image := g.image()
			w.Warm[image] = max(0, g.r.IntN(4)-1)
			if w.Images != nil {
				w.Images[image] = jobs.Resources{VCPUs: g.r.IntN(3), MemoryMiB: g.r.IntN(512)}
			}
			if w.Templates != nil {
				w.Templates[image] = g.shapes(w.Images[image])
			}
		}
		switch g.r.IntN(4) {
		case 0:
		case 1:
			others = append(others, w)
		default:
			asking = append(asking, w)
		}
	}
	return asking, others
}

// shapes are of machines that a worker may have the templates of: those of the image's own size, and of one that items ask for.
func (g *game) shapes(image jobs.Resources) (of []jobs.Shape) {
	for _, asked := range []jobs.Resources{{}, {VCPUs: g.r.IntN(7), MemoryMiB: g.r.IntN(4) * 256}} {
		for _, nic := range []bool{false, true} {
			if g.r.IntN(2) == 0 {
				of = append(of, jobs.Shape{Resources: machine(asked, image), NIC: nic})
			}
		}
	}
	return of
}

func copied(workers []match.Worker) []match.Worker {
	c := slices.Clone(workers)
	for i := range c {
		c[i].Warm = maps.Clone(c[i].Warm)
	}
	return c
}

func (g *game) match(asking, others []match.Worker) {
	before, after := copied(asking), copied(asking)
	known := func() []match.Worker { return append(copied(before), others...) }
	wantOut, wantNext := g.model.match(g.now, asking, known())
	out, next := g.q.Match(g.now, after, known)
	g.same("assignments", wantOut, out)
	g.same("next", wantNext.UnixNano(), next.UnixNano())
	g.same("what the workers have left", asking, after)
	g.check(before, out)
	fmt.Fprintln(&g.trace, out, next)
}

// check looks at what must be true, whatever the rules: nothing is put where it has no room, and caps and keys hold.
func (g *game) check(workers []match.Worker, out []match.Assignment) {
	for _, a := range out {
		n := slices.IndexFunc(g.model.held, func(e *entry) bool { return e.ID == a.ID })
		if n < 0 {
			g.t.Errorf("%s was matched and did not wait", a.ID)
			return
		}
		e, w := g.model.held[n], &workers[a.Worker]
		s := size(e.Resources, e.Image, w)
		w.Slots--
		w.Free.VCPUs -= s.VCPUs
		w.Free.MemoryMiB -= s.MemoryMiB
		if w.Slots < 0 || w.Free.VCPUs < 0 || w.Free.MemoryMiB < 0 || g.now.Before(e.NotBefore) {
			g.t.Errorf("%+v was given to %+v", e.Item, *w)
		}
		g.checkKey(e)
		g.checkCaps(e.Tenant)
	}
}

func (g *game) checkKey(e *entry) {
	n := 0
	for _, h := range g.model.held {
		if h.Tenant == e.Tenant && h.Concurrency.Key == e.Concurrency.Key {
			n++
		}
	}
	limits := []int{}
	for _, h := range g.model.held {
		if h.Tenant == e.Tenant && h.Concurrency.Key == e.Concurrency.Key {
			limits = append(limits, max(h.Concurrency.Limit, 1))
		}
	}
	if e.Concurrency.Key != "" && n > slices.Max(limits) && e.worker != "" && !g.told(e) {
		g.t.Errorf("%d with the key %v run", n, e.Concurrency)
	}
}

// told tells whether something of the tenant and key was told by Hold, which looks at no limits.
func (g *game) told(e *entry) bool {
	return slices.ContainsFunc(g.model.held, func(h *entry) bool { return h.Tenant == e.Tenant && h.seq == 0 })
}

func (g *game) checkCaps(tenant string) {
	share := g.cfg.Share(tenant)
	var running, vcpus, mib int
	for _, h := range g.model.held {
		if h.Tenant == tenant {
			running, vcpus, mib = running+1, vcpus+h.size.VCPUs, mib+h.size.MemoryMiB
		}
	}
	over := func(used, limit int) bool { return limit > 0 && used > limit }
	if over(running, share.MaxRunning) || over(vcpus, share.MaxVCPUs) || over(mib, share.MaxMemoryMiB) {
		g.t.Errorf("%s runs %d with %d processors and %d MiB, and may have %+v", tenant, running, vcpus, mib, share)
	}
}

// drain ends what runs and matches what waits until nothing does that any caps allow: nothing was lost.
func (g *game) drain() {
	g.now = g.now.Add(time.Hour)
	all := jobs.Resources{VCPUs: 1 << 20, MemoryMiB: 1 << 30}
	for range 1000 {
		for _, e := range slices.Clone(g.model.held) {
			g.same("released", g.model.release(e.ID), g.q.Release(e.ID))
		}
		left := len(g.model.waiting)
		var workers []match.Worker
		for n, pool := range []string{"", "gpu"} {
			for _, os := range []string{"linux", "windows"} {
				w := match.Worker{Name: fmt.Sprint(os, n), Pool: pool, Slots: 1 << 20, Free: all, Capacity: all, Networks: networks, Labels: map[string]string{"os": os}, Warm: map[string]int{}}
				workers = append(workers, w)
			}
		}
		if g.match(workers, nil); len(g.model.waiting) == left || g.t.Failed() {
			break
		}
	}
	for _, e := range g.model.waiting {
		share := g.cfg.Share(e.Tenant)
		if fits(size(e.Resources, "", &match.Worker{}), jobs.Resources{VCPUs: orMore(share.MaxVCPUs), MemoryMiB: orMore(share.MaxMemoryMiB)}) {
			g.t.Errorf("%+v waits for ever, with %+v", e.Item, share)
		}
		g.same("what is left is there", true, g.q.Remove(e.ID))
	}
	g.same("nothing is left", 0, g.q.Len())
}

func orMore(limit int) int {
	if limit == 0 {
		return 1 << 30
	}
	return limit
}
