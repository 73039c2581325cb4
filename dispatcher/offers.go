package dispatcher

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// offer is what the workers of a place can run, one or another.
type offer struct {
	images    map[string]jobs.OfferedImage // nil: no worker is known, anywhere
	networks  map[string]bool              // what is offered of networks
	largest   jobs.Resources               // capacity
	callback  func(url string) error       // Config.Callback
	partial   bool                         // workers are expected that have not been heard of yet
	elsewhere []string                     // where there are workers, in words, and none in this place
}

// place is where a job may run: a pool, and what it requires there.
type place struct {
	pool, requires string
}

func placeOf(s *jobs.Spec) place {
	return place{cmp.Or(s.Pool, jobs.DefaultPool), jobs.Required(s.Requires)}
}

// holds tells whether a worker is in the place.
func (p place) holds(w *worker) bool {
	if poolOf(w.beat) != p.pool {
		return false
	}
	for need := range strings.SplitSeq(p.requires, ",") {
		if k, v, ok := strings.Cut(need, "="); ok && w.beat.Labels[k] != v {
			return false
		}
	}
	return true
}

// offers gives what is offered now in a place; d.mu is held.
func (d *Dispatcher) offers(p place) offer {
	o := offer{networks: map[string]bool{}, partial: len(d.expected) > 0 && time.Now().Before(d.doubtUntil), callback: d.cfg.Callback}
	for _, w := range d.workers {
		if w.waiting && w.kept == nil {
			continue
		}
		if o.images == nil && len(w.beat.Images) > 0 {
			o.images = map[string]jobs.OfferedImage{}
		}
		if !p.holds(w) {
			o.elsewhere = append(o.elsewhere, fmt.Sprintf("pool %s (%s)", poolOf(w.beat), jobs.Required(w.beat.Labels)))
			continue
		}
		for _, i := range w.beat.Images {
			o.images[i.Name] = i
		}
		for _, n := range w.beat.Networks {
			o.networks[n] = true
		}
		o.largest.VCPUs = max(o.largest.VCPUs, w.beat.Capacity.VCPUs)
		o.largest.MemoryMiB = max(o.largest.MemoryMiB, w.beat.Capacity.MemoryMiB)
	}
	if len(o.images) > 0 {
		o.elsewhere = nil
	}
	return o
}

// expectedFor is after how long without a word, which is noted every minute, a worker is not expected any more.
const expectedFor = 10 * time.Minute

// comes notes that a worker which is expected is there, though the ledger may not take it for a while yet.
func (d *Dispatcher) comes(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.expected[name] {
		d.doubtUntil = later(d.doubtUntil, time.Now().Add(d.cfg.LeaseTTL+d.cfg.Grace))
	}
}

// recallWorkers takes up what the ledger says of workers, of which none has been heard of by this dispatcher: what they offer counts on, for as long
// as it would have with the last one. Those of which it does not say what they offer, since a dispatcher of the version before led, are
// expected: until they have been heard of, or could have been, what nobody offers is refused for a while only. d.mu is held.
func (d *Dispatcher) recallWorkers(all []ledger.Worker, now time.Time) {
	last := time.Time{} // and not now: the clocks of dispatchers differ
	for _, w := range all {
		last = later(last, w.Seen)
	}
	for _, w := range all {
		d.flags[w.Name] = w.Flags
		silent := last.Sub(w.Seen)
		var offer jobs.Beat
		if err := json.Unmarshal(w.Offer, &offer); err != nil { // there is none
			if silent < expectedFor {
				d.expected[w.Name] = true
			}
			continue
		}
		if silent < 2*forgetEvery { // it may live: when it was seen is noted once in that time
			silent = 0
		}
		if silent <= forgetAfter {
			d.workers[w.Name] = &worker{name: w.Name, session: w.Session, seen: now.Add(-silent), waiting: true, beat: offer, kept: w.Offer}
		}
	}
	d.doubtUntil = now.Add(d.cfg.LeaseTTL + d.cfg.Grace)
}

// offerOf is what the ledger keeps of a heartbeat: what the next dispatcher has to know of a worker that it has not heard of.
func offerOf(b jobs.Beat) []byte {
	offer, _ := json.Marshal(jobs.Beat{ // strings and numbers: it cannot fail
		Worker: b.Worker, Version: b.Version, Capacity: b.Capacity, Images: b.Images, Networks: b.Networks, Driver: b.Driver, Degraded: b.Degraded,
		Pool: b.Pool, Labels: b.Labels, Contract: b.Contract,
	})
	return offer
}

// offersMoved has what a worker offers kept, where that is new; d.mu is held.
func (d *Dispatcher) offersMoved(w *worker) {
	if !bytes.Equal(w.kept, offerOf(w.beat)) {
		d.newOffer.set()
	}
}

// living are the workers that have been heard of lately, with what is new of what they offer.
func (d *Dispatcher) living() (list []ledger.Seen) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.workers {
		if w.lost || w.waiting {
			continue
		}
		s := ledger.Seen{Worker: w.name, At: w.seen}
		if offer := offerOf(w.beat); !bytes.Equal(w.kept, offer) {
			s.Offer = offer
		}
		list = append(list, s)
	}
	return list
}

// note has the ledger keep when workers were heard of, every minute, and at once what they newly offer, until ctx ends.
func (d *Dispatcher) note(ctx context.Context) error {
	tick := time.NewTicker(forgetEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.newOffer:
		case <-tick.C:
		}
		list := d.living()
		if err := d.cfg.Store.Seen(ctx, list); err != nil {
			if ctx.Err() == nil {
				zerolog.Ctx(ctx).Error().Err(err).Msg("note which workers live") // the next tick, or a worker's next heartbeat, tries again
			}
			continue
		}
		d.mu.Lock()
		for _, s := range list {
			if w := d.workers[s.Worker]; w != nil && s.Offer != nil {
				w.kept = s.Offer
			}
		}
		d.mu.Unlock()
	}
}
