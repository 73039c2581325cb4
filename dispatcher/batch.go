package dispatcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// AdmitBatch takes many jobs in, at one moment: all or none where the request says atomic, else all that can be, each with its own outcome.
// The batch counts the jobs that it took. The same request again, by its id or its idempotency key, gives the same batch. An error is a
// *jobs.Error, and nothing was taken.
func (d *Dispatcher) AdmitBatch(ctx context.Context, tenant string, r *jobs.BatchRequest) (reply jobs.BatchReply, err error) {
	if err := jobs.ValidTenant(tenant); err != nil {
		return reply, err
	}
	if err := d.ready(ctx); err != nil {
		return reply, err
	}
	specs, errs, warnings, err := r.Specs()
	if err != nil {
		return reply, err
	}
	if reply, found, err := d.repeatedBatch(ctx, tenant, r, specs, errs); found || err != nil {
		reply.Warnings = warnings
		return reply, err
	}
	if err := d.examine(ctx, tenant, specs, errs); err != nil {
		return reply, err
	}
	if r.Atomic {
		if err := together(errs); err != nil {
			return reply, err
		}
	}
	b, items := newBatch(tenant, r, specs, errs)
	p, err := d.enterQueue(tenant, len(b.Jobs), sizeOf(b.Jobs))
	if err != nil {
		return reply, err
	}
	defer p.leave()

	got, err := d.cfg.Store.AdmitBatch(ctx, b)
	switch {
	case errors.Is(err, ledger.ErrConflict):
		return reply, together(outcomes(items, b.Jobs, got.Each, errs, nil))
	case errors.Is(err, ledger.ErrArriving):
		return reply, arriving()
	case err != nil:
		d.halfway.Store(true)
		for _, a := range b.Jobs {
			d.doubt(a.Entry.ID)
		}
		return reply, d.broken(ctx, "admit batch", err)
	case got.Taken: // meanwhile
		reply, err = taken(b, items, got, errs, nil)
		reply.Warnings = warnings
		return reply, err
	}
	d.took(p, b, got.Each)
	outcomes(items, b.Jobs, got.Each, errs, nil)
	if !got.Batch.EndedAt.IsZero() { // nothing of it was new, and its end is to be told
		d.nudge()
	}
	return jobs.BatchReply{Batch: &got.Batch, Items: items, Warnings: warnings}, nil
}

// repeatedBatch answers a request that has brought in a batch before, with that: what has changed since says nothing of it. found tells whether
// there is one.
func (d *Dispatcher) repeatedBatch(ctx context.Context, tenant string, r *jobs.BatchRequest, specs []*jobs.Spec, errs []error) (reply jobs.BatchReply, found bool, err error) {
	if r.ID == "" && r.IdempotencyKey == "" {
		return reply, false, nil
	}
	ask := ledger.BatchAdmission{ID: r.ID, Tenant: tenant, AcceptedAt: micro(time.Now()), Key: r.IdempotencyKey}
	got, err := d.cfg.Store.TakenBatch(ctx, ask)
	if err == nil && !got.Taken {
		return reply, false, nil
	}
	b, items := newBatch(tenant, r, specs, errs)
	if err == nil {
		got, err = d.cfg.Store.TakenBatch(ctx, b)
	}
	why := slices.Clone(errs)
	if err == nil {
		err = d.examine(ctx, tenant, specs, why)
	}
	if errors.Is(err, ledger.ErrArriving) {
		return reply, false, arriving()
	}
	if err != nil {
		return reply, false, d.broken(ctx, "look for the batch of a request", err)
	}
	reply, err = taken(b, items, got, errs, why)
	return reply, true, err
}

// taken is the answer to a request whose batch has been taken before; why is what stands against its jobs now, where that is known.
func taken(b ledger.BatchAdmission, items []jobs.BatchItem, got ledger.Admitted, errs, why []error) (jobs.BatchReply, error) {
	if got.Hash != b.Hash {
		return jobs.BatchReply{}, &jobs.Error{Code: jobs.CodeConflict, Message: "the idempotency key or the id belongs to a batch with another body"}
	}
	refused := &jobs.Error{Code: jobs.CodeConflict, Message: "the job was refused when the batch was taken: submit it by itself"}
	outcomes(items, b.Jobs, got.Each, errs, refused)
	for i := range why {
		if items[i].Error == refused && why[i] != nil {
			items[i].Error = jobs.ErrorOf(why[i])
		}
	}
	return jobs.BatchReply{Batch: &got.Batch, Items: items, Duplicate: true}, nil
}

// examine adds to errs what stands against the specs of a batch that are valid.
func (d *Dispatcher) examine(ctx context.Context, tenant string, specs []*jobs.Spec, errs []error) error {
	offers, among := map[place]offer{}, map[string]bool{}
	var on []string
	for i, s := range specs {
		if errs[i] != nil {
			continue
		}
		p := placeOf(s)
		o, known := offers[p]
		if !known {
			o = d.offered(tenant, p)
			offers[p] = o
		}
		if errs[i] = o.take(s); errs[i] == nil {
			errs[i] = d.cfg.Quotas.allows(tenant, s.Resources)
		}
		if errs[i] != nil {
			continue
		}
		on = append(on, s.DependsOn...)
		if s.ID != "" {
			among[s.ID] = true
		}
	}
	known, err := d.known(ctx, tenant, on)
	if err != nil {
		return err
	}
	circular(specs, errs)
	for i, s := range specs {
		if errs[i] == nil {
			errs[i] = dependencies(s, func(id string) bool { return known[id] || among[id] })
		}
		if errs[i] != nil && s != nil {
			delete(among, s.ID) // those that follow and depend on it cannot run; one that precedes it waits for what never comes, and is ended
		}
	}
	return nil
}

// circular refuses the jobs of a batch that wait for themselves, by whatever way, and those that wait for such.
func circular(specs []*jobs.Spec, errs []error) {
	waits, dependents := map[int]int{}, map[string][]int{}
	at := map[string]int{}
	for i, s := range specs {
		if errs[i] == nil && s.ID != "" {
			at[s.ID] = i
		}
	}
	var free []int
	for i, s := range specs {
		if errs[i] != nil {
			continue
		}
		for _, on := range s.DependsOn {
			if _, among := at[on]; among {
				waits[i]++
				dependents[on] = append(dependents[on], i)
			}
		}
		if waits[i] == 0 {
			free = append(free, i)
		}
	}
	for ; len(free) > 0; free = free[1:] {
		for _, i := range dependents[specs[free[0]].ID] {
			if waits[i]--; waits[i] == 0 {
				free = append(free, i)
			}
		}
	}
	for i, n := range waits {
		if n > 0 {
			errs[i] = invalid(jobs.Fault{Path: "depends_on", Message: "the jobs wait for each other in a circle"})
		}
	}
}

// maxBatchFaults bounds what an error about a batch names.
const maxBatchFaults = 50

// together makes one error of those of a batch's jobs; nil where there are none. It may be tried again where all of them may.
func together(errs []error) error {
	all, n, forever := &jobs.Error{Code: jobs.CodeInvalid, Message: "invalid batch, nothing of it was taken"}, 0, false
	for i, err := range errs {
		if err == nil {
			continue
		}
		n++
		e := jobs.ErrorOf(err)
		if e.Code != jobs.CodeInvalid {
			all.Code = e.Code
		}
		all.RetryAfterMS, forever = max(all.RetryAfterMS, e.RetryAfterMS), forever || e.RetryAfterMS == 0
		at := "jobs[" + strconv.Itoa(i) + "]"
		if len(e.Faults) == 0 {
			e = &jobs.Error{Faults: []jobs.Fault{{Message: e.Message}}}
		}
		for _, f := range e.Faults {
			if f.Path != "" {
				f.Path = "." + f.Path
			}
			if len(all.Faults) < maxBatchFaults {
				all.Faults = append(all.Faults, jobs.Fault{Path: at + f.Path, Message: f.Message})
			}
		}
	}
	switch {
	case n == 0:
		return nil
	case forever:
		all.RetryAfterMS = 0
	}
	return all
}

// newBatch is what the ledger is to have of a batch: the jobs that can be taken. items are all of them, in their order.
func newBatch(tenant string, r *jobs.BatchRequest, specs []*jobs.Spec, errs []error) (b ledger.BatchAdmission, items []jobs.BatchItem) {
	now := time.Now()
	at := now.UTC().Truncate(time.Microsecond)
	b = ledger.BatchAdmission{ID: r.ID, Tenant: tenant, AcceptedAt: at, Hash: r.Hash(), Key: r.IdempotencyKey, KeyUntil: at.Add(keyRemembered), Atomic: r.Atomic}
	if b.ID == "" {
		b.ID = jobs.NewID()
	}
	for i, s := range specs {
		if errs[i] != nil {
			items = append(items, jobs.BatchItem{Error: jobs.ErrorOf(errs[i])})
			continue
		}
		a := admission(tenant, s, now)
		a.Entry.Batch, a.Job.Batch = b.ID, b.ID
		if a.Key == "" && (r.IdempotencyKey != "" || r.ID != "") { // so that it is known again when the batch is
			a.Key = batchKey(cmp.Or(r.IdempotencyKey, r.ID), i)
		}
		items = append(items, jobs.BatchItem{ID: a.Entry.ID})
		b.Jobs = append(b.Jobs, a)
	}
	return b, items
}

// outcomes adds to the items of a batch, and to its errors, what the ledger says of the jobs that it was given. Where it says nothing of one that
// is well, or as absent says.
func outcomes(items []jobs.BatchItem, given []ledger.Admission, each []*ledger.Taken, errs []error, absent *jobs.Error) []error {
	n := 0
	for i := range items {
		if items[i].Error != nil {
			continue
		}
		a := given[n]
		var taken *ledger.Taken
		if n < len(each) {
			taken = each[n]
		}
		n++
		switch {
		case taken == nil && absent != nil:
			items[i] = jobs.BatchItem{Error: absent}
		case taken == nil:
		case taken.Arriving:
			items[i], errs[i] = jobs.BatchItem{Error: arriving()}, arriving()
		case taken.Hash == a.Hash:
			items[i] = jobs.BatchItem{ID: taken.Job.ID, Duplicate: true}
		default:
			items[i], errs[i] = jobs.BatchItem{Error: conflict()}, conflict()
		}
	}
	return errs
}

// sizeOf adds up the specs of admissions, in bytes.
func sizeOf(list []ledger.Admission) (n int64) {
	for _, a := range list {
		n += int64(a.Entry.Bytes)
	}
	return n
}

// tookAtOnce of a batch's jobs are put before the matcher at once: about a millisecond. Between them others have their turn.
const tookAtOnce = 250

// took puts the jobs of a batch that the ledger has taken before the matcher, in the places that were taken for them.
func (d *Dispatcher) took(p *places, b ledger.BatchAdmission, each []*ledger.Taken) {
	for from := 0; from < len(b.Jobs); from += tookAtOnce {
		end := min(from+tookAtOnce, len(b.Jobs))
		d.tookSome(p, b.Jobs[from:end], each[from:end])
	}
}

func (d *Dispatcher) tookSome(p *places, list []ledger.Admission, each []*ledger.Taken) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p.give(len(list), sizeOf(list))
	for i := range list {
		e := list[i].Entry
		if each[i] != nil || d.entries[e.ID] != nil {
			continue
		}
		d.metrics.submitted.Inc()
		d.place(d.remember(e))
	}
	d.match()
}

// arriving is the answer to who names a batch, or a job of one, that is being written: it may come to nothing.
func arriving() *jobs.Error {
	return &jobs.Error{Code: jobs.CodeUnavailable, Message: "the idempotency key or the id belongs to a batch that is not taken yet: ask again", RetryAfterMS: 1000}
}

func conflict() *jobs.Error {
	return &jobs.Error{Code: jobs.CodeConflict, Message: "the idempotency key or the id belongs to a job with another body"}
}

// Batch gives how far a batch of a tenant is.
func (d *Dispatcher) Batch(ctx context.Context, tenant, id string) (jobs.Batch, error) {
	if err := jobs.ValidTenant(tenant); err != nil {
		return jobs.Batch{}, err
	}
	var b jobs.Batch
	_, err := jobs.ParseID(id)
	if err == nil {
		b, err = d.cfg.Store.Batch(ctx, tenant, id)
	} else {
		err = ledger.ErrNotFound // an id that is none is nobody's
	}
	if errors.Is(err, ledger.ErrNotFound) {
		return b, &jobs.Error{Code: jobs.CodeNotFound, Message: fmt.Sprintf("no batch %.80q", id)}
	}
	if err != nil {
		return b, d.broken(ctx, "get batch", err)
	}
	return b, nil
}

// Batches gives a page of a tenant's, newest first.
func (d *Dispatcher) Batches(ctx context.Context, tenant string, q jobs.BatchQuery) (r jobs.BatchesReply, err error) {
	if err := jobs.ValidTenant(tenant); err != nil {
		return r, err
	}
	if q.Limit == 0 {
		q.Limit = 50
	}
	if r.Batches, err = d.cfg.Store.Batches(ctx, tenant, q.Before, q.Limit+1); err != nil {
		return r, d.broken(ctx, "list batches", err)
	}
	if len(r.Batches) > q.Limit {
		r.Batches = r.Batches[:q.Limit]
		r.Next = r.Batches[q.Limit-1].ID
	}
	return r, nil
}

// CancelBatch cancels the jobs of a batch that have not ended, and gives how many those were.
func (d *Dispatcher) CancelBatch(ctx context.Context, tenant, id string) (canceled int, err error) {
	if _, err := d.Batch(ctx, tenant, id); err != nil {
		return 0, err
	}
	if err := d.ready(ctx); err != nil {
		return 0, err
	}
	open, err := d.cfg.Store.CancelBatch(ctx, tenant, id)
	if err != nil {
		return 0, d.broken(ctx, "cancel batch", err)
	}
	var g errgroup.Group
	g.SetLimit(overdueAtOnce)
	for _, job := range open {
		if e, queued := d.noteCancel(job); queued {
			g.Go(func() error {
				_ = d.endQueued(ctx, e, jobs.Canceled, "canceled before it ran") // reconcile tries again
				return nil
			})
		}
	}
	_ = g.Wait() // each has handled its own
	return len(open), nil
}

// progressEvery is how often viewers are told how far batches are.
const progressEvery = 250 * time.Millisecond

// tellProgress tells viewers how far batches are, until ctx ends. Of their ends the outbox tells.
func (d *Dispatcher) tellProgress(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.movedOn:
		}
		pause(ctx, progressEvery) // in which more of them move on
		d.mu.Lock()
		moved := d.moved
		d.moved = map[string]string{}
		d.mu.Unlock()
		for id, tenant := range moved {
			if err := d.tellSoFar(ctx, tenant, id); err != nil && ctx.Err() == nil {
				zerolog.Ctx(ctx).Warn().Err(err).Str("batch", id).Msg("tell how far a batch is") // the next end of one of its jobs does it again
			}
		}
	}
}

// tellSoFar tells how far a batch is that has not ended. The outbox tells of its end, and not meanwhile: that comes last.
func (d *Dispatcher) tellSoFar(ctx context.Context, tenant, id string) error {
	leave, err := d.toTellOfBatches(ctx)
	if err != nil {
		return err
	}
	defer leave()
	b, err := d.cfg.Store.Batch(ctx, tenant, id)
	if err != nil || !b.EndedAt.IsZero() {
		return err
	}
	return d.cfg.Events.Progress(ctx, b)
}

// toTellOfBatches waits until nobody else tells how far a batch is.
func (d *Dispatcher) toTellOfBatches(ctx context.Context) (leave func(), err error) {
	select {
	case d.progress <- struct{}{}:
		return func() { <-d.progress }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
