package worker

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/paddockvm/paddock/jobs"
)

// metrics are this package's own collectors.
type metrics struct {
	attempts     *prometheus.CounterVec
	claims       *prometheus.CounterVec
	phase        *prometheus.HistogramVec
	makeFailures prometheus.Counter
	selfFenced   prometheus.Counter
	reportsLate  prometheus.Counter
	shed         prometheus.Counter
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "paddock_attempts_total", Help: "Attempts that ended on this worker.",
		}, []string{"ending"}),
		claims: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "paddock_claims_total", Help: "Machines taken by attempts: from the pool, or made on demand.",
		}, []string{"from"}),
		phase: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "paddock_attempt_phase_seconds", Help: "How long each phase of an attempt took.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 15),
		}, []string{"phase"}),
		makeFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "paddock_machine_failures_total", Help: "Machines that could not be made.",
		}),
		selfFenced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "paddock_self_fenced_attempts_total", Help: "Attempts that this worker ended because its lease had run out.",
		}),
		reportsLate: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "paddock_reports_spooled_total", Help: "Results that waited on disk for a dispatcher.",
		}),
		shed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "paddock_machines_shed_total", Help: "Ready machines that were ended because there was no demand, or no memory, for them.",
		}),
	}
	if r != nil {
		r.MustRegister(m.attempts, m.claims, m.phase, m.makeFailures, m.selfFenced, m.reportsLate, m.shed)
	}
	return m
}

func (m *metrics) ended(r jobs.Result) {
	m.attempts.WithLabelValues(string(r.Ending)).Inc()
	from := "made"
	if r.Phases.FromPool {
		from = "pool"
	}
	if r.Machine != "" {
		m.claims.WithLabelValues(from).Inc()
	}
	p := r.Phases
	for name, ms := range map[string]float64{
		"queued": p.QueuedMS, "claim": p.ClaimMS, "copy_in": p.CopyInMS, "run": p.RunMS, "copy_out": p.CopyOutMS, "destroy": p.DestroyMS,
	} {
		m.phase.WithLabelValues(name).Observe(ms / 1000)
	}
}
