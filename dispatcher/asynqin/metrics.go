package asynqin

import "github.com/prometheus/client_golang/prometheus"

// metrics are this package's own collectors.
type metrics struct {
	tasks      *prometheus.CounterVec
	active     prometheus.Gauge
	reattached prometheus.Counter
}

// newMetrics registers them for as long as one Run lasts.
func newMetrics(r prometheus.Registerer) (*metrics, func(), error) {
	m := &metrics{
		tasks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "paddock_redis_tasks_total", Help: "Tasks from Redis that ended.",
		}, []string{"outcome"}),
		active: prometheus.NewGauge(prometheus.GaugeOpts{Name: "paddock_redis_tasks_active", Help: "Tasks from Redis whose job has not ended."}),
		reattached: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "paddock_redis_tasks_reattached_total", Help: "Tasks that were picked up again, and whose job was there already.",
		}),
	}
	if r == nil {
		return m, func() {}, nil
	}
	all := []prometheus.Collector{m.tasks, m.active, m.reattached}
	unregister := func() {
		for _, c := range all {
			r.Unregister(c)
		}
	}
	for _, c := range all {
		if err := r.Register(c); err != nil {
			return nil, nil, err
		}
	}
	return m, unregister, nil
}
