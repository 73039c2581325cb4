package webhook

import "time"

const (
	// tripAfter is how many tries have to fail one after the other until the circuit opens.
	tripAfter = 5
	// openFirst is how long it stays open before the first probe; it doubles with each that fails, up to openMost.
	openFirst = 30 * time.Second
	openMost  = 10 * time.Minute
)

// circuit keeps a target's deliveries waiting while it fails. After tripAfter failures it opens: until is when one delivery is made as a
// probe; when that succeeds, it is closed. Waiting costs no delivery a try of its schedule.
type circuit struct {
	failures int       // since the last success
	until    time.Time // nothing is sent before
}

// open tells whether no more than a probe may be made.
func (c *circuit) open() bool { return c.failures >= tripAfter }

// succeeded closes the circuit.
func (c *circuit) succeeded() { c.failures, c.until = 0, time.Time{} }

// failed counts a failure; jitter is 0 to 1.
func (c *circuit) failed(now time.Time, jitter float64) {
	if c.open() && now.Before(c.until) {
		return // sent before it opened: no news
	}
	c.failures++
	if !c.open() {
		return
	}
	pause := openMost
	if n := c.failures - tripAfter; n < 10 {
		pause = min(openFirst<<n, openMost)
	}
	c.wait(now.Add(spreadOut(pause, jitter)))
}

// wait holds everything back until a time, as a server may ask for.
func (c *circuit) wait(until time.Time) {
	if until.After(c.until) {
		c.until = until
	}
}

// spreadOut changes a pause by up to a tenth, so that what failed together does not come back together; jitter is 0 to 1.
func spreadOut(pause time.Duration, jitter float64) time.Duration {
	return time.Duration(float64(pause) * (0.9 + 0.2*jitter))
}
