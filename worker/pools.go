package worker

import (
	"cmp"
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker/demand"
)

// pools are the pools of all templates, and the makers that they share. Of an image's own shape some machines are always ready. Of others,
// of which clients may name as many as they like, as many as there is demand for: none for who asks once, and their templates go when
// nobody has asked for a while.
type pools struct {
	cfg     Config
	metrics *metrics
	ctx     context.Context //nolint:containedctx // of the makers, which outlive every call: set by run, before any pool exists
	turns   chan struct{}
	makers  sync.WaitGroup
	started chan struct{} // closed when run has set ctx

	mu      sync.Mutex
	pools   map[poolKey]*poolOnce
	warmths map[string]*warmth // of the images in cfg.Warm
	memory  int                // MiB of all machines that live or are being made

	short atomic.Bool // the host is short of memory
}

// poolKey names a pool: an image that is built anew is another one.
type poolKey struct {
	image, digest string
	shape         jobs.Shape
}

// poolOnce is a pool whose template may still be being built.
type poolOnce struct {
	done chan struct{}
	pool *pool
	err  error
}

func newPools(cfg Config, m *metrics) *pools {
	return &pools{cfg: cfg, metrics: m, turns: make(chan struct{}, cmp.Or(cfg.Makers, makers(cfg.Caps.Accel))), started: make(chan struct{}), pools: map[poolKey]*poolOnce{}, warmths: map[string]*warmth{}}
}

// makers is how many machines this host makes at once. Who makes one mostly waits for others, for a millisecond or some; an emulator takes a
// processor for as long as it warms up, from programs that run.
func makers(accel string) int {
	n := runtime.GOMAXPROCS(0)
	if accel == "tcg" {
		n /= 2
	}
	return max(1, n)
}

// run keeps the pools until ctx ends, then ends every machine that waits and returns when nothing is left of them.
func (ps *pools) run(ctx context.Context) error {
	ps.ctx = ctx
	close(ps.started)
	var warm sync.WaitGroup
	ps.warmUp(ctx, &warm)
	ps.tendAll(ctx, &warm)
	warm.Wait()
	for _, p := range ps.all() {
		ps.drop(p)
	}
	ps.makers.Wait()
	for _, p := range ps.all() { // whose template came last
		ps.drop(p)
	}
	ps.makers.Wait()
	return nil
}

const (
	// tendEvery is how often pools look after themselves, and how soon one that has failed is tried again for the first time.
	tendEvery = 2 * time.Second
	// keepIdle is how long a pool of an unusual size stays that nobody asks for.
	keepIdle = 5 * time.Minute
)

// tendAll tends the pools that exist, and those that shall, until ctx ends.
func (ps *pools) tendAll(ctx context.Context, warm *sync.WaitGroup) {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		ps.short.Store(ps.cfg.Short != nil && ps.cfg.Short())
		for _, p := range ps.obsolete() {
			ps.drop(p)
		}
		for _, p := range ps.all() {
			if p.idleSince(time.Now().Add(-keepIdle)) {
				ps.drop(p)
				continue
			}
			p.tend()
		}
		ps.warmUp(ctx, warm)
	}
}

// claimed is a machine in an attempt's hand.
type claimed struct {
	*machine
	template string // the digest of what it was cloned from
	fromPool bool   // it was there before it was asked for
}

// take gives a machine of an image in a shape. A pool that is closed meanwhile, because its image was built anew, is not the last word.
func (ps *pools) take(ctx context.Context, image string, shape jobs.Shape) (claimed, error) {
	for {
		p, err := ps.of(ctx, image, shape)
		if err != nil {
			return claimed{}, &failure{jobs.ImageFailed, err}
		}
		m, fromPool, err := p.take(ctx)
		if err == nil {
			return claimed{m, p.digest, fromPool}, nil
		}
		if !errors.Is(err, errPoolClosed) || ctx.Err() != nil || ps.ctx.Err() != nil {
			return claimed{}, err
		}
	}
}

// of gives the pool of an image in a shape; the first to ask waits for its template, which may have to be built.
func (ps *pools) of(ctx context.Context, image string, shape jobs.Shape) (*pool, error) {
	<-ps.started
	for {
		offered := ps.offered(image)
		o, stale := ps.find(poolKey{image, offered.Digest, shape})
		for _, p := range stale {
			p.close()
		}
		select {
		case <-o.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if !errors.Is(o.err, errRebuilt) {
			return o.pool, o.err
		}
	}
}

// errRebuilt is why there is no pool of an image as it was: it was built anew meanwhile.
var errRebuilt = errors.New("the image was built anew")

// find gives a pool, opening it where there is none, and takes out those of other builds of its image.
func (ps *pools) find(key poolKey) (o *poolOnce, stale []*pool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if o = ps.pools[key]; o != nil {
		return o, nil
	}
	for k, old := range ps.pools {
		if k.image == key.image && k.digest != key.digest && old.pool != nil {
			stale = append(stale, old.pool)
			delete(ps.pools, k)
		}
	}
	o = &poolOnce{done: make(chan struct{})}
	ps.pools[key] = o
	ps.makers.Go(func() { ps.open(key, o) })
	return o, stale
}

// open gets the template of a new pool. A failure is told to those who wait and forgotten: the next to ask tries again.
func (ps *pools) open(key poolKey, o *poolOnce) {
	defer close(o.done)
	t, digest, err := ps.cfg.Images.Template(ps.ctx, key.image, key.shape)
	offered := ps.offered(key.image)
	uses := newUses(func() { ps.giveUp(t) })
	if err == nil && offered.Digest != key.digest {
		err = errRebuilt
		uses.poolDone()
	}
	p := &pool{image: key.image, shape: key.shape, digest: digest, tmpl: t, ps: ps, uses: uses, demand: demand.New(), asked: time.Now()}
	p.turns, p.alone = ps.turns, make(chan struct{}, 1)
	if offered.Snapshot { // what runs in it from its beginning may be somebody's who lets others wait
		p.turns = make(chan struct{}, cap(ps.turns))
	}
	if key.shape == ps.own(key.image) && !offered.Snapshot { // one is run as often as it is asked for
		p.least = ps.cfg.Ready
	}
	ps.mu.Lock()
	if o.err = err; err != nil {
		delete(ps.pools, key)
	} else {
		o.pool = p
	}
	ps.mu.Unlock()
	if err != nil {
		return
	}
	p.mu.Lock() // never while ps.mu is held: a pool that fills asks for room
	defer p.mu.Unlock()
	p.fill()
}

// drop forgets a pool, ends what waits in it, and gives up what the driver keeps for its template: the next to ask begins anew.
func (ps *pools) drop(p *pool) {
	ps.mu.Lock()
	for k, o := range ps.pools {
		if o.pool == p {
			delete(ps.pools, k)
		}
	}
	ps.mu.Unlock()
	p.close()
}

// release lets the driver forget a template that no pool clones any more.
func (ps *pools) release(t vmm.Template) {
	for _, p := range ps.all() {
		if p.tmpl.Dir == t.Dir {
			return
		}
	}
	r, ok := ps.cfg.Driver.(vmm.Releaser)
	if !ok {
		return
	}
	if err := r.Release(t.Dir); err != nil {
		zerolog.Ctx(ps.ctx).Error().Err(err).Msg("release template")
	}
}

// giveUp tells the images that a template is not needed by those for whom it was given.
func (ps *pools) giveUp(t vmm.Template) {
	if r, ok := ps.cfg.Images.(templateReleaser); ok {
		r.Release(t)
	}
}

// all are the pools whose templates are there.
func (ps *pools) all() []*pool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var l []*pool
	for _, o := range ps.pools {
		if o.pool != nil {
			l = append(l, o.pool)
		}
	}
	return l
}

// obsolete are the pools of images that were removed, or built anew: nobody gets a machine of theirs any more. Those of snapshots go when nobody has
// asked for a while, whatever becomes of the snapshots.
func (ps *pools) obsolete() []*pool {
	ps.mu.Lock()
	there := map[poolKey]*pool{}
	for key, o := range ps.pools {
		if o.pool != nil && jobs.SnapshotTenant(key.image) == "" {
			there[key] = o.pool
		}
	}
	ps.mu.Unlock()
	var l []*pool
	for key, p := range there {
		if ps.offered(key.image).Digest != key.digest {
			l = append(l, p)
		}
	}
	return l
}

// offered is an image as it is now; nothing for one that is not there.
func (ps *pools) offered(image string) jobs.OfferedImage {
	o, _ := ps.cfg.Images.Offer(image)
	return o
}

// size gives r with what it leaves out taken from the image.
func (ps *pools) size(image string, r jobs.Resources) jobs.Resources {
	return jobs.MachineSize(r, ps.offered(image).Resources)
}

// own is the shape of an image's machines where a job asks for nothing else.
func (ps *pools) own(image string) jobs.Shape {
	return jobs.Shape{Resources: ps.size(image, jobs.Resources{})}
}

// warm counts ready machines by image.
func (ps *pools) warm() map[string]int {
	m := map[string]int{}
	for _, p := range ps.all() {
		if n := p.readyCount(); n > 0 {
			m[p.image] += n
		}
	}
	return m
}

// readyCount counts ready machines.
func (ps *pools) readyCount() (n int) {
	for _, p := range ps.all() {
		n += p.readyCount()
	}
	return n
}

// reserve counts a machine in that is made for the pool's stock; false where there is no room for it.
func (ps *pools) reserve(mib int) (giveBack func(), ok bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.memory+mib > ps.cfg.Capacity.MemoryMiB {
		return nil, false
	}
	return ps.count(mib), true
}

// demand counts a machine in that somebody waits for.
func (ps *pools) demand(mib int) (giveBack func()) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.count(mib)
}

// count changes the memory in use; ps.mu is held.
func (ps *pools) count(mib int) (giveBack func()) {
	ps.memory += mib
	return sync.OnceFunc(func() {
		ps.mu.Lock()
		defer ps.mu.Unlock()
		ps.memory -= mib
	})
}

// makeRoom ends ready machines of other pools while more memory is counted than there is.
func (ps *pools) makeRoom(p *pool) {
	for _, other := range ps.all() {
		for other != p && ps.over() && other.evict() {
		}
	}
}

func (ps *pools) over() bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.memory > ps.cfg.Capacity.MemoryMiB
}

// turn waits for a place among the makers, of images or of this snapshot. Who has one waits for nobody who may need a machine to be made, or to end.
// A pool whose machines fail makes them one at a time and beside all others: each may be waited for until ReadyWithin is over.
func (p *pool) turn() (release func(), _ error) {
	p.mu.Lock()
	turns := p.turns
	if p.failures > 0 {
		turns = p.alone
	}
	p.mu.Unlock()
	select {
	case turns <- struct{}{}:
		return func() { <-turns }, nil
	case <-p.ps.ctx.Done():
		return nil, errPoolClosed
	}
}

func (ps *pools) dispose(m *machine) { ps.disposeOf(m.Close) }

// disposeOf closes on the side; run waits for it.
func (ps *pools) disposeOf(closer func() error) {
	ps.makers.Go(func() {
		if err := closer(); err != nil {
			zerolog.Ctx(ps.ctx).Error().Err(err).Msg("close machine")
		}
	})
}
