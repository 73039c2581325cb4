package worker

import (
	"context"
	"runtime"
	"sync"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/jobs"
)

// pools are the pools of all templates, and the makers that they share.
type pools struct {
	cfg     Config
	cap     *capacity
	metrics *metrics
	ctx     context.Context //nolint:containedctx // of the makers, which outlive every call: set by run, before any pool exists
	sem     chan struct{}
	makers  sync.WaitGroup
	started chan struct{} // closed when run has set ctx

	mu     sync.Mutex
	pools  map[poolKey]*poolOnce
	memory int // MiB of all machines that live
}

// poolKey names a pool: an image that is built anew is another one.
type poolKey struct {
	image, digest string
	size          jobs.Resources
}

// poolOnce is a pool whose template may still be being built.
type poolOnce struct {
	done chan struct{}
	pool *pool
	err  error
}

func newPools(cfg Config, c *capacity, m *metrics) *pools {
	n := cfg.Makers
	if n == 0 {
		n = max(1, runtime.GOMAXPROCS(0)/2)
	}
	return &pools{cfg: cfg, cap: c, metrics: m, sem: make(chan struct{}, n), started: make(chan struct{}), pools: map[poolKey]*poolOnce{}}
}

// run keeps the pools until ctx ends, then ends every machine that waits and returns when nothing is left of them.
func (ps *pools) run(ctx context.Context) error {
	ps.ctx = ctx
	close(ps.started)
	var warm sync.WaitGroup
	for _, image := range ps.cfg.Warm {
		warm.Go(func() {
			if _, err := ps.of(ctx, image, ps.size(image, jobs.Resources{})); err != nil && ctx.Err() == nil {
				zerolog.Ctx(ctx).Error().Err(err).Str("image", image).Msg("cannot warm image")
			}
		})
	}
	ps.tendAll(ctx)
	warm.Wait()
	for _, p := range ps.all() {
		p.close()
	}
	ps.makers.Wait()
	for _, p := range ps.all() { // what the last makers handed in
		p.close()
	}
	ps.makers.Wait()
	return nil
}

// of gives the pool of an image in a size; the first to ask waits for its template, which may have to be built.
func (ps *pools) of(ctx context.Context, image string, size jobs.Resources) (*pool, error) {
	<-ps.started
	o, stale := ps.find(poolKey{image, ps.digest(image), size})
	for _, p := range stale {
		p.close()
	}
	select {
	case <-o.done:
		return o.pool, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

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

// drop forgets a pool: the next to ask has its template made again.
func (ps *pools) drop(p *pool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for k, o := range ps.pools {
		if o.pool == p {
			delete(ps.pools, k)
		}
	}
}

// digest is the image's now; empty for one that is not offered.
func (ps *pools) digest(image string) string {
	for _, o := range ps.cfg.Images.Offered() {
		if o.Name == image {
			return o.Digest
		}
	}
	return ""
}

// open gets the template of a new pool. A failure is told to those who wait and forgotten: the next to ask tries again.
func (ps *pools) open(key poolKey, o *poolOnce) {
	defer close(o.done)
	t, digest, err := ps.cfg.Images.Template(ps.ctx, key.image, key.size)
	if err != nil {
		o.err = err
		ps.mu.Lock()
		defer ps.mu.Unlock()
		delete(ps.pools, key)
		return
	}
	p := &pool{image: key.image, size: key.size, digest: digest, tmpl: t, ps: ps}
	ps.mu.Lock()
	o.pool = p
	ps.mu.Unlock()
	p.mu.Lock() // never while ps.mu is held: a pool that fills asks for room
	defer p.mu.Unlock()
	p.fill()
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

// size gives r with what it leaves out taken from the image.
func (ps *pools) size(image string, r jobs.Resources) jobs.Resources {
	for _, o := range ps.cfg.Images.Offered() {
		if o.Name == image {
			if r.VCPUs == 0 {
				r.VCPUs = o.Resources.VCPUs
			}
			if r.MemoryMiB == 0 {
				r.MemoryMiB = o.Resources.MemoryMiB
			}
		}
	}
	return jobs.Resources{VCPUs: max(r.VCPUs, 1), MemoryMiB: max(r.MemoryMiB, 1)}
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

// hasRoom tells whether another machine of the size fits beside those that live.
func (ps *pools) hasRoom(size jobs.Resources) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.memory+size.MemoryMiB <= ps.cfg.Capacity.MemoryMiB
}

// makeRoom counts a machine about to be made in, ending ready ones of other pools where they are in its way.
func (ps *pools) makeRoom(p *pool) (giveBack func()) {
	ps.count(p.size.MemoryMiB)
	for _, other := range ps.all() {
		for other != p && !ps.hasRoom(jobs.Resources{}) && other.evict() {
		}
	}
	return sync.OnceFunc(func() { ps.count(-p.size.MemoryMiB) })
}

func (ps *pools) count(mib int) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.memory += mib
}

// turn waits for a place among the makers.
func (ps *pools) turn() (release func(), _ error) {
	select {
	case ps.sem <- struct{}{}:
		return func() { <-ps.sem }, nil
	case <-ps.ctx.Done():
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
