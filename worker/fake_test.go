package worker_test

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker"
)

// fleet is a dispatcher that behaves, without a ledger: it gives out what is put in, knows who holds what, fences by epoch, and can
// be made to vanish, to cancel and to drop.
type fleet struct {
	mu       sync.Mutex
	changed  *sync.Cond
	queue    []jobs.Lease
	holds    map[string]jobs.Held
	reports  []jobs.Report
	fenced   []jobs.Report
	beats    []jobs.Beat
	session  int64
	cancel   map[string]bool
	drop     map[string]bool
	away     bool // every call fails
	deaf     bool // reports fail
	drain    bool
	leaving  bool // the worker has said that it takes no more
	ttl      time.Duration
	requests []jobs.LeaseRequest
	standing int // requests for leases that are not answered yet
}

func newFleet() *fleet {
	f := &fleet{holds: map[string]jobs.Held{}, cancel: map[string]bool{}, drop: map[string]bool{}, ttl: 5 * time.Second}
	f.changed = sync.NewCond(&f.mu)
	return f
}

var errAway = &jobs.Error{Code: jobs.CodeUnavailable, Message: "no dispatcher answers"}

// put queues a job and gives its lease.
func (f *fleet) put(spec jobs.Spec) jobs.Lease {
	f.mu.Lock()
	defer f.mu.Unlock()
	if spec.Image == "" {
		spec.Image = "base"
	}
	l := jobs.Lease{Held: jobs.Held{Job: jobs.NewID(), Attempt: 1, Epoch: int64(len(f.holds) + len(f.queue) + 1)}, Tenant: "default", Spec: spec, Image: spec.Image, AcceptedAt: time.Now()}
	f.queue = append(f.queue, l)
	f.changed.Broadcast()
	return l
}

func (f *fleet) Lease(ctx context.Context, r jobs.LeaseRequest) (jobs.LeaseReply, error) {
	stop := context.AfterFunc(ctx, f.changed.Broadcast)
	defer stop()
	timeout := time.AfterFunc(time.Duration(r.WaitMS)*time.Millisecond, f.changed.Broadcast)
	defer timeout.Stop()
	end := time.Now().Add(time.Duration(r.WaitMS) * time.Millisecond)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, r)
	f.standing++
	defer func() { f.standing-- }()
	for {
		switch {
		case f.away:
			return jobs.LeaseReply{}, errAway
		case ctx.Err() != nil:
			return jobs.LeaseReply{}, ctx.Err()
		case len(f.queue) > 0:
			n := min(len(f.queue), r.Slots)
			leases := slices.Clone(f.queue[:n])
			f.queue = f.queue[n:]
			for _, l := range leases {
				f.holds[l.Job] = l.Held
			}
			return jobs.LeaseReply{Leases: leases}, nil
		case f.leaving, time.Now().After(end):
			return jobs.LeaseReply{}, nil
		}
		f.changed.Wait()
	}
}

func (f *fleet) Beat(_ context.Context, b jobs.Beat) (jobs.BeatReply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return jobs.BeatReply{}, errAway
	}
	if b.Session == 0 || b.Session != f.session {
		f.session++
	}
	f.beats = append(f.beats, b)
	f.leaving = b.Draining
	f.changed.Broadcast()
	r := jobs.BeatReply{Session: f.session, TTLMS: f.ttl.Milliseconds(), Drain: f.drain}
	for _, h := range b.Running {
		if f.cancel[h.Job] {
			r.Cancel = append(r.Cancel, h)
		}
		if f.drop[h.Job] {
			r.Drop = append(r.Drop, h)
		}
	}
	return r, nil
}

func (f *fleet) Report(_ context.Context, r jobs.Report) (jobs.ReportReply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away || f.deaf {
		return jobs.ReportReply{}, errAway
	}
	defer f.changed.Broadcast()
	if f.holds[r.Job].Epoch != r.Epoch {
		f.fenced = append(f.fenced, r)
		return jobs.ReportReply{Fenced: true}, nil
	}
	delete(f.holds, r.Job)
	f.reports = append(f.reports, r)
	return jobs.ReportReply{}, nil
}

// set changes the fleet and wakes everyone.
func (f *fleet) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	f.changed.Broadcast()
}

// patience is longer than a loaded machine holds anything up: only what hangs is cut off.
const patience = 2 * time.Minute

// until waits for a condition on the fleet.
func (f *fleet) until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stop := context.AfterFunc(ctx, f.changed.Broadcast)
	defer stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	for !cond() {
		if ctx.Err() != nil {
			t.Fatalf("still not: %s", what)
		}
		f.changed.Wait()
	}
}

// report waits for a job's report.
func (f *fleet) report(t *testing.T, job string) jobs.Report {
	t.Helper()
	i := -1
	f.until(t, "report of "+job, func() bool {
		i = slices.IndexFunc(f.reports, func(r jobs.Report) bool { return r.Job == job })
		return i >= 0
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reports[i]
}

// board keeps the events that were published, and can be made to fail.
type board struct {
	mu     sync.Mutex
	events map[string][]jobs.Event
	broken bool
	tries  int
	tried  map[string]bool // by job, attempt and seq
}

func (b *board) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.tries
}

func (b *board) Publish(_ context.Context, events ...jobs.Event) error {
	return b.take(events, "publish")
}

func (b *board) Republish(_ context.Context, events ...jobs.Event) error {
	return b.take(events, "republish")
}

// take wants what was refused, or not answered, to be republished: nobody but a worker knows whether events may be stored.
func (b *board) take(events []jobs.Event, how string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tries++
	for _, e := range events {
		at := fmt.Sprint(e.Job, " ", e.Attempt, " ", e.Seq)
		if b.tried[at] && how != "republish" {
			panic("published again, as if for the first time: " + at)
		}
		if b.tried == nil {
			b.tried = map[string]bool{}
		}
		b.tried[at] = true
	}
	if b.broken {
		return errAway
	}
	if b.events == nil {
		b.events = map[string][]jobs.Event{}
	}
	for _, e := range events {
		b.events[e.Job] = append(b.events[e.Job], e)
	}
	return nil
}

func (b *board) of(job string) []jobs.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.events[job])
}

// input is that of programs which run until it ends: what is looked at while they run takes the time that it takes.
type input chan struct{}

func (i input) OpenStdin(ctx context.Context, _, _ string, _ io.WriteCloser) (serve func(), err error) {
	return func() {
		select {
		case <-i:
		case <-ctx.Done():
		}
	}, nil
}

// untilEnd gives a job that runs until end is called, on a worker that is still to run.
func (r *rig) untilEnd() (s jobs.Spec, end func()) {
	i := make(input)
	r.cfg.Stdin = i
	s = steps([]string{"cat"})
	s.StdinStream = true
	return s, func() { close(i) }
}

// catalog has one image, for a driver that needs no files.
type catalog struct {
	driver string
	err    error
}

func (c catalog) Offered() []jobs.OfferedImage {
	return []jobs.OfferedImage{{Name: "base", Digest: "d", Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 64}}}
}

func (c catalog) Offer(name string) (jobs.OfferedImage, bool) { return offered(c, name) }

// offered is Offer for who has Offered.
func offered(c worker.Images, name string) (jobs.OfferedImage, bool) {
	for _, o := range c.Offered() {
		if o.Name == name {
			return o, true
		}
	}
	return jobs.OfferedImage{}, false
}

func (c catalog) Template(context.Context, string, jobs.Shape) (vmm.Template, string, error) {
	return vmm.Template{Driver: c.driver}, "template-digest", c.err
}

func (c catalog) Templates() map[string][]jobs.Shape { return nil }

func (c catalog) Env(string) []string { return []string{"PATH=/bin"} }
