package webhook

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// metrics are this package's own collectors.
type metrics struct {
	attempts, ended *prometheus.CounterVec
	disabled        prometheus.Counter
	lag, took       prometheus.Histogram
}

func newMetrics(r prometheus.Registerer, s *Service) metrics {
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := metrics{
		attempts: vec("paddock_webhook_attempts_total", "Tries at webhook deliveries.", "outcome"),
		ended:    vec("paddock_webhook_deliveries_total", "Webhook deliveries that were made or given up.", "end"),
		disabled: prometheus.NewCounter(prometheus.CounterOpts{Name: "paddock_webhook_endpoints_disabled_total", Help: "Webhook endpoints that were disabled because they answered 410 or failed for days."}),
		lag: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "paddock_webhook_lag_seconds", Help: "From a delivery's making to its first try.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 12),
		}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "paddock_webhook_attempt_seconds", Help: "How long tries took.", Buckets: prometheus.ExponentialBuckets(0.002, 2.5, 11),
		}),
	}
	if r != nil {
		gauge := func(name, help string, of func(*queue) int) prometheus.GaugeFunc {
			return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
				s.mu.Lock()
				defer s.mu.Unlock()
				return float64(of(s.queue))
			})
		}
		r.MustRegister(m.attempts, m.ended, m.disabled, m.lag, m.took,
			gauge("paddock_webhook_targets", "Endpoints, and servers of callbacks, that deliveries wait for.", func(q *queue) int { return len(q.targets) }),
			gauge("paddock_webhook_circuits_open", "Those of them that are left alone because they fail.", (*queue).openCircuits))
	}
	return m
}

// tried counts a try.
func (m *metrics) tried(d *ledger.Delivery, o *outcome, state jobs.DeliveryState, began time.Time, took time.Duration) {
	m.attempts.WithLabelValues(o.class).Inc()
	m.took.Observe(took.Seconds())
	if d.Attempts == 0 {
		m.lag.Observe(began.Sub(d.CreatedAt).Seconds())
	}
	if state != jobs.DeliveryPending {
		m.ended.WithLabelValues(string(state)).Inc()
	}
}
