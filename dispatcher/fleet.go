package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// Workers gives the workers that are known, by name.
func (d *Dispatcher) Workers(ctx context.Context) ([]jobs.WorkerInfo, error) {
	if err := d.ready(ctx); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	running := map[string]int{}
	for _, e := range d.held {
		running[e.Worker]++
	}
	all := []jobs.WorkerInfo{}
	for _, w := range d.workers {
		all = append(all, d.info(w, running[w.name]))
	}
	slices.SortFunc(all, func(a, b jobs.WorkerInfo) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// info is what is known of a worker; d.mu is held.
func (d *Dispatcher) info(w *worker, running int) jobs.WorkerInfo {
	f := d.flags[w.name]
	i := jobs.WorkerInfo{
		Name: w.name, State: jobs.FleetReady, Pool: poolOf(w.beat), Labels: w.beat.Labels, Version: w.beat.Version, Contract: max(w.beat.Contract, 1),
		Driver: w.beat.Driver, Degraded: w.beat.Degraded, Capacity: w.beat.Capacity, Networks: w.beat.Networks, Running: running, SeenAt: w.seen.UTC(), DrainBy: f.DrainBy,
	}
	for _, image := range w.beat.Images {
		i.Images = append(i.Images, image.Name)
	}
	switch {
	case w.lost, w.waiting && running == 0: // which the ledger alone knows of
		i.State = jobs.FleetLost
	case (f.Draining || w.draining) && running > 0:
		i.State = jobs.FleetDraining
	case f.Draining || w.draining:
		i.State = jobs.FleetDrained
	case f.Cordoned:
		i.State = jobs.FleetCordoned
	}
	return i
}

func poolOf(b jobs.Beat) string {
	if b.Pool == "" {
		return jobs.DefaultPool
	}
	return b.Pool
}

// takes tells whether a worker is to be given jobs; d.mu is held.
func (d *Dispatcher) takes(w *worker) bool {
	return !w.lost && !w.waiting && !w.draining && !d.flags[w.name].Cordoned
}

// Cordon keeps further jobs from a worker; Uncordon lets it have some again, also after a drain. Drain does so too, and gives what it has not
// ended within a time to others, at no cost to their retries; 0 lets it end what it has. All hold until another of them, whatever is started
// anew.
func (d *Dispatcher) Cordon(ctx context.Context, name string) (jobs.WorkerInfo, error) {
	return d.flag(ctx, name, ledger.Flags{Cordoned: true})
}

// Uncordon is explained at Cordon.
func (d *Dispatcher) Uncordon(ctx context.Context, name string) (jobs.WorkerInfo, error) {
	return d.flag(ctx, name, ledger.Flags{})
}

// Drain is explained at Cordon.
func (d *Dispatcher) Drain(ctx context.Context, name string, within time.Duration) (jobs.WorkerInfo, error) {
	f := ledger.Flags{Cordoned: true, Draining: true}
	if within > 0 {
		f.DrainBy = time.Now().Add(within).UTC().Truncate(time.Microsecond)
	}
	return d.flag(ctx, name, f)
}

func (d *Dispatcher) flag(ctx context.Context, name string, f ledger.Flags) (jobs.WorkerInfo, error) {
	if err := d.ready(ctx); err != nil {
		return jobs.WorkerInfo{}, err
	}
	err := d.cfg.Store.Flag(ctx, name, f)
	if errors.Is(err, ledger.ErrNotFound) {
		return jobs.WorkerInfo{}, noWorker(name)
	}
	if err != nil {
		return jobs.WorkerInfo{}, d.broken(ctx, "flag worker", err)
	}
	d.mu.Lock()
	d.flags[name] = f
	d.match()
	d.mu.Unlock()
	return d.workerInfo(ctx, name)
}

func noWorker(name string) *jobs.Error {
	return &jobs.Error{Code: jobs.CodeNotFound, Message: fmt.Sprintf("no worker %.80q", name)}
}

func (d *Dispatcher) workerInfo(ctx context.Context, name string) (jobs.WorkerInfo, error) {
	all, err := d.Workers(ctx)
	if err != nil {
		return jobs.WorkerInfo{}, err
	}
	if i := slices.IndexFunc(all, func(i jobs.WorkerInfo) bool { return i.Name == name }); i >= 0 {
		return all[i], nil
	}
	return jobs.WorkerInfo{Name: name, State: jobs.FleetLost}, nil // the ledger alone knows of it
}

// RemoveWorker forgets a worker that is lost or drained, with what was said of it: what it still has is given to others at once.
func (d *Dispatcher) RemoveWorker(ctx context.Context, name string) (jobs.WorkerInfo, error) {
	was, err := d.workerInfo(ctx, name)
	if err != nil {
		return was, err
	}
	d.mu.Lock()
	w := d.workers[name]
	silent := w == nil || w.lost || w.waiting && !d.busy(w) || time.Since(w.seen) > takenFor
	acts := time.Duration(0) // until then machines of it can
	for _, e := range d.held {
		if w != nil && e.Worker == name && e.Network != "" {
			acts = d.cfg.LeaseTTL + d.cfg.Grace - time.Since(w.seen)
		}
	}
	d.mu.Unlock()
	if !silent {
		return was, &jobs.Error{Code: jobs.CodeConflict, Message: fmt.Sprintf("the worker %q is alive: end it first; what it has can be given to others by draining it", name)}
	}
	if acts > 0 {
		return was, &jobs.Error{
			Code: jobs.CodeConflict, Message: fmt.Sprintf("the worker %q may still run machines that have a network, for %s", name, acts.Round(time.Second)),
			RetryAfterMS: acts.Milliseconds() + 1,
		}
	}
	known, err := d.cfg.Store.Remove(ctx, name)
	if err != nil {
		return was, d.broken(ctx, "remove worker", err)
	}
	if !known && w == nil {
		return was, noWorker(name)
	}
	d.mu.Lock()
	delete(d.flags, name)
	delete(d.workers, name) // reconcile finds its attempts lost
	d.dismiss()
	d.match() // what was held up for it
	d.mu.Unlock()
	return was, nil
}

// overstays tells whether a job's worker is drained and has had its time; d.mu is held.
func (d *Dispatcher) overstays(e *ledger.Entry, now time.Time) bool {
	w, by := d.workers[e.Worker], d.flags[e.Worker].DrainBy
	return w != nil && !w.waiting && !by.IsZero() && now.After(by)
}

// evict gives an attempt to others, at no cost to the job's retries. Its worker hears of it with its next beat.
func (d *Dispatcher) evict(ctx context.Context, e ledger.Entry, why string) {
	notBefore := micro(time.Now())
	now := notBefore.UTC()
	if e.Network != "" { // its machine can act until its worker hears of it, or its lease has run out
		notBefore = notBefore.Add(d.cfg.LeaseTTL + d.cfg.Grace)
	}
	r := jobs.Result{Ending: jobs.WorkerLost, Class: jobs.ClassInfra, Reason: why, Worker: e.Worker, Attempt: e.Attempt, EndedAt: now}
	var ok bool
	var err error
	if d.cancelRequested(e.ID) {
		ok, err = d.settle(ctx, e, r, unnumbered)
	} else {
		ok, err = d.requeue(ctx, e, r, unnumbered, ledger.Retry{
			NotBefore: notBefore, InfraLeft: e.InfraLeft, UserLeft: e.UserLeft, FailedOn: e.FailedOn,
			Attempt: jobs.Attempt{Attempt: e.Attempt, Worker: e.Worker, Ending: r.Ending, Class: r.Class, Reason: r.Reason, LeasedAt: e.LeasedAt.UTC(), EndedAt: now},
		})
	}
	switch {
	case err != nil && ctx.Err() == nil:
		zerolog.Ctx(ctx).Error().Err(err).Str("job", e.ID).Msg("take a job from its worker") // reconcile tries again
	case err == nil && !ok:
		d.doubt(e.ID)
	}
}
