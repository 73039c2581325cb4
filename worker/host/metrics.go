package host

import "github.com/prometheus/client_golang/prometheus"

var (
	stallDesc = prometheus.NewDesc("paddock_host_stall_ratio",
		"Part of the last 10 s in which some tasks, or all, waited for a resource.", []string{"resource", "kind"}, nil)
	stalledDesc = prometheus.NewDesc("paddock_host_stalled_seconds_total",
		"How long some tasks, or all, have waited for a resource.", []string{"resource", "kind"}, nil)
	availableDesc = prometheus.NewDesc("paddock_host_memory_available_bytes", "Memory that could be given out without swapping.", nil, nil)
)

// Describe implements prometheus.Collector.
func (r Reader) Describe(c chan<- *prometheus.Desc) {
	c <- stallDesc
	c <- stalledDesc
	c <- availableDesc
}

// Collect implements prometheus.Collector. What cannot be read is left out.
func (r Reader) Collect(c chan<- prometheus.Metric) {
	for _, resource := range []string{"cpu", "memory", "io"} {
		s, err := r.Pressure(resource)
		if err != nil {
			continue
		}
		c <- prometheus.MustNewConstMetric(stallDesc, prometheus.GaugeValue, s.Some, resource, "some")
		c <- prometheus.MustNewConstMetric(stallDesc, prometheus.GaugeValue, s.Full, resource, "full")
		c <- prometheus.MustNewConstMetric(stalledDesc, prometheus.CounterValue, s.SomeSeconds, resource, "some")
		c <- prometheus.MustNewConstMetric(stalledDesc, prometheus.CounterValue, s.FullSeconds, resource, "full")
	}
	if mib, err := r.AvailableMiB(); err == nil {
		c <- prometheus.MustNewConstMetric(availableDesc, prometheus.GaugeValue, float64(mib)*(1<<20))
	}
}
