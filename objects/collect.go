package objects

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/jobs"
)

// Collector deletes objects that nobody needs: those that were put or renewed longer ago than Keep, and that nothing names any more.
//
// What is old is looked for first, then what is named, and only then is anything deleted, and only what has not been renewed since: so a job
// that comes in within Keep of its objects' putting never loses one, whenever that is, and however many collect.
type Collector struct {
	Store Store
	// Named calls do with every object that is needed, some several times.
	Named func(ctx context.Context, do func(tenant string, ref jobs.ObjectRef)) error
	// Keep is how long an object stays that nothing names.
	Keep time.Duration

	count, bytes                 prometheus.Gauge
	deletedCount, deletedInBytes prometheus.Counter
}

const (
	// collectEvery is the pause between two collections.
	collectEvery = time.Hour
	// begunWithin is how long storing may take: what is older and has no name was given up. It is twice what is allowed.
	begunWithin = 2 * within
)

// NewCollector gives one whose figures are registered; nil: nowhere.
func NewCollector(store Store, named func(context.Context, func(string, jobs.ObjectRef)) error, keep time.Duration, r prometheus.Registerer) *Collector {
	c := &Collector{
		Store: store, Named: named, Keep: keep,
		count:          prometheus.NewGauge(prometheus.GaugeOpts{Name: "paddock_objects", Help: "Objects that are kept, when they were last counted, within the hour."}),
		bytes:          prometheus.NewGauge(prometheus.GaugeOpts{Name: "paddock_objects_bytes", Help: "Bytes in them."}),
		deletedCount:   prometheus.NewCounter(prometheus.CounterOpts{Name: "paddock_objects_deleted_total", Help: "Objects deleted because they were old and nothing named them."}),
		deletedInBytes: prometheus.NewCounter(prometheus.CounterOpts{Name: "paddock_objects_deleted_bytes_total", Help: "Bytes in them."}),
	}
	if r != nil {
		r.MustRegister(c.count, c.bytes, c.deletedCount, c.deletedInBytes)
	}
	return c
}

// Run collects now and again until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	defer func() { c.count.Set(0); c.bytes.Set(0) }() // whoever collects next tells
	t := time.NewTicker(collectEvery)
	defer t.Stop()
	for {
		if err := c.Collect(ctx); err != nil && ctx.Err() == nil {
			zerolog.Ctx(ctx).Warn().Err(err).Msg("objects: collect; it is tried again within the hour")
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// object is whose it is, and its name.
type named struct{ tenant, name string }

// Collect collects once. What cannot be collected of one tenant does not keep it from the others'.
func (c *Collector) Collect(ctx context.Context) error {
	now := time.Now()
	tenants, err := c.Store.Tenants(ctx)
	if err != nil {
		return err
	}
	var errs []error
	old := map[named]Info{}
	count, bytes := 0, int64(0)
	for _, tenant := range tenants {
		list, err := c.Store.List(ctx, tenant)
		if err != nil {
			errs = append(errs, fmt.Errorf("tenant %s: %w", tenant, err))
			continue
		}
		for _, i := range list {
			count, bytes = count+1, bytes+i.Size
			if now.Sub(i.Stored) > c.Keep {
				old[named{tenant, i.Name}] = i
			}
		}
		if err := c.Store.Sweep(ctx, tenant, now.Add(-begunWithin)); err != nil {
			errs = append(errs, fmt.Errorf("tenant %s: %w", tenant, err))
		}
	}
	n, size, err := c.delete(ctx, old)
	c.count.Set(float64(count - n))
	c.bytes.Set(float64(bytes - size))
	return errors.Join(append(errs, err)...)
}

// delete deletes what is old and not needed.
func (c *Collector) delete(ctx context.Context, old map[named]Info) (n int, size int64, err error) {
	if len(old) == 0 {
		return 0, 0, nil
	}
	if err := c.Named(ctx, func(tenant string, ref jobs.ObjectRef) { delete(old, named{tenant, ref.Name}) }); err != nil {
		return 0, 0, fmt.Errorf("what is named: %w", err)
	}
	failed := map[string]error{} // by tenant: what cannot be deleted of one does not keep another's
	for o, i := range old {
		if failed[o.tenant] != nil {
			continue
		}
		ok, err := c.Store.Delete(ctx, o.tenant, i)
		if err != nil {
			failed[o.tenant] = fmt.Errorf("tenant %s: %w", o.tenant, err)
			continue
		}
		if ok {
			n, size = n+1, size+i.Size
			c.deletedCount.Inc()
			c.deletedInBytes.Add(float64(i.Size))
		}
	}
	if n > 0 {
		zerolog.Ctx(ctx).Info().Int("objects", n).Int64("bytes", size).Msg("objects: what was old is deleted")
	}
	return n, size, errors.Join(slices.Collect(maps.Values(failed))...)
}
