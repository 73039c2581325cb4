package dispatcher

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
)

// A transition is committed first and noted in memory then. Where the ledger's answer was lost, or is not the one that memory had
// foreseen, the job is in doubt: it is not matched until its row has been read again. Without that a job could stand in the ledger,
// accepted, and nobody would look at it before the next start.

// doubt marks a job, in memory or not, whose row is to be read again.
func (d *Dispatcher) doubt(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.doubts[id] = true
	d.aside(id)
}

// aside takes a job from where it waits, whatever it does next; d.mu is held.
func (d *Dispatcher) aside(id string) {
	d.queue.Remove(id)
	if e := d.blocked[id]; e != nil {
		d.unblock(e)
	}
}

// resolve reads the ledger again where there are doubts.
func (d *Dispatcher) resolve(ctx context.Context) error {
	if err := d.dropHalf(ctx); err != nil { // whose jobs are in doubt
		return err
	}
	doubts, before := d.takeDoubts()
	if len(doubts) == 0 {
		return nil
	}
	open, err := d.cfg.Store.OpenOf(ctx, slices.Collect(maps.Keys(doubts))) // and not all, which may be a million
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		maps.Copy(d.doubts, doubts)
		return err
	}
	rows := map[string]*ledger.Entry{}
	for _, row := range slices.Backward(open) { // each goes before the later ones
		rows[row.ID] = &row
		d.adopt(&row, before)
	}
	for id := range before {
		if rows[id] == nil { // it has ended
			d.gone(id)
		}
	}
	d.match()
	d.nudge()
	return nil
}

// dropHalf has the ledger remove what it was given of batches that have failed.
func (d *Dispatcher) dropHalf(ctx context.Context) error {
	if !d.halfway.Swap(false) {
		return nil
	}
	err := d.cfg.Store.DropIncoming(ctx)
	if err != nil {
		d.halfway.Store(true)
	}
	return err
}

// takeDoubts gives the jobs in doubt, and what memory has of them.
func (d *Dispatcher) takeDoubts() (doubts map[string]bool, before map[string]ledger.Entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before = map[string]ledger.Entry{}
	for id := range d.doubts {
		if e := d.entries[id]; e != nil {
			before[id] = *e
		}
	}
	doubts, d.doubts = d.doubts, map[string]bool{}
	return doubts, before
}

// adopt makes memory say what a row says, unless memory has moved on since the row was asked for; d.mu is held.
func (d *Dispatcher) adopt(row *ledger.Entry, before map[string]ledger.Entry) {
	e := d.entries[row.ID]
	was, known := before[row.ID]
	d.recall(row, time.Now())
	switch {
	case e == nil && known:
		return // it has ended
	case e == nil:
		e = d.remember(*row)
	case !known || e.State != was.State || e.Epoch != was.Epoch:
		return
	default:
		row.Cancel = row.Cancel || e.Cancel
		row.AcceptedAt, row.ExpiresAt = e.AcceptedAt, e.ExpiresAt
		if row.Epoch == e.Epoch {
			row.LeasedAt = e.LeasedAt
		}
		d.become(e, row.State)
		*e = *row
	}
	d.aside(e.ID)
	d.place(e)
}
