package worker_test

import (
	"context"
	"errors"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/inproc"
)

// census is a driver that knows how many of what it made live.
type census struct {
	vmm.Driver
	machines, prepared, most atomic.Int64
	released                 atomic.Int64
}

var _ vmm.Releaser = (*census)(nil)

func (c *census) Release(string) error {
	c.released.Add(1)
	return nil
}

func (c *census) Prepare(ctx context.Context, t vmm.Template, a vmm.Attach) (vmm.Prepared, error) {
	p, err := c.Driver.Prepare(ctx, t, a)
	if err != nil {
		return nil, err
	}
	c.prepared.Add(1)
	return &countedPrepared{p, c, sync.OnceFunc(func() { c.prepared.Add(-1) })}, nil
}

type countedPrepared struct {
	vmm.Prepared
	c    *census
	gone func()
}

func (p *countedPrepared) Close() error {
	p.gone()
	return p.Prepared.Close()
}

func (p *countedPrepared) Restore(ctx context.Context) (vmm.Machine, error) {
	p.gone()
	m, err := p.Prepared.Restore(ctx)
	if err != nil {
		return nil, err
	}
	n := p.c.machines.Add(1)
	for most := p.c.most.Load(); n > most && !p.c.most.CompareAndSwap(most, n); most = p.c.most.Load() {
	}
	return &countedMachine{m, sync.OnceFunc(func() { p.c.machines.Add(-1) })}, nil
}

type countedMachine struct {
	vmm.Machine
	gone func()
}

func (m *countedMachine) Close() error {
	m.gone()
	return m.Machine.Close()
}

func newCensus(t *testing.T) (*rig, *census) {
	r := newRig(t)
	c := &census{Driver: r.cfg.Driver}
	r.cfg.Driver = c
	return r, c
}

// settled waits until the counts are what they shall be, and stay.
func settled(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// faulty is a driver whose machines have been let down by their host.
type faulty struct{ vmm.Driver }

func (f faulty) Prepare(ctx context.Context, t vmm.Template, a vmm.Attach) (vmm.Prepared, error) {
	p, err := f.Driver.Prepare(ctx, t, a)
	return faultyPrepared{p}, err
}

type faultyPrepared struct{ vmm.Prepared }

func (p faultyPrepared) Restore(ctx context.Context) (vmm.Machine, error) {
	m, err := p.Prepared.Restore(ctx)
	return faultyMachine{m}, err
}

type faultyMachine struct{ vmm.Machine }

var _ vmm.HostFault = faultyMachine{}

func (faultyMachine) HostFault() error {
	return errors.New("write of the scratch disk: no space left on device")
}

// What a program does on a machine that its host has let down is the host's doing.
func TestHostFault(t *testing.T) {
	r := newRig(t)
	r.cfg.Driver = faulty{r.cfg.Driver}
	r.run(t)
	for _, program := range []string{"true", "false"} {
		if res := r.report(t, r.put(steps([]string{program})).Job).Result; res.Ending != jobs.HostResources || res.Class != jobs.ClassInfra {
			t.Errorf("%s ended %s: %s", program, res.Ending, res.Reason)
		}
	}
}

// The stock takes no more memory than there is.
func TestStockKeepsToTheMemory(t *testing.T) {
	r, c := newCensus(t)
	r.cfg.Capacity = jobs.Resources{VCPUs: 8, MemoryMiB: 128} // two machines of 64
	r.cfg.Ready, r.cfg.Prepared, r.cfg.Makers = 8, 0, 8
	r.run(t)
	settled(t, "two machines", func() bool { return c.machines.Load() == 2 })
	for range 4 {
		r.report(t, r.put(steps([]string{"true"})).Job)
	}
	settled(t, "two machines", func() bool { return c.machines.Load() == 2 })
	if most := c.most.Load(); most > 3 { // an attempt that finds none ready gets one all the same
		t.Errorf("%d machines lived at once in the room for two", most)
	}
}

// unhurried is a driver that makes no machine before it may, and knows how many it made at once.
type unhurried struct {
	vmm.Driver
	may          chan struct{} // closed then
	making, most atomic.Int64
}

func (u *unhurried) Prepare(ctx context.Context, t vmm.Template, a vmm.Attach) (vmm.Prepared, error) {
	n := u.making.Add(1)
	defer u.making.Add(-1)
	for most := u.most.Load(); n > most && !u.most.CompareAndSwap(most, n); most = u.most.Load() {
	}
	select {
	case <-u.may:
	case <-ctx.Done():
	}
	return u.Driver.Prepare(ctx, t, a)
}

// Each processor makes machines; of those that emulate them, every other does.
func TestMakers(t *testing.T) {
	all := runtime.GOMAXPROCS(0)
	for accel, want := range map[string]int{"kvm": all, "none": all, "tcg": max(1, all/2)} {
		t.Run(accel, func(t *testing.T) {
			r := newRig(t)
			u := &unhurried{Driver: r.cfg.Driver, may: make(chan struct{})}
			r.cfg.Driver, r.cfg.Caps.Accel, r.cfg.Makers, r.cfg.Ready, r.cfg.Prepared = u, accel, 0, all+1, 0
			r.cfg.Capacity = jobs.Resources{VCPUs: all + 1, MemoryMiB: 1024 * (all + 1)}
			r.run(t)
			settled(t, "makers", func() bool { return u.making.Load() == int64(want) })
			close(u.may)
			if res := r.report(t, r.put(steps([]string{"true"})).Job).Result; !res.Success() {
				t.Errorf("ended %s: %s", res.Ending, res.Reason)
			}
			if most := u.most.Load(); most != int64(want) {
				t.Errorf("%d machines were made at once, want %d", most, want)
			}
		})
	}
}

// Clients may name as many sizes as they like: nothing is kept in stock of those.
func TestUnusualSizesAreNotStocked(t *testing.T) {
	r, c := newCensus(t)
	r.run(t)
	for i := range 40 {
		s := steps([]string{"true"})
		s.Resources = jobs.Resources{VCPUs: 1, MemoryMiB: 100 + 7*i}
		if res := r.report(t, r.put(s).Job).Result; !res.Success() {
			t.Fatalf("ended %s: %s", res.Ending, res.Reason)
		}
	}
	settled(t, "the stock of the image's own size alone", func() bool { return c.machines.Load() == 2 && c.prepared.Load() == 1 })
}

// An image that is built anew while the template of the old build is being made leaves no pool of that behind.
func TestRebuiltWhileItsTemplateIsMade(t *testing.T) {
	r, c := newCensus(t)
	images := &slow{changing: changing{catalog: catalog{driver: c.Name()}, digest: "old"}, gate: make(chan struct{}), asked: make(chan struct{})}
	r.cfg.Images = images
	r.run(t)
	<-images.asked
	images.mu.Lock()
	images.digest = "new"
	images.mu.Unlock()
	if res := r.report(t, r.put(steps([]string{"true"})).Job).Result; res.Template != "template of new" {
		t.Errorf("ran on the %s", res.Template)
	}
	close(images.gate)
	settled(t, "one stock", func() bool { return c.machines.Load() == 2 && c.prepared.Load() == 1 })
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if n := c.released.Load(); n == 0 {
		t.Error("no template was released")
	}
}

// giving counts templates that are given and released.
type giving struct {
	changing
	given atomic.Int64
}

func (g *giving) Offer(name string) (jobs.OfferedImage, bool) { return offered(g, name) }

func (g *giving) Template(ctx context.Context, image string, s jobs.Shape) (vmm.Template, string, error) {
	g.given.Add(1)
	tmpl, digest, err := g.changing.Template(ctx, image, s)
	tmpl.Dir = digest
	return tmpl, digest, err
}

func (g *giving) Release(vmm.Template) { g.given.Add(-1) }

// A template is in use while a machine runs that was cloned from it, however long its pool is gone; and released once for each time that it
// was given.
func TestTemplateIsInUseWhileItsMachineRuns(t *testing.T) {
	r, c := newCensus(t)
	images := &giving{changing: changing{catalog: catalog{driver: c.Name()}, digest: "old"}}
	r.cfg.Images = images
	long, end := r.untilEnd()
	r.run(t)
	running := r.put(long)
	r.runs(t, 1)
	images.mu.Lock()
	images.digest = "new"
	images.mu.Unlock()
	if res := r.report(t, r.put(steps([]string{"true"})).Job).Result; res.Template != "template of new" {
		t.Errorf("ran on the %s", res.Template)
	}
	settled(t, "the old stock's end", func() bool { return c.released.Load() == 1 && c.machines.Load() == 3 })
	if n := images.given.Load(); n != 2 {
		t.Errorf("%d templates are in use, want the new one and that of the machine that runs", n)
	}
	end()
	if res := r.report(t, running.Job).Result; !res.Success() {
		t.Errorf("ended %s: %s", res.Ending, res.Reason)
	}
	settled(t, "the old template's release", func() bool { return images.given.Load() == 1 })
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if n := images.given.Load(); n != 0 {
		t.Errorf("%d templates are in use by nobody", n)
	}
}

// slow makes the first template only when it is let.
type slow struct {
	changing
	once        sync.Once
	gate, asked chan struct{}
}

func (s *slow) Template(ctx context.Context, image string, r jobs.Shape) (vmm.Template, string, error) {
	first := false
	s.once.Do(func() { first = true })
	if first {
		close(s.asked)
		<-s.gate
		return vmm.Template{Driver: s.driver}, "template of old", nil
	}
	return s.changing.Template(ctx, image, r)
}

// A shape that is asked for again and again is kept ready, and no longer than that.
func TestPoolFollowsDemand(t *testing.T) {
	r, c := newCensus(t)
	r.cfg.Ready, r.cfg.ReadyMost, r.cfg.Prepared = 0, 3, 0
	registry := prometheus.NewPedanticRegistry()
	r.cfg.Registerer = registry
	r.run(t)
	odd := steps([]string{"true"})
	odd.Resources = jobs.Resources{VCPUs: 1, MemoryMiB: 128}
	r.report(t, r.put(odd).Job)
	if n := c.machines.Load(); n != 0 {
		t.Errorf("%d machines for who asked once", n)
	}
	for range 5 {
		r.report(t, r.put(odd).Job)
	}
	settled(t, "a machine that waits for the next", func() bool { return r.report(t, r.put(odd).Job).Result.Phases.FromPool })
	if n := c.machines.Load(); n > 3 {
		t.Errorf("%d machines are ready, at most 3 shall be", n)
	}
	said, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range said {
		if family.GetName() != "paddock_pool_machines" {
			continue
		}
		for _, m := range family.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if labels["shape"] == "other" && labels["stage"] == "wanted" && m.GetGauge().GetValue() >= 1 {
				return
			}
		}
	}
	t.Error("no metric tells how many machines of the odd shape are wanted")
}

// A host that is short of memory keeps no idle machines and takes no jobs, until it is not any more. Nothing that runs is touched.
func TestShortOfMemory(t *testing.T) {
	r, c := newCensus(t)
	var short atomic.Bool
	r.cfg.Short = short.Load
	s, end := r.untilEnd()
	r.run(t)
	settled(t, "the stock", func() bool { return c.machines.Load() == 2 && c.prepared.Load() == 1 })
	running := r.put(s)
	settled(t, "a job that runs, and the stock", func() bool { return c.machines.Load() == 3 && c.prepared.Load() == 1 })
	short.Store(true)
	settled(t, "only the machine that runs a job", func() bool { return c.machines.Load() == 1 && c.prepared.Load() == 0 })
	settled(t, "no request for jobs stands", func() (none bool) {
		r.set(func() { none = r.standing == 0 })
		return none
	})
	next := r.put(steps([]string{"true"}))
	end()
	if rep := r.report(t, running.Job); !rep.Result.Success() {
		t.Errorf("the job that ran: %+v", rep.Result)
	}
	r.set(func() {
		if len(r.queue) != 1 {
			t.Error("a job was taken")
		}
	})
	short.Store(false)
	if rep := r.report(t, next.Job); !rep.Result.Success() {
		t.Errorf("the job after: %+v", rep.Result)
	}
	settled(t, "the stock again", func() bool { return c.machines.Load() == 2 && c.prepared.Load() == 1 })
}

// ranch is a catalog with snapshots.
type ranch struct {
	catalog
	snapshots []string
}

func (r ranch) Offered() []jobs.OfferedImage {
	list := r.catalog.Offered()
	for _, image := range r.snapshots {
		list = append(list, jobs.OfferedImage{Name: image, Digest: image, Resources: list[0].Resources, Snapshot: true})
	}
	return list
}

func (r ranch) Offer(name string) (jobs.OfferedImage, bool) { return offered(r, name) }

// Clients name snapshots, and those are no metrics.
func TestSnapshotsAreCountedTogether(t *testing.T) {
	r := newRig(t)
	figures := prometheus.NewRegistry()
	mine := ranch{r.cfg.Images.(catalog), []string{jobs.SnapshotImage("default", "one"), jobs.SnapshotImage("default", "two")}}
	r.cfg.Images, r.cfg.Registerer = mine, figures
	r.run(t)
	for _, image := range append(mine.snapshots, "base") {
		spec := steps([]string{"true"})
		spec.Image = image
		if rep := r.report(t, r.put(spec).Job); !rep.Result.Success() {
			t.Errorf("%s: %+v", image, rep.Result)
		}
	}
	families, err := figures.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]int{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == "paddock_pool_machines" && l.GetName() == "image" {
					series[l.GetValue()]++
				}
			}
		}
	}
	if diff := cmp.Diff(map[string]int{"base": 4, "snapshot": 4}, series); diff != "" {
		t.Error(diff)
	}
}

// emptied is a catalog that comes to have nothing.
type emptied struct {
	catalog
	removed *atomic.Bool
}

func (e emptied) Offered() []jobs.OfferedImage {
	if e.removed.Load() {
		return nil
	}
	return e.catalog.Offered()
}

func (e emptied) Offer(name string) (jobs.OfferedImage, bool) { return offered(e, name) }

// Machines that wait are ended when their image has been removed, and what the driver keeps for them is given up: nobody would ever take one.
func TestImageIsRemoved(t *testing.T) {
	r, c := newCensus(t)
	images := emptied{r.cfg.Images.(catalog), &atomic.Bool{}}
	r.cfg.Images = images
	r.run(t)
	settled(t, "machines wait", func() bool { return c.machines.Load() == 2 && c.prepared.Load() == 1 })
	images.removed.Store(true)
	settled(t, "none does any more", func() bool { return c.machines.Load() == 0 && c.prepared.Load() == 0 && c.released.Load() > 0 })
}

// Whoever waits for a machine hears of it when none becomes ready, however long each of them is waited for.
func TestMachinesThatNeverAnswer(t *testing.T) {
	earnest(t, func(t *testing.T, r *rig) {
		r.cfg.Driver = inproc.New(func(ctx context.Context, _ net.Conn) { <-ctx.Done() })
		r.cfg.Ready, r.cfg.Prepared, r.cfg.Warm = 0, 0, nil
		r.run(t)
		l := r.put(steps([]string{"true"}))
		time.Sleep(2 * time.Minute) // two are tried, each for a minute
		if res := r.report(t, l.Job).Result; res.Ending != jobs.VMFailed {
			t.Errorf("ended %s: %s", res.Ending, res.Reason)
		}
	})
}

// A template whose machines never become ready is tried less and less often, with one machine at a time, and holds up no other image's.
func TestImageThatSaysNothing(t *testing.T) {
	earnest(t, func(t *testing.T, r *rig) {
		var tries atomic.Int64
		r.cfg.Driver = silenced{r.cfg.Driver, inproc.New(func(ctx context.Context, _ net.Conn) {
			tries.Add(1)
			<-ctx.Done()
		})}
		r.cfg.Images = two{r.cfg.Images.(catalog)}
		r.cfg.Makers, r.cfg.Ready, r.cfg.Prepared, r.cfg.Warm = 2, 2, 0, []string{"mute"}
		r.run(t)
		time.Sleep(10 * time.Minute)
		tried := tries.Load()
		if tried < 8 || tried > 9 { // two at once, for a minute; then one each time, after 0, 2, 6, 14, 30 and 58 seconds more
			t.Errorf("%d machines were tried in ten minutes", tried)
		}
		for range 3 {
			began := time.Now()
			if res := r.report(t, r.put(steps([]string{"true"})).Job).Result; !res.Success() || time.Since(began) > 5*time.Second {
				t.Errorf("another image's job ended %s after %v: %s", res.Ending, time.Since(began), res.Reason)
			}
			time.Sleep(31 * time.Second)
		}
		l := steps([]string{"true"})
		l.Image = "mute"
		began := time.Now()
		failing := r.put(l)
		time.Sleep(3 * time.Minute)
		if res := r.report(t, failing.Job).Result; res.Ending != jobs.VMFailed || time.Since(began) > 4*time.Minute {
			t.Errorf("its own job ended %s: %s", res.Ending, res.Reason)
		}
	})
}

// two is a catalog with an image more, whose machines say nothing.
type two struct{ catalog }

func (c two) Offered() []jobs.OfferedImage {
	list := c.catalog.Offered()
	mute := list[0]
	mute.Name, mute.Digest = "mute", "m"
	return append(list, mute)
}

func (c two) Offer(name string) (jobs.OfferedImage, bool) { return offered(c, name) }

func (c two) Template(ctx context.Context, image string, s jobs.Shape) (vmm.Template, string, error) {
	t, digest, err := c.catalog.Template(ctx, image, s)
	if image == "mute" {
		t.Dir = "snapshot"
	}
	return t, digest, err
}

// mending is a catalog whose one image can be built anew, and not made a template of.
type mending struct {
	changing
	broken atomic.Bool
	asked  atomic.Int64
}

func (m *mending) Template(ctx context.Context, image string, s jobs.Shape) (vmm.Template, string, error) {
	m.asked.Add(1)
	if m.broken.Load() {
		return vmm.Template{}, "", errors.New("not today")
	}
	return m.changing.Template(ctx, image, s)
}

// An image that is to be kept warm is so before anybody asks: also one whose template could not be made at first, and one that was built anew.
func TestWarmImageStaysWarm(t *testing.T) {
	earnest(t, func(t *testing.T, r *rig) {
		images := &mending{changing: changing{catalog: catalog{driver: r.cfg.Driver.Name()}, digest: "old"}}
		images.broken.Store(true)
		r.cfg.Images = images
		r.run(t)
		warm := func(when, template string) {
			t.Helper()
			res := r.report(t, r.put(steps([]string{"true"})).Job).Result
			if !res.Success() || !res.Phases.FromPool || res.Template != template {
				t.Errorf("%s: ended %s on %q, which was ready: %t", when, res.Ending, res.Template, res.Phases.FromPool)
			}
		}
		time.Sleep(time.Hour)
		if n := images.asked.Load(); n < 10 || n > 25 { // after 2, 4, 8, … 256 seconds, then every five minutes
			t.Errorf("in an hour its template was asked for %d times", n)
		}
		images.broken.Store(false)
		time.Sleep(6 * time.Minute)
		warm("mended", "template of old")
		images.mu.Lock()
		images.digest = "new"
		images.mu.Unlock()
		time.Sleep(5 * time.Second)
		warm("built anew", "template of new")
	})
}

// silenced is a ranch's driver: clones of a snapshot say nothing, as where its agent had been replaced when it was made.
type silenced struct {
	vmm.Driver
	mute vmm.Driver
}

func (s silenced) Prepare(ctx context.Context, t vmm.Template, a vmm.Attach) (vmm.Prepared, error) {
	if t.Dir == "snapshot" {
		return s.mute.Prepare(ctx, t, a)
	}
	return s.Driver.Prepare(ctx, t, a)
}

type divided struct{ ranch }

func (r divided) Template(ctx context.Context, image string, s jobs.Shape) (vmm.Template, string, error) {
	t, digest, err := r.ranch.Template(ctx, image, s)
	if jobs.SnapshotTenant(image) != "" {
		t.Dir = "snapshot"
	}
	return t, digest, err
}

// A snapshot is a tenant's own work: while one's clones do not answer, others' machines are made.
func TestSnapshotThatSaysNothing(t *testing.T) {
	earnest(t, func(t *testing.T, r *rig) {
		asked := make(chan struct{})
		once := sync.OnceFunc(func() { close(asked) })
		r.cfg.Driver = silenced{r.cfg.Driver, inproc.New(func(ctx context.Context, _ net.Conn) {
			once()
			<-ctx.Done()
		})}
		r.cfg.Images = divided{ranch{r.cfg.Images.(catalog), []string{jobs.SnapshotImage("default", "mute")}}}
		r.cfg.Makers, r.cfg.Ready, r.cfg.Prepared, r.cfg.Warm = 1, 0, 0, nil
		r.run(t)
		spec := steps([]string{"true"})
		spec.Image = jobs.SnapshotImage("default", "mute")
		l := r.put(spec)
		<-asked
		began := time.Now()
		if res := r.report(t, r.put(steps([]string{"true"})).Job).Result; !res.Success() || time.Since(began) > 10*time.Second {
			t.Errorf("another's job ended %s after %v: %s", res.Ending, time.Since(began), res.Reason)
		}
		time.Sleep(2 * time.Minute) // two machines are tried, each for a minute
		if res := r.report(t, l.Job).Result; res.Ending != jobs.VMFailed {
			t.Errorf("the snapshot's ended %s: %s", res.Ending, res.Reason)
		}
	})
}
