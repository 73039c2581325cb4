package dispatcher

import "github.com/prometheus/client_golang/prometheus"

// metrics are this package's own collectors.
type metrics struct {
	submitted, leasesExpired           prometheus.Counter
	refused, finished, retries, fenced *prometheus.CounterVec
	queueWait                          prometheus.Histogram
	depth                              prometheus.GaugeFunc
}

func newMetrics(r prometheus.Registerer, d *Dispatcher) metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := metrics{
		submitted:     counter("paddock_jobs_submitted_total", "Jobs accepted."),
		leasesExpired: counter("paddock_leases_expired_total", "Attempts taken back from workers that were lost."),
		refused:       vec("paddock_jobs_refused_total", "Submissions refused because the queue was full, or a tenant's quota.", "code"),
		finished:      vec("paddock_jobs_finished_total", "Jobs that ended.", "ending"),
		retries:       vec("paddock_attempt_retries_total", "Attempts that were given back to the queue.", "ending"),
		fenced:        vec("paddock_fenced_writes_total", "Results and transitions of attempts that were not current any more.", "op"),
		queueWait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "paddock_queue_wait_seconds", Help: "From accepted to leased.", Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 16),
		}),
	}
	m.depth = prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "paddock_queue_depth", Help: "Jobs that wait for a machine."}, func() float64 {
		d.mu.Lock()
		defer d.mu.Unlock()
		return float64(d.waiting())
	})
	if r != nil {
		r.MustRegister(m.all()...)
	}
	return m
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.submitted, m.refused, m.leasesExpired, m.finished, m.retries, m.fenced, m.queueWait, m.depth}
}

// unregister makes room for those of the next term.
func (m *metrics) unregister(r prometheus.Registerer) {
	if r == nil {
		return
	}
	for _, c := range m.all() {
		r.Unregister(c)
	}
}
