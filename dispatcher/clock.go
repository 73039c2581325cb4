package dispatcher

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// The ledger's times are of the wall clock, because they outlive this process, and a wall clock can be set. What lasts, a back-off, a queue
// TTL, a job's place in the queue, is not to end by that, nor to last for days. So memory has these times with a monotonic reading, and
// those of another life are taken for what they can be. What names a time of day, as run_at and schedules do, goes by the clock that is.

// setBy is by how much a clock is taken to have been set; less is what clocks are corrected by, bit by bit.
const setBy = time.Second

// micro is a time as exact as the ledger keeps it, with its monotonic reading.
func micro(t time.Time) time.Time { return t.Add(-time.Duration(t.Nanosecond() % 1000)) }

// wall gives a time as the wall clock tells it now, whatever it told when the time was made.
func wall(t, now time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return now.Add(t.Sub(now)).Round(0)
}

// recall makes of a row's times what they can be in this life: nothing has come in the future, no back-off is longer than the longest, and
// how long a job may wait for another attempt counts from now.
func (d *Dispatcher) recall(e *ledger.Entry, now time.Time) {
	accepted, ahead := e.AcceptedAt, max(e.AcceptedAt.Sub(now), 0)
	e.AcceptedAt = now.Add(accepted.Sub(now) - ahead)
	if !e.NotBefore.After(accepted) || e.Attempt > 0 { // else it goes by run_at
		e.ExpiresAt = now.Add(e.ExpiresAt.Sub(now) - ahead)
	}
	if e.Attempt > 0 && e.State == jobs.StateQueued {
		longest := max(d.mostBackoff(e.Attempt), d.cfg.LeaseTTL+d.cfg.Grace) // see evict
		e.NotBefore = now.Add(min(max(e.NotBefore.Sub(now), 0), longest))
	}
}

// followClock looks whether the wall clock was set since it last did, and places the jobs that wait by what it tells now.
func (d *Dispatcher) followClock(ctx context.Context) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	by := now.Round(0).Sub(d.looked.Round(0)) - now.Sub(d.looked)
	d.looked = now
	if by.Abs() < setBy {
		return
	}
	zerolog.Ctx(ctx).Warn().Dur("by", by).Msg("the wall clock was set")
	d.endsFrom = now // what goes by the clock may have to end
	for _, e := range d.entries {
		if e.State == jobs.StateQueued && d.blocked[e.ID] == nil && d.queue.Remove(e.ID) {
			d.queue.Push(item(e))
		}
	}
	d.match()
}
