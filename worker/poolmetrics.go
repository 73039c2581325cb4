package worker

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/paddockvm/paddock/jobs"
)

var (
	poolDesc = prometheus.NewDesc("paddock_pool_machines",
		"Machines of a pool by stage: ready, prepared, making, wanted ready; those of all snapshots together.", []string{"image", "shape", "stage"}, nil)
	memoryDesc = prometheus.NewDesc("paddock_machines_memory_bytes", "Memory of all machines that live or are being made, as their guests see it.", nil, nil)
	shortDesc  = prometheus.NewDesc("paddock_host_short_of_memory", "1 while the host is short of memory: no machine is kept, no job taken.", nil, nil)
)

// Describe implements prometheus.Collector.
func (*pools) Describe(c chan<- *prometheus.Desc) {
	c <- poolDesc
	c <- memoryDesc
	c <- shortDesc
}

// Collect implements prometheus.Collector. A pool of an odd shape is counted with all of its image's that are odd in the same way, and those of
// snapshots together: clients name shapes and snapshots, and no client shall name metrics.
func (ps *pools) Collect(c chan<- prometheus.Metric) {
	type series struct{ image, shape string }
	counts := map[series]*stages{}
	for _, p := range ps.all() {
		s := series{p.image, shapeLabel(p.shape, ps.own(p.image))}
		if jobs.SnapshotTenant(p.image) != "" {
			s.image = "snapshot"
		}
		if counts[s] == nil {
			counts[s] = &stages{}
		}
		counts[s].add(p)
	}
	for s, n := range counts {
		for stage, value := range map[string]int{"ready": n.ready, "prepared": n.prepared, "making": n.making, "wanted": n.wanted} {
			c <- prometheus.MustNewConstMetric(poolDesc, prometheus.GaugeValue, float64(value), s.image, s.shape, stage)
		}
	}
	ps.mu.Lock()
	memory := ps.memory
	ps.mu.Unlock()
	c <- prometheus.MustNewConstMetric(memoryDesc, prometheus.GaugeValue, float64(memory)*(1<<20))
	short := 0.0
	if ps.short.Load() {
		short = 1
	}
	c <- prometheus.MustNewConstMetric(shortDesc, prometheus.GaugeValue, short)
}

func shapeLabel(s, own jobs.Shape) string {
	label := "own"
	if s.Resources != own.Resources {
		label = "other"
	}
	if s.NIC {
		label += "+network"
	}
	return label
}

// stages counts machines.
type stages struct{ ready, prepared, making, wanted int }

func (s *stages) add(p *pool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	wanted, _ := p.target()
	s.ready += len(p.ready)
	s.prepared += len(p.prepared)
	s.making += p.making + p.preparing
	s.wanted += wanted
}
