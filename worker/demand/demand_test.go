package demand_test

import (
	"testing"
	"time"

	"github.com/paddockvm/paddock/worker/demand"
)

func TestWant(t *testing.T) {
	for _, c := range []struct {
		name   string
		every  time.Duration // between two that ask
		asks   int
		refill time.Duration
		idle   time.Duration // since the last
		want   int           // of 1 to 40
	}{
		{name: "nobody asked", want: 1},
		{name: "one asked", asks: 1, refill: 300 * time.Millisecond, want: 1},
		{name: "two in a minute", asks: 2, every: 30 * time.Second, refill: 300 * time.Millisecond, want: 1},
		{name: "one a second, refilled in 0.3 s", asks: 100, every: time.Second, refill: 300 * time.Millisecond, want: 2},
		{name: "ten a second, refilled in 0.3 s: λT is 3", asks: 1000, every: 100 * time.Millisecond, refill: 300 * time.Millisecond, want: 7},
		{name: "the same burst, after a second", asks: 10, every: 100 * time.Millisecond, refill: 300 * time.Millisecond, want: 3},
		{name: "ten a second, refilled in 2 s", asks: 1000, every: 100 * time.Millisecond, refill: 2 * time.Second, want: 30},
		{name: "no more than the most", asks: 1000, every: 10 * time.Millisecond, refill: 2 * time.Second, want: 40},
		{name: "ten a second until a quarter of a minute ago", asks: 1000, every: 100 * time.Millisecond, refill: 300 * time.Millisecond, idle: 15 * time.Second, want: 5},
		{name: "ten a second until five minutes ago", asks: 1000, every: 100 * time.Millisecond, refill: 300 * time.Millisecond, idle: 8 * time.Minute, want: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, now := demand.New(), time.Unix(0, 0)
			for range c.asks {
				now = now.Add(c.every)
				d.Asked(now)
				d.Made(c.refill)
			}
			if got := d.Want(now.Add(c.idle), 1, 40); got != c.want {
				t.Errorf("want %d, got %d", c.want, got)
			}
		})
	}
}

// TestRefill: what a making took long ago is forgotten.
func TestRefill(t *testing.T) {
	d, now := demand.New(), time.Unix(0, 0)
	d.Made(10 * time.Second)
	for range 100 {
		now = now.Add(time.Second)
		d.Asked(now)
		d.Made(100 * time.Millisecond)
	}
	if got := d.Want(now, 0, 100); got != 1 {
		t.Errorf("with one a second, made in 0.1 s: %d", got)
	}
	if got := d.Want(now, 3, 2); got != 3 {
		t.Errorf("the least of 3 became %d", got)
	}
}
