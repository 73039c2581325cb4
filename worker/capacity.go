package worker

import (
	"sync"

	"github.com/paddockvm/paddock/jobs"
)

// capacity counts what attempts hold of the host. Machines that are only ready do not count: they make room when an attempt needs it.
type capacity struct {
	total jobs.Resources

	mu    sync.Mutex
	used  jobs.Resources
	freed chan struct{} // closed and replaced at every release
}

func newCapacity(total jobs.Resources) *capacity {
	return &capacity{total: total, freed: make(chan struct{})}
}

// free gives what is left, and a channel that is closed when that grows.
func (c *capacity) free() (jobs.Resources, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return jobs.Resources{VCPUs: c.total.VCPUs - c.used.VCPUs, MemoryMiB: c.total.MemoryMiB - c.used.MemoryMiB}, c.freed
}

// take reserves r for an attempt. It may go below zero where a lease crossed with another: the dispatcher's books are the ones that
// decide, and the next request shows it what is left.
func (c *capacity) take(r jobs.Resources) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used.VCPUs += r.VCPUs
	c.used.MemoryMiB += r.MemoryMiB
}

// tryTake takes r where there is so much, for what can do without.
func (c *capacity) tryTake(r jobs.Resources) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.used.VCPUs+r.VCPUs > c.total.VCPUs || c.used.MemoryMiB+r.MemoryMiB > c.total.MemoryMiB {
		return r == jobs.Resources{}
	}
	c.used.VCPUs += r.VCPUs
	c.used.MemoryMiB += r.MemoryMiB
	return true
}

func (c *capacity) release(r jobs.Resources) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used.VCPUs -= r.VCPUs
	c.used.MemoryMiB -= r.MemoryMiB
	close(c.freed)
	c.freed = make(chan struct{})
}
