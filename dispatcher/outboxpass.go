package dispatcher

import (
	"context"
	"time"
)

// passes counts how often the outbox was read to its end.
type passes struct {
	begun, ended int64
	good         int64 // the last that did not fail
	// stirred is closed, and made anew, when a pass has ended, or something has gone out apart.
	stirred chan struct{}
}

func (d *Dispatcher) passBegins() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.passes.begun++
}

func (d *Dispatcher) passEnds(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.passes.ended = d.passes.begun
	if err == nil {
		d.passes.good = d.passes.begun
	}
	d.stir()
}

// stir wakes those who wait for something to be out; d.mu is held.
func (d *Dispatcher) stir() {
	close(d.passes.stirred)
	d.passes.stirred = make(chan struct{})
}

// toldWithin bounds the wait for what is to be out before a lease: those who ask for leases do not wait for ever.
const toldWithin = time.Second

// notOut gives those of some jobs of which something that was committed until now is not out. It waits for that, but not for long, and not for what
// the broker did not take.
func (d *Dispatcher) notOut(ctx context.Context, ids []string) (left map[string]bool) {
	if len(ids) == 0 {
		return nil
	}
	limit := time.NewTimer(toldWithin)
	defer limit.Stop()
	d.mu.Lock()
	pass := d.passes.begun + 1
	d.mu.Unlock()
	d.nudge()
	for {
		left, wait, stirred := d.leftOf(ids, pass)
		if !wait {
			return left
		}
		select {
		case <-stirred:
		case <-limit.C:
			return left
		case <-ctx.Done():
			return left
		}
	}
}

// leftOf gives those of some jobs of which something is not out, or may not be before a pass has ended, and whether that may change soon.
func (d *Dispatcher) leftOf(ids []string, pass int64) (left map[string]bool, wait bool, stirred <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	left = map[string]bool{}
	for _, id := range ids {
		u := d.untold[id]
		if d.passes.good < pass || u != nil {
			left[id] = true
		}
		if u != nil && (u.going || u.pause == 0) {
			wait = true
		}
	}
	return left, wait || d.passes.ended < pass, d.passes.stirred
}
