package worker_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
)

// growing is a driver whose machines can be resized, though their guests, in this process, use no more for it.
type growing struct {
	vmm.Driver
	mu    sync.Mutex
	sizes [][2]int
}

func (g *growing) Prepare(ctx context.Context, t vmm.Template, a vmm.Attach) (vmm.Prepared, error) {
	p, err := g.Driver.Prepare(ctx, t, a)
	return growingPrepared{p, g}, err
}

type growingPrepared struct {
	vmm.Prepared
	g *growing
}

func (p growingPrepared) Restore(ctx context.Context) (vmm.Machine, error) {
	m, err := p.Prepared.Restore(ctx)
	return growingMachine{m, p.g}, err
}

type growingMachine struct {
	vmm.Machine
	g *growing
}

var _ vmm.Resizer = growingMachine{}

func (m growingMachine) Resize(_ context.Context, vcpus, memoryMiB int) error {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	m.g.sizes = append(m.g.sizes, [2]int{vcpus, memoryMiB})
	return nil
}

// asking is who takes requests, and asks.
type asking struct {
	mu     sync.Mutex
	resize func(context.Context, jobs.ResizeRequest) (jobs.Resources, error)
}

func (a *asking) ServeResizes(_ context.Context, _, _ string, resize func(context.Context, jobs.ResizeRequest) (jobs.Resources, error)) (func(), error) {
	a.set(resize)
	return func() { a.set(nil) }, nil
}

func (a *asking) set(resize func(context.Context, jobs.ResizeRequest) (jobs.Resources, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.resize = resize
}

func (a *asking) get() func(context.Context, jobs.ResizeRequest) (jobs.Resources, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.resize
}

// TestResizeKeepsTheBooks: what a machine may not have, or the worker has not, is refused before anything is done; where the guest does not
// use what came, the machine is made as it was, and the worker's capacity is whole again.
func TestResizeKeepsTheBooks(t *testing.T) {
	r, a := newRig(t), &asking{}
	g := &growing{Driver: r.cfg.Driver}
	r.cfg.Driver, r.cfg.Resizes = g, a
	r.cfg.Capacity = jobs.Resources{VCPUs: 4, MemoryMiB: 1024}
	s, end := r.untilEnd()
	r.run(t)
	s.Resources, s.Headroom = jobs.Resources{VCPUs: 1, MemoryMiB: 64}, jobs.Resources{VCPUs: 8, MemoryMiB: 300}
	l := r.put(s)
	settled(t, "somebody to ask", func() bool { return a.get() != nil })
	resize := a.get()
	for _, c := range []struct {
		name string
		ask  jobs.ResizeRequest
		code jobs.Code
	}{
		{"more than its headroom", jobs.ResizeRequest{VCPUs: 9}, jobs.CodeInvalid},
		{"more memory than its headroom, rounded up", jobs.ResizeRequest{MemoryMiB: 321}, jobs.CodeInvalid},
		{"less than it began with", jobs.ResizeRequest{MemoryMiB: 63}, jobs.CodeInvalid},
		{"more than the worker has", jobs.ResizeRequest{VCPUs: 5}, jobs.CodeNoCapacity},
		{"what the guest does not use", jobs.ResizeRequest{VCPUs: 4, MemoryMiB: 300}, jobs.CodeUnsupported},
	} {
		now, err := resize(t.Context(), c.ask)
		if e, ok := errors.AsType[*jobs.Error](err); !ok || e.Code != c.code || now != s.Resources {
			t.Errorf("%s: %+v, %v", c.name, now, err)
		}
	}
	g.mu.Lock()
	if diff := cmp.Diff([][2]int{{4, 320}, {1, 64}}, g.sizes); diff != "" {
		t.Errorf("the machine's sizes (-want +got):\n%s", diff)
	}
	g.mu.Unlock()
	end()
	if rep := r.report(t, l.Job); !rep.Result.Success() {
		t.Errorf("ended %s: %s", rep.Result.Ending, rep.Result.Reason)
	}
	settled(t, "nobody who asks", func() bool { return a.get() == nil })
	settled(t, "a request with all of the capacity", func() bool {
		whole := false
		r.set(func() {
			whole = slices.ContainsFunc(r.requests[len(r.requests)-1:], func(q jobs.LeaseRequest) bool { return q.Free == r.cfg.Capacity })
		})
		return whole
	})
}

// TestNoHeadroom: nobody can resize a machine that was not made for it.
func TestNoHeadroom(t *testing.T) {
	r, a := newRig(t), &asking{}
	r.cfg.Driver, r.cfg.Resizes = &growing{Driver: r.cfg.Driver}, a
	r.run(t)
	l := r.put(steps([]string{"sleep", "0.3"}))
	for running := true; running; running = len(r.board.of(l.Job)) == 0 {
		if a.get() != nil {
			t.Fatal("requests are taken")
		}
	}
	r.report(t, l.Job)
}
