// Package demand tells how many of something that takes time to make have to be ready, from how often they were asked for lately and how
// long the making takes. It is pure: time is handed in. It imports the standard library only.
//
// It is the base-stock rule for arrivals at random: while one is made, which takes T, on average λT are asked for, and seldom more than
// λT + 2√(λT): with that many ready, all but a few in a hundred find one.
package demand

import (
	"math"
	"time"
)

// Estimate is what is known of the demand for one thing. It is not safe for concurrent use. New gives one.
type Estimate struct {
	fast, slow rate
	refill     time.Duration // how long one takes from being wanted to being there, averaged over the last few
}

const (
	// A burst is seen within seconds; what was asked for in the last minute is not forgotten at once.
	fastWindow, slowWindow = 5 * time.Second, time.Minute
	// recurring is how many must have asked within about the slow window before more is kept than the least: one is no demand yet.
	recurring = 1.2
	// refillWeight is the last making's part in the average.
	refillWeight = 0.2
)

// New gives an estimate of nothing yet.
func New() Estimate {
	return Estimate{fast: rate{window: fastWindow}, slow: rate{window: slowWindow}}
}

// Asked notes that somebody wants one.
func (d *Estimate) Asked(now time.Time) {
	d.fast.add(now)
	d.slow.add(now)
}

// Made notes how long a making took, the wait for its turn included.
func (d *Estimate) Made(took time.Duration) {
	if d.refill == 0 {
		d.refill = took
		return
	}
	d.refill += time.Duration(refillWeight * float64(took-d.refill))
}

// Want is how many to have ready, within least and most; least where the two contradict each other, or where nobody asks again and again.
func (d *Estimate) Want(now time.Time, least, most int) int {
	slow := d.slow.at(now)
	if slow*slowWindow.Seconds() < recurring {
		return least
	}
	during := max(d.fast.at(now), slow) * d.refill.Seconds()
	return min(max(least, int(math.Ceil(during+2*math.Sqrt(during)))), max(most, least))
}

// rate is how often something happens, per second: an average in which what lies a window back counts for 1/e.
type rate struct {
	window time.Duration
	last   time.Time
	value  float64
}

func (r *rate) at(now time.Time) float64 {
	return r.value * math.Exp(-now.Sub(r.last).Seconds()/r.window.Seconds())
}

func (r *rate) add(now time.Time) {
	r.value = r.at(now) + 1/r.window.Seconds()
	r.last = now
}
