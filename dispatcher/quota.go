package dispatcher

import (
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/match"
	"github.com/paddockvm/paddock/jobs"
)

// Quota bounds what one tenant may have; what is zero is not bounded.
type Quota struct {
	// Weight is the tenant's share of the machines while others wait too, compared with theirs; 0 is 1.
	Weight int
	// Queued bounds the jobs that wait, QueuedBytes their specs together, in bytes. What comes on top is refused.
	Queued      int
	QueuedBytes int64
	// Running, VCPUs and MemoryMiB bound what runs at once. What comes on top waits.
	Running, VCPUs, MemoryMiB int
	// PerSecond is how many jobs may be submitted in a second, lastingly; Burst how many at once (a second's worth where 0). What comes on
	// top is refused, and told when to come again.
	PerSecond float64
	Burst     int
}

// Quotas are the tenants' bounds.
type Quotas struct {
	Default Quota
	// Tenants have their own instead of the default, whole.
	Tenants map[string]Quota
}

func (q *Quotas) of(tenant string) Quota {
	if own, ok := q.Tenants[tenant]; ok {
		return own
	}
	return q.Default
}

// share is what the matcher is to know of a tenant's quota.
func (q *Quotas) share(tenant string) match.Share {
	t := q.of(tenant)
	return match.Share{Weight: t.Weight, MaxRunning: t.Running, MaxVCPUs: t.VCPUs, MaxMemoryMiB: t.MemoryMiB}
}

// allows refuses a job that is larger than all that its tenant may have at once: it would wait for ever.
func (q *Quotas) allows(tenant string, r jobs.Resources) error {
	t := q.of(tenant)
	var faults []jobs.Fault
	if t.VCPUs > 0 && r.VCPUs > t.VCPUs {
		faults = append(faults, jobs.Fault{Path: "resources.vcpus", Message: fmt.Sprintf("%d, and all the tenant's jobs together may have %d", r.VCPUs, t.VCPUs)})
	}
	if t.MemoryMiB > 0 && r.MemoryMiB > t.MemoryMiB {
		faults = append(faults, jobs.Fault{Path: "resources.memory_mib", Message: fmt.Sprintf("%d, and all the tenant's jobs together may have %d", r.MemoryMiB, t.MemoryMiB)})
	}
	if len(faults) == 0 {
		return nil
	}
	return &jobs.Error{Code: jobs.CodeQuota, Message: "the job is larger than the tenant's quota", Faults: faults}
}

// account is what a tenant has in the queue, and how fast it may submit.
type account struct {
	queued    int   // jobs that wait, those on their way into the ledger included
	bytes     int64 // of their specs
	submitted *rate.Limiter
}

// accountOf gives a tenant's account; d.mu is held.
func (d *Dispatcher) accountOf(tenant string) *account {
	a := d.accounts[tenant]
	if a == nil {
		a = &account{}
		if q := d.cfg.Quotas.of(tenant); q.PerSecond > 0 {
			burst := q.Burst
			if burst == 0 {
				burst = max(1, int(q.PerSecond))
			}
			a.submitted = rate.NewLimiter(rate.Limit(q.PerSecond), burst)
		}
		d.accounts[tenant] = a
	}
	return a
}

// waits counts a job into its tenant's queue (n is 1) or out of it (-1); d.mu is held.
func (d *Dispatcher) waits(e *ledger.Entry, n int) {
	a := d.accountOf(e.Tenant)
	a.queued += n
	a.bytes += int64(n) * int64(e.Bytes)
	d.settleAccount(e.Tenant, a)
}

// settleAccount forgets the account of a tenant that has nothing in the queue; one with a rate is remembered while the tenant may submit less at
// once than one who is not known. d.mu is held.
func (d *Dispatcher) settleAccount(tenant string, a *account) {
	if a.queued == 0 && (a.submitted == nil || a.submitted.Tokens() >= float64(a.submitted.Burst())) {
		delete(d.accounts, tenant)
	}
}

// settleAccounts forgets what is not worth remembering any more of tenants, and of workers that are not there.
func (d *Dispatcher) settleAccounts() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for tenant, a := range d.accounts {
		d.settleAccount(tenant, a)
	}
	for name, f := range d.flags {
		if f == (ledger.Flags{}) && d.workers[name] == nil {
			delete(d.flags, name)
		}
	}
}

// become moves a job to another state in memory; d.mu is held.
func (d *Dispatcher) become(e *ledger.Entry, s jobs.State) {
	was, is := e.State == jobs.StateQueued, s == jobs.StateQueued
	e.State = s
	switch {
	case was && !is:
		d.waits(e, -1)
		d.held[e.ID] = e
	case !was && is:
		d.waits(e, 1)
		delete(d.held, e.ID)
	}
}

// remember takes a job into memory and gives what is kept there: a copy, so that nothing is kept of what it came with, its spec above all.
// d.mu is held.
func (d *Dispatcher) remember(given ledger.Entry) *ledger.Entry {
	e := &given
	d.entries[e.ID] = e
	if e.State == jobs.StateQueued {
		d.waits(e, 1)
	} else {
		d.held[e.ID] = e
	}
	return e
}

// slowest bounds how long a client is told to wait.
const slowest = time.Minute

// over tells what n more jobs with specs of so many bytes would exceed; d.mu is held.
func (d *Dispatcher) over(tenant string, n int, bytes int64) *jobs.Error {
	q, a := d.cfg.Quotas.of(tenant), d.accountOf(tenant)
	refuse := func(after time.Duration, format string, args ...any) *jobs.Error {
		d.metrics.refused.WithLabelValues(string(jobs.CodeQuota)).Inc()
		return &jobs.Error{Code: jobs.CodeQuota, Message: fmt.Sprintf(format, args...), RetryAfterMS: max(1, after.Milliseconds())}
	}
	switch {
	case q.Queued > 0 && a.queued+n > q.Queued:
		return refuse(time.Second, "the tenant has %d jobs waiting, and may have %d", a.queued, q.Queued)
	case q.QueuedBytes > 0 && a.bytes+bytes > q.QueuedBytes:
		return refuse(time.Second, "the specs of the tenant's waiting jobs have %d bytes, with this %d, and may have %d", a.bytes, a.bytes+bytes, q.QueuedBytes)
	}
	if a.submitted == nil {
		return nil
	}
	r := a.submitted.ReserveN(time.Now(), n)
	if !r.OK() { // more at once than the burst ever holds
		return &jobs.Error{Code: jobs.CodeQuota, Message: fmt.Sprintf("the tenant may submit %d jobs at once: send fewer together", a.submitted.Burst())}
	}
	if wait := r.Delay(); wait > 0 {
		r.Cancel()
		return refuse(min(wait, slowest), "the tenant may submit %g jobs a second", q.PerSecond)
	}
	return nil
}

// places are those in the queue that jobs of a tenant have on their way into the ledger.
type places struct {
	d      *Dispatcher
	tenant string
	n      int
	bytes  int64 // of their specs
}

// enterQueue takes places in the queue for a tenant's n jobs on their way into the ledger, whose specs have so many bytes.
func (d *Dispatcher) enterQueue(tenant string, n int, bytes int64) (*places, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waiting()+d.admitting+n > d.cfg.MaxQueued {
		d.metrics.refused.WithLabelValues(string(jobs.CodeQueueFull)).Inc()
		return nil, &jobs.Error{Code: jobs.CodeQueueFull, Message: fmt.Sprintf("%d jobs are queued, no more are taken", d.cfg.MaxQueued), RetryAfterMS: 1000}
	}
	if err := d.over(tenant, n, bytes); err != nil {
		return nil, err
	}
	p := &places{d: d, tenant: tenant}
	p.give(-n, -bytes)
	return p, nil
}

// give gives places back; d.mu is held.
func (p *places) give(n int, bytes int64) {
	p.n -= n
	p.bytes -= bytes
	p.d.admitting -= n
	a := p.d.accountOf(p.tenant)
	a.queued -= n
	a.bytes -= bytes
	p.d.settleAccount(p.tenant, a)
}

// leave gives back those that are left.
func (p *places) leave() {
	p.d.mu.Lock()
	defer p.d.mu.Unlock()
	p.give(p.n, p.bytes)
}

// waiting counts the jobs that wait, wherever: before the matcher, for others' ends, or in doubt; d.mu is held.
func (d *Dispatcher) waiting() int { return d.queue.Len() + len(d.blocked) + len(d.doubts) }
