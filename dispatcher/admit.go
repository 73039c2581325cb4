package dispatcher

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// Admit takes a job in. It is the one function that every way in calls. When it returns a job, that job is in the ledger and will end,
// whatever dies; duplicate says that its idempotency key, or its id, had brought in this very job before. An error is a *jobs.Error.
func (d *Dispatcher) Admit(ctx context.Context, tenant string, spec *jobs.Spec) (job jobs.Job, duplicate bool, err error) {
	if err := jobs.ValidTenant(tenant); err != nil {
		return job, false, err
	}
	if err := spec.Validate(); err != nil {
		return job, false, err
	}
	if err := d.ready(ctx); err != nil {
		return job, false, err
	}
	if err := d.offered(tenant, spec); err != nil {
		return job, false, err
	}
	leave, err := d.enterQueue()
	if err != nil {
		return job, false, err
	}
	defer leave()

	a := admission(tenant, spec, time.Now().UTC())
	taken, err := d.cfg.Store.Admit(ctx, a)
	switch {
	case err != nil:
		d.doubt(a.Entry.ID)
		return job, false, d.broken(ctx, "admit job", err)
	case taken != nil && taken.Hash != a.Hash:
		return job, false, &jobs.Error{Code: jobs.CodeConflict, Message: "the idempotency key or the id belongs to a job with another body"}
	case taken != nil:
		return taken.Job, true, nil
	}
	d.metrics.submitted.Inc()
	d.enqueue(&a.Entry)
	return a.Job, false, nil
}

const (
	keyRemembered   = 24 * time.Hour
	defaultQueueTTL = 24 * time.Hour
	defaultRetries  = 3
	defaultPriority = 5
)

// admission is the ledger's row of a new job.
func admission(tenant string, spec *jobs.Spec, now time.Time) ledger.Admission {
	now = now.Truncate(time.Microsecond) // what the ledger keeps
	id := spec.ID
	if id == "" {
		id = jobs.NewID()
	}
	ttl := time.Duration(spec.QueueTTLMS) * time.Millisecond
	if ttl == 0 {
		ttl = defaultQueueTTL
	}
	return ledger.Admission{
		Job: jobs.Job{
			ID: id, Tenant: tenant, State: jobs.StateQueued, Image: spec.ImageName(), Labels: spec.Labels, AcceptedAt: now, Spec: spec,
		},
		Hash: spec.Hash(), Key: spec.IdempotencyKey, KeyUntil: now.Add(keyRemembered), ExpiresAt: now.Add(ttl),
		Entry: ledger.Entry{
			ID: id, Tenant: tenant, Image: spec.ImageName(), State: jobs.StateQueued, Priority: or(spec.Priority, defaultPriority), Resources: spec.Resources,
			Network: strings.Join(spec.Network.Needs(), ","), AcceptedAt: now, ExpiresAt: now.Add(ttl), InfraLeft: or(spec.InfraRetries, defaultRetries),
		},
	}
}

func or(p *int, v int) int {
	if p == nil {
		return v
	}
	return *p
}

// enterQueue takes a place in the queue for a job on its way into the ledger.
func (d *Dispatcher) enterQueue() (leave func(), _ error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.queue.Len()+d.admitting+len(d.doubts) >= d.cfg.MaxQueued { // one in doubt may be queued
		d.metrics.refused.Inc()
		return nil, &jobs.Error{Code: jobs.CodeQueueFull, Message: fmt.Sprintf("%d jobs are queued, no more are taken", d.cfg.MaxQueued), RetryAfterMS: 1000}
	}
	d.admitting++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.admitting--
	}, nil
}

// enqueue puts an admitted job before the matcher.
func (d *Dispatcher) enqueue(e *ledger.Entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.entries[e.ID] != nil {
		return // an earlier try of the client had been in doubt, and the ledger was read meanwhile
	}
	d.entries[e.ID] = e
	d.queue.Push(item(e))
	d.match()
}

// guestMiB is what a guest's kernel and agent need beside a job's own memory.
const guestMiB = 64

// offered refuses what no worker here could ever run: a job that would only wait is worse than an error. While no worker has ever been
// seen, nothing is known, and everything may wait: what came in then waits out its queue TTL, even when the workers that come cannot run it.
// Others may come later that can.
func (d *Dispatcher) offered(tenant string, spec *jobs.Spec) error {
	d.mu.Lock()
	o := d.offers()
	d.mu.Unlock()
	if faults := o.unsupported(spec); len(faults) > 0 {
		return &jobs.Error{Code: jobs.CodeUnsupported, Message: "the job asks for what is not offered here", Faults: faults}
	}
	if o.images == nil {
		return nil
	}
	maps.DeleteFunc(o.images, func(name string, i jobs.OfferedImage) bool { return i.Snapshot && jobs.SnapshotTenant(name) != tenant })
	image, ok := o.images[spec.ImageName()]
	if !ok {
		known := slices.Sorted(maps.Keys(o.images))
		return invalid(jobs.Fault{Path: "image", Message: fmt.Sprintf("no worker has an image %q; there are %s", spec.ImageName(), strings.Join(known, ", "))})
	}
	var faults []jobs.Fault
	r := spec.Resources
	if r.VCPUs > o.largest.VCPUs {
		faults = append(faults, jobs.Fault{Path: "resources.vcpus", Message: fmt.Sprintf("%d, and the largest worker has %d", r.VCPUs, o.largest.VCPUs)})
	}
	if r.MemoryMiB > o.largest.MemoryMiB {
		faults = append(faults, jobs.Fault{Path: "resources.memory_mib", Message: fmt.Sprintf("%d, and the largest worker has %d", r.MemoryMiB, o.largest.MemoryMiB)})
	}
	faults = append(faults, snapshotFaults(spec, image)...)
	if r.MemoryMiB == 0 {
		r.MemoryMiB = image.Resources.MemoryMiB
	}
	if r.MemoryMiB > 0 { // else the worker does not say how large it makes that image's machines
		faults = append(faults, memoryFaults(spec, r.MemoryMiB)...)
	}
	for i, s := range spec.Steps {
		if s.User == "root" && image.NoRoot {
			faults = append(faults, jobs.Fault{Path: fmt.Sprintf("steps[%d].user", i), Message: "the image " + image.Name + " lets no step run as root"})
		}
	}
	if len(faults) > 0 {
		return invalid(faults...)
	}
	return nil
}

// snapshotFaults finds what a snapshot's machines, which are as they were, cannot be.
func snapshotFaults(spec *jobs.Spec, image jobs.OfferedImage) (faults []jobs.Fault) {
	if !image.Snapshot {
		return nil
	}
	own := image.Resources
	for at, v := range map[string][2]int{"vcpus": {spec.Resources.VCPUs, own.VCPUs}, "memory_mib": {spec.Resources.MemoryMiB, own.MemoryMiB}} {
		if v[0] != 0 && v[0] != v[1] {
			faults = append(faults, jobs.Fault{Path: "resources." + at, Message: fmt.Sprintf("%d, and the snapshot's machine has %d: leave it out", v[0], v[1])})
		}
	}
	if nic := spec.Network.NIC(); nic != image.NIC {
		has := map[bool]string{true: "has a network card: ask for a network", false: "has no network card: ask for none"}[image.NIC]
		faults = append(faults, jobs.Fault{Path: "network.policy", Message: "the snapshot's machine " + has})
	}
	return faults
}

// unsupported finds what Paddock knows and nobody here does.
func (o offer) unsupported(spec *jobs.Spec) (faults []jobs.Fault) {
	for _, need := range spec.Network.Needs() {
		if o.images == nil || o.networks[need] {
			continue
		}
		path := "network.policy"
		if need == jobs.NetworkIPv6 || need == jobs.NetworkPorts {
			path = "network." + need
		}
		offered := append(slices.Sorted(maps.Keys(o.networks)), jobs.NetworkNone)
		faults = append(faults, jobs.Fault{Path: path, Message: fmt.Sprintf("no worker here offers %q; there are %s", need, strings.Join(offered, ", "))})
	}
	if len(spec.Callbacks) > 0 {
		faults = append(faults, jobs.Fault{Path: "callbacks", Message: "this dispatcher calls no webhooks; follow the job's events"})
	}
	return faults
}

func invalid(faults ...jobs.Fault) *jobs.Error {
	return &jobs.Error{Code: jobs.CodeInvalid, Message: "invalid job spec", Faults: faults}
}

// memoryFaults finds limits that the machine could not keep: it would run out of memory as a whole first.
func memoryFaults(spec *jobs.Spec, machineMiB int) (faults []jobs.Fault) {
	if machineMiB <= guestMiB {
		return []jobs.Fault{{Path: "resources.memory_mib", Message: fmt.Sprintf("%d, and the guest takes %d for itself", machineMiB, guestMiB)}}
	}
	most := int64(machineMiB-guestMiB) << 20
	check := func(path string, l jobs.Limits) {
		if l.MemoryBytes > most {
			faults = append(faults, jobs.Fault{Path: path, Message: fmt.Sprintf("%d, and a machine of %d MiB has at most %d for a job; ask for resources.memory_mib",
				l.MemoryBytes, machineMiB, most)})
		}
	}
	check("limits.memory_bytes", spec.Limits)
	for i, s := range spec.Steps {
		check(fmt.Sprintf("steps[%d].limits.memory_bytes", i), s.Limits)
	}
	return faults
}
