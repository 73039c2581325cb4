package images

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// Retention keeps snapshots to a policy while it runs. Several processes may do so on one store, each with a policy of its own: what one of
// them does not keep goes. They take turns (the lock "snapshots"), and what somebody uses stays for all of them.
type Retention struct {
	snapshots *Snapshots
	policy    Policy

	removed, removedBytes prometheus.Counter
}

// retainEvery is the pause between two looks at what has become too old.
const retainEvery = time.Hour

// NewRetention gives one whose figures are registered, those of what is kept too; nil: nowhere. A policy that asks for nothing removes
// nothing.
func NewRetention(n *Snapshots, p Policy, reg prometheus.Registerer) *Retention {
	r := &Retention{
		snapshots: n, policy: p,
		removed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "paddock_snapshots_removed_total", Help: "Snapshots that this worker has removed because its policy does not keep them.",
		}),
		removedBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "paddock_snapshots_removed_bytes_total", Help: "What they took on the disk.",
		}),
	}
	if reg != nil {
		reg.MustRegister(r.removed, r.removedBytes, keptFigures{n})
	}
	return r
}

// Run removes what the policy does not keep, now, once an hour, and after each snapshot that this process has made where the policy bounds
// how many there are or what they take, until ctx ends. What cannot be removed is tried again the next time.
func (r *Retention) Run(ctx context.Context) error {
	if r.policy.MaxAge == 0 && !r.policy.bounds() {
		return nil
	}
	var made <-chan struct{}
	if r.policy.bounds() {
		made = r.snapshots.made
	}
	t := time.NewTicker(retainEvery)
	defer t.Stop()
	for {
		if err := r.retain(ctx); err != nil && ctx.Err() == nil {
			zerolog.Ctx(ctx).Error().Err(err).Msg("cannot remove snapshots; it is tried again within the hour")
		}
		select {
		case <-t.C:
		case <-made:
		case <-ctx.Done():
			return nil
		}
	}
}

// retain removes once. Where all is as it should be nobody is kept waiting for it.
func (r *Retention) retain(ctx context.Context) error {
	if all, err := r.snapshots.keeps(ctx, r.policy); all || err != nil {
		return err
	}
	gone, err := r.snapshots.collect(ctx, r.policy, flatsKept)
	for _, s := range gone {
		r.removed.Inc()
		r.removedBytes.Add(float64(s.StoredBytes))
		zerolog.Ctx(ctx).Info().Str("snapshot", s.ID).Str("image", s.Image).Time("created_at", s.CreatedAt).Int64("stored_bytes", s.StoredBytes).Msg("snapshot removed: the policy does not keep it")
	}
	return err
}

// keptFigures tells what is kept, whenever it is asked.
type keptFigures struct{ n *Snapshots }

var (
	keptCount = prometheus.NewDesc("paddock_snapshots", "Snapshots that are kept on this host.", nil, nil)
	keptBytes = prometheus.NewDesc("paddock_snapshots_bytes", "What they take on the disk, each by itself.", nil, nil)
)

func (keptFigures) Describe(to chan<- *prometheus.Desc) { to <- keptCount; to <- keptBytes }

func (k keptFigures) Collect(to chan<- prometheus.Metric) {
	list, _ := k.n.List() // one that cannot be read is not counted; `snapshot ls` says why
	bytes := int64(0)
	for _, s := range list {
		bytes += s.StoredBytes
	}
	to <- prometheus.MustNewConstMetric(keptCount, prometheus.GaugeValue, float64(len(list)))
	to <- prometheus.MustNewConstMetric(keptBytes, prometheus.GaugeValue, float64(bytes))
}
