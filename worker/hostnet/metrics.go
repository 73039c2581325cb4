package hostnet

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	ready, live   prometheus.GaugeFunc
	taken, made   prometheus.Histogram
	deniedPackets *prometheus.CounterVec
	questions     *prometheus.CounterVec
	registerer    prometheus.Registerer
}

func newMetrics(h *Host, r prometheus.Registerer) *metrics {
	m := &metrics{
		registerer: r,
		ready: prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "paddock_network_slots_ready", Help: "Network slots that wait for a machine."},
			func() float64 { return float64(h.Ready()) }),
		live: prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "paddock_network_slots", Help: "Network slots, ready or taken."},
			func() float64 { return float64(len(h.live())) }),
		taken: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "paddock_network_slot_take_seconds", Help: "How long a machine waited for its network slot.", Buckets: prometheus.ExponentialBuckets(1e-5, 4, 10),
		}),
		made: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "paddock_network_slot_make_seconds", Help: "How long a network slot took to make.", Buckets: prometheus.ExponentialBuckets(1e-3, 2, 12),
		}),
		deniedPackets: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "paddock_network_denied_packets_total", Help: "Guests' packets that were denied (reason denied) or came from a false source (spoofed), of machines that have ended.",
		}, []string{"reason"}),
		questions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "paddock_network_dns_questions_total", Help: "Guests' DNS questions by what came of them: answered, refused, failed.",
		}, []string{"outcome"}),
	}
	if r != nil {
		r.MustRegister(m.all()...)
	}
	return m
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.ready, m.live, m.taken, m.made, m.deniedPackets, m.questions}
}

func (m *metrics) unregister() {
	if m.registerer == nil {
		return
	}
	for _, c := range m.all() {
		m.registerer.Unregister(c)
	}
}

// denied adds up what a slot that ends has denied.
func (m *metrics) denied(s *Slot) {
	if s.ns == nil {
		return
	}
	for _, name := range []string{countDenied, countSpoofed} {
		if n, err := s.counted(name); err == nil { // a slot that was not finished has none
			m.deniedPackets.WithLabelValues(name).Add(float64(n))
		}
	}
}
