package worker

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker/demand"
)

// A pool keeps the machines of one template in three stages: prepared (a VMM that waits for the template's state), ready (restored,
// its agent has answered), in use (an attempt's, never seen again). Whoever takes a machine only waits; making one is the makers' work.
type pool struct {
	image  string
	shape  jobs.Shape
	digest string
	tmpl   vmm.Template
	ps     *pools
	least  int // machines to keep ready whatever the demand
	uses   *uses
	turns  chan struct{} // of its makers: all images', or a snapshot's own
	alone  chan struct{} // of its makers while they fail

	mu        sync.Mutex // guards what follows
	asked     time.Time  // when somebody took or gave up last
	demand    demand.Estimate
	ready     []*machine
	waiters   []chan made
	making    int
	prepared  []*spare
	preparing int
	failures  int       // in a row
	resting   bool      // after one: nothing is made but for who waits
	rests     time.Time // when the next tend ends that
	rested    int       // how often in a row
	closed    bool
}

// made is a machine or the reason for none.
type made struct {
	m   *machine
	err error
}

var errPoolClosed = errors.New("the worker is stopping")

// take gives a ready machine, or the next that is made; fromPool tells which.
func (p *pool) take(ctx context.Context) (_ *machine, fromPool bool, _ error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, false, errPoolClosed
	}
	p.asked = time.Now()
	p.demand.Asked(p.asked)
	if m := p.popReady(); m != nil {
		p.fill()
		p.mu.Unlock()
		return m, true, nil
	}
	w := make(chan made, 1)
	p.waiters = append(p.waiters, w)
	p.fill()
	p.mu.Unlock()
	select {
	case r := <-w:
		return r.m, false, r.err
	case <-ctx.Done():
		p.giveUp(w)
		return nil, false, context.Cause(ctx)
	}
}

// popReady gives the oldest machine that still lives; p.mu is held. The dead are closed on the side.
func (p *pool) popReady() *machine {
	for len(p.ready) > 0 {
		m := p.ready[0]
		p.ready = p.ready[1:]
		if !m.over() {
			return m
		}
		p.ps.dispose(m)
	}
	return nil
}

// giveUp takes a waiter out of the line; a machine that had come meanwhile goes back.
func (p *pool) giveUp(w chan made) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.waiters {
		if p.waiters[i] == w {
			p.waiters = append(p.waiters[:i], p.waiters[i+1:]...)
			return
		}
	}
	if r := <-w; r.m != nil {
		p.hand(made{m: r.m})
	}
}

// fill starts as many makers as machines are wanted; p.mu is held. After a failure only waiters are worth another try at once.
func (p *pool) fill() {
	if p.closed {
		return
	}
	ready, prepared := p.target()
	for len(p.ready)+p.making < ready+len(p.waiters) {
		var giveBack func()
		if p.making < len(p.waiters) {
			giveBack = p.ps.demand(p.shape.MemoryMiB)
		} else if room, ok := p.ps.reserve(p.shape.MemoryMiB); ok {
			giveBack = room
		} else {
			break // one more would only push another's out
		}
		p.making++
		wanted := time.Now()
		p.ps.makers.Go(func() { p.make(wanted, giveBack) })
	}
	for len(p.prepared)+p.preparing < prepared {
		p.preparing++
		p.ps.makers.Go(p.prepare)
	}
}

// target is how many machines and VMMs to keep; p.mu is held.
func (p *pool) target() (ready, prepared int) {
	if p.resting || p.ps.short.Load() {
		return 0, 0
	}
	ready = p.demand.Want(time.Now(), p.least, p.ps.cfg.ReadyMost)
	if p.failures > 0 { // one tells whether it goes again
		ready = min(ready, 1)
	}
	if ready > 0 {
		prepared = p.ps.cfg.Prepared
	}
	return ready, prepared
}

// make makes one machine, wanted since then, and hands it on. A pool whose template has been removed is over.
func (p *pool) make(wanted time.Time, giveBack func()) {
	m, err := p.restoreOne(giveBack)
	if err != nil {
		giveBack()
	}
	p.took(m, time.Since(wanted), err)
	if gone(err) {
		p.ps.drop(p)
	}
}

// gone tells that a template's files are not there any more.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) }

func (p *pool) took(m *machine, took time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.making--
	if err != nil {
		p.failed()
		p.ps.metrics.makeFailures.Inc()
	} else {
		p.failures, p.resting, p.rested = 0, false, 0
		p.demand.Made(took)
	}
	p.hand(made{m, err})
	p.fill()
	p.letGo()
}

// longestRest bounds how long nothing is made for the stock of a pool that fails again and again.
const longestRest = time.Minute

// failed notes a failure: the stock is tried again with the next tend, and after twice as long each time that it fails again; p.mu is held.
func (p *pool) failed() {
	p.failures++
	if p.resting { // it began to be made before
		return
	}
	p.resting = true
	p.rests = time.Now().Add(min(tendEvery<<p.rested, longestRest) - tendEvery)
	p.rested = min(p.rested+1, 10)
}

// hand gives what was made to whoever has waited longest, else to the pool; p.mu is held.
func (p *pool) hand(r made) {
	switch {
	case r.err != nil && p.failures < 2 && !gone(r.err) && !errors.Is(r.err, errNoPlace) && !p.closed && len(p.waiters) > 0: // one failure may be that machine's own: fill makes another
		zerolog.Ctx(p.ps.ctx).Warn().Err(r.err).Str("image", p.image).Msg("machine failed, making another")
	case len(p.waiters) > 0:
		p.waiters[0] <- r
		p.waiters = p.waiters[1:]
	case r.m == nil && p.ps.ctx.Err() != nil: // the worker stops
	case r.m == nil:
		zerolog.Ctx(p.ps.ctx).Error().Err(r.err).Str("image", p.image).Int("failures", p.failures).Msg("cannot make machine")
	case p.closed:
		p.ps.dispose(r.m)
	default:
		p.ready = append(p.ready, r.m)
	}
}

// restoreOne restores a machine into a prepared VMM, or into one made now.
func (p *pool) restoreOne(giveBack func()) (*machine, error) {
	for {
		v := p.popPrepared()
		waited := v != nil
		if !waited {
			var err error
			if v, err = p.place(p.ps.ctx); err != nil {
				return nil, err
			}
		}
		m, err := p.restoreInTurn(v)
		if err == nil {
			p.uses.add()
			m.closed = sync.OnceFunc(func() { giveBack(); p.uses.done() })
			return m, nil
		}
		if !waited || p.ps.ctx.Err() != nil {
			return nil, err
		}
		// A VMM may die while it waits: only a fresh one's failure says something about the template.
		zerolog.Ctx(p.ps.ctx).Warn().Err(err).Str("image", p.image).Msg("prepared machine failed, trying the next")
	}
}

// restoreInTurn takes a turn among the makers, and restores a machine. On error nothing is left of v.
func (p *pool) restoreInTurn(v *spare) (*machine, error) {
	release, err := p.turn()
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	defer release()
	p.ps.makeRoom(p)
	if v.Prepared == nil {
		if err := p.start(v); err != nil {
			return nil, err
		}
	}
	return p.restore(p.ps.ctx, v)
}

// popPrepared gives the VMM prepared last, or nil.
func (p *pool) popPrepared() *spare {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.prepared)
	if n == 0 {
		return nil
	}
	v := p.prepared[n-1]
	p.prepared = p.prepared[:n-1]
	return v
}

// prepare makes one VMM that waits for a template's state.
func (p *pool) prepare() {
	v, err := p.prepareOne()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.preparing--
	switch {
	case err != nil && p.ps.ctx.Err() != nil: // the worker stops
	case err != nil:
		p.failed()
		zerolog.Ctx(p.ps.ctx).Error().Err(err).Str("image", p.image).Msg("cannot prepare machine")
	case p.closed:
		p.ps.disposeOf(v.Close)
	default:
		p.prepared = append(p.prepared, v)
	}
	p.letGo()
}

func (p *pool) prepareOne() (*spare, error) {
	v, err := p.place(p.ps.ctx)
	if err != nil {
		return nil, err
	}
	release, err := p.turn()
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	defer release()
	return v, p.start(v)
}

// tend drops machines that died while they waited, and tries again after failures.
func (p *pool) tend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	live := p.ready[:0]
	for _, m := range p.ready {
		if m.over() {
			p.ps.dispose(m)
			continue
		}
		live = append(live, m)
	}
	clear(p.ready[len(live):])
	p.ready = live
	if !time.Now().Before(p.rests) {
		p.resting = false
	}
	p.shrink()
	p.fill()
}

// shrink ends one machine more than there is demand for, and half of all that wait while the host is short of memory; p.mu is held.
func (p *pool) shrink() {
	surplus := 0
	switch ready, _ := p.target(); {
	case p.ps.short.Load():
		surplus = (len(p.ready) + 1) / 2
		for _, v := range p.prepared {
			p.ps.disposeOf(v.Close)
		}
		p.prepared = nil
	case len(p.ready) > ready:
		surplus = 1
	}
	for _, m := range p.ready[:surplus] {
		p.ps.dispose(m)
	}
	p.ready = p.ready[surplus:]
	p.ps.metrics.shed.Add(float64(surplus))
}

// close ends what waits. Machines in use are their attempts' to end.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, w := range p.waiters {
		w <- made{err: errPoolClosed}
	}
	for _, m := range p.ready {
		p.ps.dispose(m)
	}
	for _, v := range p.prepared {
		p.ps.disposeOf(v.Close)
	}
	p.waiters, p.ready, p.prepared = nil, nil, nil
	p.letGo()
}

// letGo has the template released when the pool is closed and its last maker has returned; p.mu is held.
func (p *pool) letGo() {
	if p.closed && p.making+p.preparing == 0 {
		p.ps.makers.Go(func() {
			p.ps.release(p.tmpl)
			p.uses.poolDone()
		})
	}
}

// uses counts those that need a template's snapshot: its pool, as long as it may make machines of it, and each machine, of which another
// snapshot may be made.
type uses struct {
	n        atomic.Int64
	poolDone func() // may be called again
	release  func()
}

func newUses(release func()) *uses {
	u := &uses{release: release}
	u.add()
	u.poolDone = sync.OnceFunc(u.done)
	return u
}

func (u *uses) add() { u.n.Add(1) }

func (u *uses) done() {
	if u.n.Add(-1) == 0 {
		u.release()
	}
}

// idleSince tells whether nobody has asked for a machine since then, of a pool that keeps none of itself and has nobody who waits.
func (p *pool) idleSince(then time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.least == 0 && p.asked.Before(then) && len(p.waiters) == 0 && p.making == 0
}

// evict ends one ready machine to make room and tells whether there was one.
func (p *pool) evict() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ready) == 0 {
		return false
	}
	p.ps.dispose(p.ready[0])
	p.ready = p.ready[1:]
	return true
}

func (p *pool) readyCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ready)
}
