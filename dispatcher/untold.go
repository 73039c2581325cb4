package dispatcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher/ledger"
)

// Some of what is in the outbox goes out apart from the rest: the end of an attempt that has no number, for which the broker is asked first,
// and whatever else of that job follows it; an event about which the broker does not answer; and the end of a batch, after all of its jobs'.
// Each is read from the ledger again when its turn comes.

const (
	// closings is how many are told at once that were not tried yet, and closingsAgain of those that the broker did not take, or did not say
	// so: however many of these there are, they do not hold up the others. batchEnds is how many ends of batches are told beside them.
	closings      = 32
	closingsAgain = 16
	batchEnds     = 4
	// untoldMost bounds the pause before one is tried again.
	untoldMost = time.Minute
)

// untold is what of a job is in the outbox and goes out apart, or the end of a batch. It is tried again at a time; each time the pause is twice
// as long, up to untoldMost.
type untold struct {
	tenant string
	rows   []int64 // in the outbox, in their order
	unsure bool    // the broker may have some of them
	going  bool    // they are being told
	next   time.Time
	pause  time.Duration // 0 where none of it was tried yet
	end    bool          // of a batch
	// batch is the job's, where it is known.
	batch string
	known bool
	// waits are the jobs of an ended batch of which something goes out apart.
	waits map[string]bool
}

// untoldKey is what a row is of: a job, or an ended batch.
func untoldKey(o ledger.Outgoing) string {
	if o.Batch != nil {
		return "batch " + o.Batch.ID
	}
	return o.Event.Job
}

func (d *Dispatcher) isUntold(key string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.untold[key] != nil
}

func (d *Dispatcher) anyUntold() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.untold) > 0
}

// apart has rows told apart; of those up to the row unsure the broker may have some.
func (d *Dispatcher) apart(ctx context.Context, rows []ledger.Outgoing, unsure int64) error {
	for _, o := range rows {
		if o.Batch == nil {
			d.setApart(o, o.Event.Tenant, o.ID <= unsure, nil)
		}
	}
	for _, o := range rows {
		if o.Batch == nil || d.isUntold(untoldKey(o)) {
			continue
		}
		waits, err := d.untoldOf(ctx, o.Batch.Tenant, o.Batch.ID)
		if err != nil {
			return err
		}
		d.setApart(o, o.Batch.Tenant, o.ID <= unsure, waits)
	}
	return nil
}

func (d *Dispatcher) setApart(o ledger.Outgoing, tenant string, unsure bool, waits []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := untoldKey(o)
	u := d.untold[key]
	if u == nil {
		u = &untold{tenant: tenant, end: o.Batch != nil}
		d.untold[key] = u
		for _, job := range waits {
			if d.untold[job] != nil { // else it has gone out meanwhile
				if u.waits == nil {
					u.waits = map[string]bool{}
					d.lateEnds[key] = u
				}
				u.waits[job] = true
			}
		}
		d.toldNext(key, u)
	}
	u.unsure = u.unsure || unsure
	if at, is := slices.BinarySearch(u.rows, o.ID); !is {
		u.rows = slices.Insert(u.rows, at, o.ID)
	}
}

// toldNext has something told that waits for no pause, unless it waits for others; d.mu is held.
func (d *Dispatcher) toldNext(key string, u *untold) {
	switch {
	case len(u.waits) > 0:
		return
	case u.end:
		d.untoldEnds = append(d.untoldEnds, key)
	default:
		d.untoldNew = append(d.untoldNew, key)
	}
	d.wakeTeller()
}

func (d *Dispatcher) wakeTeller() {
	d.toTell.set()
}

// untoldOf gives the jobs of a tenant's batch of which something goes out apart.
func (d *Dispatcher) untoldOf(ctx context.Context, tenant, batch string) (of []string, err error) {
	for job, u := range d.untoldJobs(tenant) {
		if !u.known {
			j, err := d.cfg.Store.Get(ctx, tenant, job)
			if err != nil && !errors.Is(err, ledger.ErrNotFound) {
				return nil, err
			}
			u.batch = j.Batch
			d.setBatch(job, j.Batch)
		}
		if u.batch == batch {
			of = append(of, job)
		}
	}
	return of, nil
}

// untoldJobs gives copies of what goes out apart of a tenant's jobs.
func (d *Dispatcher) untoldJobs(tenant string) map[string]untold {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := map[string]untold{}
	for key, u := range d.untold {
		if u.tenant == tenant && !u.end {
			all[key] = *u
		}
	}
	return all
}

func (d *Dispatcher) setBatch(job, batch string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if u := d.untold[job]; u != nil {
		u.batch, u.known = batch, true
	}
}

// tellApart tells what goes out apart, until ctx ends.
func (d *Dispatcher) tellApart(ctx context.Context) error {
	var telling sync.WaitGroup
	defer telling.Wait()
	first, ends, again := make(chan struct{}, closings), make(chan struct{}, batchEnds), make(chan struct{}, closingsAgain)
	var due []string
	look := time.NewTimer(0)
	defer look.Stop()
	looks := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.toTell:
		case <-look.C:
			looks = false
			due = d.untoldDue(time.Now())
		}
		if !looks && d.anyUntold() {
			looks = true
			look.Reset(outboxRetry)
		}
		start := func(list *[]string, places chan struct{}) {
			for len(places) < cap(places) { // nobody else takes one
				key, is := d.take(list)
				if !is {
					return
				}
				places <- struct{}{}
				telling.Go(func() {
					d.tell(ctx, key)
					<-places
					d.wakeTeller()
				})
			}
		}
		start(&d.untoldNew, first)
		start(&d.untoldEnds, ends)
		start(&due, again)
	}
}

// take takes the next of a list that is still to be told.
func (d *Dispatcher) take(list *[]string) (string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(*list) > 0 {
		key := (*list)[0]
		*list = (*list)[1:]
		if u := d.untold[key]; u != nil && !u.going {
			u.going = true
			return key, true
		}
	}
	return "", false
}

// untoldDue gives what is to be tried again now, the longest due first.
func (d *Dispatcher) untoldDue(now time.Time) (due []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, u := range d.untold {
		if u.pause > 0 && !u.going && !now.Before(u.next) {
			due = append(due, key)
		}
	}
	slices.SortFunc(due, func(a, b string) int {
		return cmp.Or(d.untold[a].next.Compare(d.untold[b].next), cmp.Compare(d.untold[a].rows[0], d.untold[b].rows[0]))
	})
	return due
}

// untoldNow has all that waits out a pause tried again at once.
func (d *Dispatcher) untoldNow() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, u := range d.untold {
		u.next = time.Time{}
	}
}

// tell tells what goes out apart of a job, or the end of a batch, until that fails.
func (d *Dispatcher) tell(ctx context.Context, key string) {
	rows, unsure := d.rowsOf(key)
	told, err := 0, error(nil)
	for told < len(rows) && err == nil {
		if err = d.tellRow(ctx, rows[told], unsure); err == nil {
			told++
		}
	}
	if err != nil && ctx.Err() == nil {
		zerolog.Ctx(ctx).Warn().Err(err).Msg("publish outbox")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	u := d.untold[key]
	u.going = false
	u.rows = slices.DeleteFunc(u.rows, func(id int64) bool { return slices.Contains(rows[:told], id) })
	switch {
	case err != nil:
		u.unsure = true
		u.pause = min(max(2*u.pause, outboxRetry), untoldMost)
		u.next = time.Now().Add(u.pause)
	case len(u.rows) > 0: // that came meanwhile
		u.pause = 0
		d.toldNext(key, u)
	default:
		d.isTold(key)
	}
	d.stir()
}

// rowsOf gives the rows that are to be told now, and whether the broker may have some of them.
func (d *Dispatcher) rowsOf(key string) (rows []int64, unsure bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	u := d.untold[key]
	rows, unsure = slices.Clone(u.rows), u.unsure
	u.unsure = false
	return rows, unsure
}

// isTold forgets what has gone out, and has the ends of batches told that waited for it; d.mu is held.
func (d *Dispatcher) isTold(key string) {
	delete(d.untold, key)
	for end, u := range d.lateEnds {
		if delete(u.waits, key); len(u.waits) == 0 {
			delete(d.lateEnds, end)
			d.toldNext(end, u)
		}
	}
}

// tellRow tells one row of the outbox, where it still is there.
func (d *Dispatcher) tellRow(ctx context.Context, id int64, unsure bool) error {
	list, err := d.cfg.Store.Outbox(ctx, id-1, 1)
	if err != nil || len(list) == 0 || list[0].ID != id {
		return err
	}
	o := list[0]
	if o.Batch != nil {
		if err := d.tellEnd(ctx, o); err != nil {
			return fmt.Errorf("publish the end of batch %s: %w", o.Batch.ID, err)
		}
	} else if err := d.tellEvent(ctx, o, unsure); err != nil {
		return fmt.Errorf("publish the end of attempt %d of job %s: %w", o.Event.Attempt, o.Event.Job, err)
	}
	return d.cfg.Store.Published(ctx, []int64{id})
}

func (d *Dispatcher) tellEvent(ctx context.Context, o ledger.Outgoing, unsure bool) error {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	there, err := d.prepare(ctx, o, unsure)
	if err != nil || there {
		return err
	}
	if o.Event.Seq == unnumbered {
		return d.givenUp(ctx, o.Event, d.cfg.Events.CloseAttempt(ctx, o.Event))
	}
	return d.givenUp(ctx, o.Event, d.cfg.Events.Publish(ctx, o.Event))
}

// tellEnd tells of a batch's end, once nobody else is telling how far it is. Whoever sees it twice sees the same.
func (d *Dispatcher) tellEnd(ctx context.Context, o ledger.Outgoing) error {
	leave, err := d.toTellOfBatches(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return d.cfg.Events.Progress(ctx, *o.Batch)
}
