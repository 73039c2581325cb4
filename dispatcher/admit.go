package dispatcher

import (
	"cmp"
	"context"
	"errors"
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
	return d.admit(ctx, tenant, spec, "")
}

// admit is Admit; with a key that is made here, the spec's own is none of a client's.
func (d *Dispatcher) admit(ctx context.Context, tenant string, spec *jobs.Spec, made string) (job jobs.Job, duplicate bool, err error) {
	if err := jobs.ValidTenant(tenant); err != nil {
		return job, false, err
	}
	if err := spec.Validate(); err != nil {
		return job, false, err
	}
	if err := d.ready(ctx); err != nil {
		return job, false, err
	}
	a := admission(tenant, spec, time.Now())
	if made != "" {
		a.Key, a.KeyBefore = made, ""
	}
	if err := d.runnable(ctx, tenant, spec); err != nil {
		return d.repeated(ctx, a, err)
	}
	p, err := d.enterQueue(tenant, 1, int64(a.Entry.Bytes))
	if err != nil {
		return d.repeated(ctx, a, err)
	}
	defer p.leave()
	taken, err := d.cfg.Store.Admit(ctx, a)
	switch {
	case err != nil:
		d.doubt(a.Entry.ID)
		return job, false, d.broken(ctx, "admit job", err)
	case taken != nil && taken.Arriving:
		return job, false, arriving()
	case taken != nil && taken.Hash != a.Hash:
		return job, false, conflict()
	case taken != nil:
		return taken.Job, true, nil
	}
	d.metrics.submitted.Inc()
	d.enqueue(a.Entry)
	return a.Job, false, nil
}

// repeated answers a request that is refused: with the job that it has brought in before, where it has. What has changed since, a queue that
// is full or an image that is gone, says nothing of that one.
func (d *Dispatcher) repeated(ctx context.Context, a ledger.Admission, refusal error) (job jobs.Job, duplicate bool, err error) {
	if a.Key == "" && a.Job.Spec.ID == "" {
		return job, false, refusal
	}
	taken, err := d.cfg.Store.Taken(ctx, a)
	switch {
	case err != nil:
		return job, false, d.broken(ctx, "look for the job of a request", err)
	case taken == nil:
		return job, false, refusal
	case taken.Arriving:
		return job, false, arriving()
	case taken.Hash != a.Hash:
		return job, false, conflict()
	}
	return taken.Job, true, nil
}

const (
	keyRemembered   = 24 * time.Hour
	defaultQueueTTL = 24 * time.Hour
	defaultRetries  = 3
	defaultPriority = 5
)

// admission is the ledger's row of a new job.
func admission(tenant string, spec *jobs.Spec, now time.Time) ledger.Admission {
	now = micro(now)
	at := now.UTC()
	id := spec.ID
	if id == "" {
		id = jobs.NewID()
	}
	ttl := time.Duration(spec.QueueTTLMS) * time.Millisecond
	if ttl == 0 {
		ttl = defaultQueueTTL
	}
	expires := later(now, spec.RunAt).Add(ttl)
	a := ledger.Admission{
		Job: jobs.Job{
			ID: id, Tenant: tenant, State: jobs.StateQueued, Image: spec.ImageName(), Labels: spec.Labels, AcceptedAt: at, RunAt: spec.RunAt, Spec: spec,
		},
		Hash: spec.Hash(), KeyUntil: at.Add(keyRemembered), ExpiresAt: expires,
		Entry: ledger.Entry{
			ID: id, Tenant: tenant, Image: spec.ImageName(), State: jobs.StateQueued, Priority: or(spec.Priority, defaultPriority), Resources: spec.Resources,
			Network: strings.Join(spec.Network.Needs(), ","), Pool: cmp.Or(spec.Pool, jobs.DefaultPool), Requires: jobs.Required(spec.Requires),
			AcceptedAt: now, ExpiresAt: expires, NotBefore: spec.RunAt, DependsOn: spec.DependsOn,
			InfraLeft: or(spec.InfraRetries, defaultRetries), Rules: spec.Retry != nil,
		},
	}
	a.Key, a.KeyBefore = clientKey(spec.IdempotencyKey)
	if k := spec.Concurrency; k.Key != "" {
		a.Entry.Key, a.Entry.KeyLimit = k.Key, max(k.Limit, 1)
	}
	if spec.Retry != nil {
		a.Entry.UserLeft = max(spec.Retry.Attempts-1, 0)
	}
	if body, err := spec.Encode(); err == nil { // Validate has tried
		a.Entry.Bytes = len(body)
	}
	return a
}

func or(p *int, v int) int {
	if p == nil {
		return v
	}
	return *p
}

// enqueue puts an admitted job before the matcher.
func (d *Dispatcher) enqueue(e ledger.Entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.entries[e.ID] != nil {
		return // an earlier try of the client had been in doubt, and the ledger was read meanwhile
	}
	d.place(d.remember(e))
	d.match()
}

// guestMiB is what a guest's kernel and agent need beside a job's own memory.
const guestMiB = 64

// runnable refuses what can never run: what no worker here has, and what depends on what is not there.
func (d *Dispatcher) runnable(ctx context.Context, tenant string, spec *jobs.Spec) error {
	if err := d.offered(tenant, placeOf(spec)).take(spec); err != nil {
		return err
	}
	if err := d.cfg.Quotas.allows(tenant, spec.Resources); err != nil {
		return err
	}
	known, err := d.known(ctx, tenant, spec.DependsOn)
	if err != nil {
		return err
	}
	return dependencies(spec, func(id string) bool { return known[id] })
}

// offered gives what the workers of a place offer a tenant.
func (d *Dispatcher) offered(tenant string, p place) offer {
	d.mu.Lock()
	o := d.offers(p)
	d.mu.Unlock()
	maps.DeleteFunc(o.images, func(name string, i jobs.OfferedImage) bool { return i.Snapshot && jobs.SnapshotTenant(name) != tenant })
	return o
}

// named is how many things an error names.
const named = 20

// some gives those things of a list that an error names, each once.
func some(list []string) []string {
	slices.Sort(list)
	list = slices.Compact(list)
	if n := len(list); n > named {
		list = append(list[:named:named], fmt.Sprintf("and %d more", n-named))
	}
	return list
}

// take refuses what no worker here could ever run: a job that would only wait is worse than an error. While no worker has ever been
// seen, nothing is known, and everything may wait: what came in then waits out its queue TTL, even when the workers that come cannot run it.
// Others may come later that can.
func (o offer) take(spec *jobs.Spec) error {
	err := o.judge(spec)
	if e, ok := errors.AsType[*jobs.Error](err); ok && o.partial {
		e.RetryAfterMS = 1000 // a worker that has not been heard of since the last dispatcher may have it
	}
	return err
}

func (o offer) judge(spec *jobs.Spec) error {
	if len(o.elsewhere) > 0 {
		path := "pool"
		if len(spec.Requires) > 0 {
			path = "requires"
		}
		return &jobs.Error{Code: jobs.CodeUnsupported, Message: "the job asks for what is not offered here", Faults: []jobs.Fault{
			{Path: path, Message: "no worker is there; there are workers in " + strings.Join(some(o.elsewhere), ", ")},
		}}
	}
	if faults := append(o.unsupported(spec), o.callbackFaults(spec)...); len(faults) > 0 {
		return &jobs.Error{Code: jobs.CodeUnsupported, Message: "the job asks for what is not offered here", Faults: faults}
	}
	if o.images == nil {
		return nil
	}
	image, ok := o.images[spec.ImageName()]
	if !ok {
		known := some(slices.Sorted(maps.Keys(o.images)))
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
	return faults
}

// callbackFaults finds callbacks that could not be called.
func (o offer) callbackFaults(spec *jobs.Spec) (faults []jobs.Fault) {
	if o.callback == nil && len(spec.Callbacks) > 0 {
		return []jobs.Fault{{Path: "callbacks", Message: "this dispatcher calls no webhooks; follow the job's events"}}
	}
	for i, c := range spec.Callbacks {
		if err := o.callback(c.URL); err != nil {
			faults = append(faults, jobs.Fault{Path: fmt.Sprintf("callbacks[%d].url", i), Message: err.Error()})
		}
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
