package dispatcher

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

const (
	outboxBatch = 256
	outboxRetry = 500 * time.Millisecond
	// outboxWhole is how often the outbox is read from its first row where rows stay in it: one whose commit was not known to have happened may
	// appear before others that have been read.
	outboxWhole = time.Minute
	// askWithin bounds each question to the broker, and askAtOnce is how many there are of those about one page.
	askWithin = 2 * time.Second
	askAtOnce = 16
	// refusedFor is how long a page is not taken before it is found out whether that is for some of its events only, with so many of them at a
	// time as probes says.
	refusedFor = 10 * time.Second
	probes     = 4
)

// unnumbered is the Seq of an event that ends an attempt whose worker is lost and may still be writing: which is its last only the broker
// can tell, at the moment when it takes this one.
const unnumbered = 0

// An event is forgotten only after the broker has it. Whether it has the events that were being published when this process's last life
// ended, or when the broker or the ledger did not answer, is asked before they are published again: the broker itself knows a repeat
// for minutes only, and a viewer must not see a second end.
//
// The outbox is read page by page, and a page's events are published together, the oldest first. What takes its own time goes apart, and holds
// up only what has to come after it: see untold.go.

// reading is how far the outbox has been read.
type reading struct {
	after  int64     // the row up to which all are out, or go apart
	unsure int64     // the row up to which the broker may have what it is asked to take
	whole  time.Time // when it was last begun at the first row
	// silent are rows about which the broker did not answer when they were read last, and did about others.
	silent map[int64]bool
	// refused is since when the broker does not take a page, zero where it does; probed is how many of the page's events were tried alone since.
	refused time.Time
	probed  int
}

// drainOutbox publishes the events that transitions have committed, in their order, until ctx ends.
func (d *Dispatcher) drainOutbox(ctx context.Context) error {
	r := reading{unsure: math.MaxInt64}
	for failed := false; ; {
		d.passBegins()
		err := d.readOutbox(ctx, &r)
		d.passEnds(err)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // stopping; what was not published is in the ledger
		}
		pause := outboxWhole
		switch {
		case err != nil:
			zerolog.Ctx(ctx).Warn().Err(err).Msg("publish outbox")
			pause = outboxRetry
		case failed:
			d.untoldNow() // the broker is back
		}
		failed = err != nil
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-d.outbox:
		case <-t.C:
		}
		t.Stop()
	}
}

// readOutbox publishes what is in the outbox and was not read yet.
func (d *Dispatcher) readOutbox(ctx context.Context, r *reading) error {
	if !d.anyUntold() || time.Since(r.whole) >= outboxWhole {
		r.unsure = max(r.unsure, r.after) // of what went apart some may be gone when it has been read
		r.after, r.whole = 0, time.Now()
	}
	for {
		page, err := d.cfg.Store.Outbox(ctx, r.after, outboxBatch)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return nil
		}
		last := page[len(page)-1].ID
		if err := d.publishPage(ctx, page, r); err != nil {
			r.unsure = max(r.unsure, last)
			return err
		}
		r.after = last
		if len(page) < outboxBatch {
			r.unsure = 0
			return nil
		}
	}
}

// publishPage publishes a page's events where the broker does not have them, and has told apart what does not go with the others.
func (d *Dispatcher) publishPage(ctx context.Context, page []ledger.Outgoing, r *reading) error {
	var list, apart []ledger.Outgoing
	own := map[string]bool{} // whose events go apart
	for _, o := range page {
		if key := untoldKey(o); o.Batch != nil || o.Event.Seq == unnumbered || own[key] || d.isUntold(key) {
			own[key] = true
			apart = append(apart, o)
			continue
		}
		list = append(list, o)
	}
	there, silent, err := d.prepareAll(ctx, list, r)
	if err != nil {
		return err
	}
	var fresh []ledger.Outgoing
	var done []int64
	behind := map[string]bool{} // of whose events one before is silent
	for i, o := range list {
		switch key := untoldKey(o); {
		case silent[o.ID] || behind[key]:
			behind[key] = true
			apart = append(apart, o)
		case there[i]:
			done = append(done, o.ID)
		default:
			fresh = append(fresh, o)
		}
	}
	taken, refused, err := d.publishAll(ctx, fresh, r)
	if err != nil {
		return err
	}
	unsure := r.unsure
	if len(refused) > 0 {
		apart, unsure = append(apart, refused...), max(unsure, page[len(page)-1].ID) // some may be out, together with the one that it would not have
	}
	for _, o := range taken {
		done = append(done, o.ID)
	}
	if err := d.cfg.Store.Published(ctx, done); err != nil {
		return err
	}
	return d.apart(ctx, apart, unsure)
}

// publishAll publishes events together. Where the broker does not take them for long, and then takes one of them alone, the others are refused:
// it is the fault of some, and no other's.
func (d *Dispatcher) publishAll(ctx context.Context, list []ledger.Outgoing, r *reading) (taken, refused []ledger.Outgoing, err error) {
	events := make([]jobs.Event, len(list))
	for i, o := range list {
		events[i] = o.Event
	}
	if err = d.publish(ctx, events); err == nil {
		r.refused, r.probed = time.Time{}, 0
		return list, nil, nil
	}
	if r.refused.IsZero() {
		r.refused = time.Now()
	}
	if time.Since(r.refused) < refusedFor {
		return nil, nil, err
	}
	firsts := firstOfEach(list)
	for range min(probes, len(firsts)) {
		at := firsts[r.probed%len(firsts)]
		r.probed++
		if d.publish(ctx, events[at:at+1]) == nil {
			zerolog.Ctx(ctx).Warn().Err(err).Int("events", len(list)).Msg("events are refused together, and published alone")
			r.refused, r.probed = time.Time{}, 0
			return list[at : at+1], slices.Concat(list[:at], list[at+1:]), nil
		}
	}
	return nil, nil, err
}

// firstOfEach gives where each job's first event is.
func firstOfEach(list []ledger.Outgoing) (at []int) {
	seen := map[string]bool{}
	for i, o := range list {
		if !seen[o.Event.Job] {
			seen[o.Event.Job] = true
			at = append(at, i)
		}
	}
	return at
}

// prepareAll prepares events, and gives which are out already. Those about which the broker does not answer, again and while it does about
// others, are silent; else its silence is an error.
func (d *Dispatcher) prepareAll(ctx context.Context, list []ledger.Outgoing, r *reading) (there []bool, silent map[int64]bool, err error) {
	there = make([]bool, len(list))
	errs := make([]error, len(list))
	var g errgroup.Group
	g.SetLimit(askAtOnce)
	for i, o := range list {
		if o.ID > r.unsure && !o.Dead {
			continue
		}
		g.Go(func() error {
			there[i], errs[i] = d.prepare(ctx, o, o.ID <= r.unsure)
			return nil
		})
	}
	_ = g.Wait() // errs has them
	before, some := r.silent, slices.Contains(errs, nil)
	r.silent = map[int64]bool{}
	again := some
	for i, o := range list {
		if errs[i] != nil {
			r.silent[o.ID] = some
			again = again && before[o.ID]
			err = errs[i]
		}
	}
	if err != nil && !again {
		return nil, nil, err
	}
	return there, r.silent, nil
}

// prepare does what comes before an event is out, and gives whether that is so already, where nobody is sure.
func (d *Dispatcher) prepare(ctx context.Context, o ledger.Outgoing, unsure bool) (there bool, err error) {
	if unsure {
		asking, cancel := context.WithTimeout(ctx, askWithin)
		defer cancel()
		if there, err = d.cfg.Events.Has(asking, o.Event); err != nil || there {
			return there, err
		}
	}
	if o.Dead { // its event then tells that this has been done
		return false, d.bury(ctx, o)
	}
	return false, nil
}

// publish publishes events together, or one after the other where one of them is more than a message carries: that one is given up, for
// it would hold up everybody's for ever. Workers keep results far below.
func (d *Dispatcher) publish(ctx context.Context, events []jobs.Event) error {
	if len(events) == 0 {
		return nil
	}
	err := d.cfg.Events.Publish(ctx, events...)
	if !tooLarge(err) {
		return err
	}
	for _, e := range events {
		if err := d.givenUp(ctx, e, d.cfg.Events.Publish(ctx, e)); err != nil {
			return err
		}
	}
	return nil
}

// givenUp gives why an event could not be published, if it is worth trying again.
func (d *Dispatcher) givenUp(ctx context.Context, e jobs.Event, err error) error {
	if tooLarge(err) {
		zerolog.Ctx(ctx).Error().Err(err).Str("job", e.Job).Int("attempt", e.Attempt).Msg("event cannot be published; the ledger has it")
		return nil
	}
	return err
}

func tooLarge(err error) bool {
	e, ok := errors.AsType[*jobs.Error](err)
	return ok && e.Code == jobs.CodeTooLarge
}

// bury puts a job that will not be tried again into the dead-letter queue.
func (d *Dispatcher) bury(ctx context.Context, o ledger.Outgoing) error {
	j, err := d.cfg.Store.Get(ctx, o.Event.Tenant, o.Event.Job)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	reason := ""
	if o.Event.Result != nil {
		reason = string(o.Event.Result.Ending) + ": " + o.Event.Result.Reason
	}
	return d.cfg.Events.DeadLetter(ctx, j, reason)
}
