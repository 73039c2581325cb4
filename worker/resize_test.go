package worker_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/inproc"
)

// growing is a driver whose machines can be resized, though their guests, in this process, use no more for it.
type growing struct {
	vmm.Driver
	mu    sync.Mutex
	sizes [][2]int
	keeps error         // what a machine says that shall have less; nil: it has
	ends  chan struct{} // what a machine waits for in its end; nil: nothing
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

func (m growingMachine) Resize(ctx context.Context, vcpus, memoryMiB int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	if n := len(m.g.sizes); m.g.keeps != nil && n > 0 && memoryMiB < m.g.sizes[n-1][1] {
		return m.g.keeps
	}
	m.g.sizes = append(m.g.sizes, [2]int{vcpus, memoryMiB})
	return nil
}

func (m growingMachine) Close() error {
	if m.g.ends != nil {
		<-m.g.ends
	}
	return m.Machine.Close()
}

func (g *growing) keep(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.keeps = err
}

// asking is who takes requests, and asks.
type asking struct {
	mu     sync.Mutex
	resize func(jobs.ResizeRequest) (jobs.Resources, error)
}

func (a *asking) ServeResizes(ctx context.Context, _, _ string, resize func(context.Context, jobs.ResizeRequest) (jobs.Resources, error)) (func(), error) {
	var answering sync.Mutex
	a.set(func(r jobs.ResizeRequest) (jobs.Resources, error) {
		answering.Lock()
		defer answering.Unlock()
		return resize(ctx, r)
	})
	return func() {
		a.set(nil)
		answering.Lock() // and nobody is answered any more
	}, nil
}

func (a *asking) set(resize func(jobs.ResizeRequest) (jobs.Resources, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.resize = resize
}

func (a *asking) get() func(jobs.ResizeRequest) (jobs.Resources, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.resize
}

// resizable gives a job that ends when end is called, of a machine that g can resize, on a worker of four processors and 1024 MiB; it runs,
// and resize asks for it.
func resizable(t *testing.T, r *rig, g *growing) (l jobs.Lease, resize func(jobs.ResizeRequest) (jobs.Resources, error), end func(),
) {
	t.Helper()
	a := &asking{}
	g.Driver = r.cfg.Driver
	r.cfg.Driver, r.cfg.Resizes, r.cfg.Capacity = g, a, jobs.Resources{VCPUs: 4, MemoryMiB: 1024}
	s, end := r.untilEnd()
	r.run(t)
	s.Resources, s.Headroom = jobs.Resources{VCPUs: 1, MemoryMiB: 64}, jobs.Resources{VCPUs: 8, MemoryMiB: 900}
	l = r.put(s)
	settled(t, "somebody to ask", func() bool { return a.get() != nil })
	return l, a.get(), end
}

// free waits for a request for leases with so much free.
func (r *rig) free(t *testing.T, vcpus, memoryMiB int) {
	t.Helper()
	want := jobs.Resources{VCPUs: vcpus, MemoryMiB: memoryMiB}
	settled(t, fmt.Sprintf("a request with %+v free", want), func() (is bool) {
		r.set(func() { is = len(r.requests) > 0 && r.requests[len(r.requests)-1].Free == want })
		return is
	})
}

// TestResizeThatCannotBeUndone: what a machine does not let go of is its own, in the worker's books too, until it has let go, or has ended.
func TestResizeThatCannotBeUndone(t *testing.T) {
	r, g := newRig(t), &growing{}
	l, resize, end := resizable(t, r, g)
	g.keep(errors.New("the guest does not let go of it"))
	_, err := resize(jobs.ResizeRequest{MemoryMiB: 576}) // this guest does not use it
	if e, ok := errors.AsType[*jobs.Error](err); !ok || e.Code != jobs.CodeUnsupported || !strings.Contains(e.Message, "does not let go") {
		t.Errorf("resize: %v", err)
	}
	r.free(t, 3, 448)
	for range 2 { // asked for again, it is not taken twice
		if _, err := resize(jobs.ResizeRequest{MemoryMiB: 576}); err == nil {
			t.Error("it has been resized")
		}
	}
	r.free(t, 3, 448)
	g.keep(nil)
	if _, err := resize(jobs.ResizeRequest{VCPUs: 2}); err == nil {
		t.Error("it has been resized")
	}
	r.free(t, 3, 960)
	g.keep(errors.New("not again"))
	if _, err := resize(jobs.ResizeRequest{MemoryMiB: 576}); err == nil {
		t.Error("it has been resized")
	}
	r.free(t, 3, 448)
	end()
	r.report(t, l.Job)
	r.free(t, 4, 1024)
}

// What a machine has grown by is its own until it has ended.
func TestResizedUntilTheEnd(t *testing.T) {
	earnest(t, func(t *testing.T, r *rig) {
		r.cfg.Ready, r.cfg.Warm = 0, nil
		g := &growing{keeps: errors.New("it keeps what it has"), ends: make(chan struct{})}
		letEnd := sync.OnceFunc(func() { close(g.ends) })
		defer letEnd()
		l, resize, end := resizable(t, r, g)
		if _, err := resize(jobs.ResizeRequest{MemoryMiB: 576}); err == nil {
			t.Error("it has been resized")
		}
		r.free(t, 3, 448)
		end()
		time.Sleep(10 * time.Second) // fake: the program has ended, its machine is about to, and two requests for leases were answered
		synctest.Wait()
		r.free(t, 3, 448)
		letEnd()
		r.report(t, l.Job)
		r.free(t, 4, 1024)
	})
}

// A guest that does not answer holds up neither who asks for another size nor the end of the job.
func TestGuestDoesNotAnswerAResize(t *testing.T) {
	earnest(t, func(t *testing.T, r *rig) {
		over := make(chan struct{})
		r.cfg.Driver = inproc.New(func(ctx context.Context, conn net.Conn) {
			converse(ctx, conn, func(ctx context.Context, s *wire.Stream, r *wire.Request) wire.Reply {
				switch r.Op {
				case wire.OpResize:
					<-ctx.Done()
				case wire.OpExec:
					<-over
					return wire.Reply{Exit: &wire.Exit{}}
				}
				return answer(ctx, s, r)
			})
		})
		l, resize, end := resizable(t, r, &growing{})
		began := time.Now()
		_, err := resize(jobs.ResizeRequest{VCPUs: 2})
		if e, ok := errors.AsType[*jobs.Error](err); !ok || e.Code != jobs.CodeUnsupported {
			t.Errorf("resize: %v", err)
		}
		if took := time.Since(began); took > time.Minute {
			t.Errorf("it took %v", took)
		}
		r.free(t, 3, 960)
		answered := make(chan error)
		go func() {
			_, err := resize(jobs.ResizeRequest{VCPUs: 2})
			answered <- err
		}()
		time.Sleep(time.Second) // fake; it waits for the guest
		end()
		close(over)
		began = time.Now()
		if rep := r.report(t, l.Job); !rep.Result.Success() {
			t.Errorf("ended %s: %s", rep.Result.Ending, rep.Result.Reason)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the job ended after %v", took)
		}
		if err := <-answered; err == nil {
			t.Error("it has been resized")
		}
		r.free(t, 4, 1024)
	})
}

// TestResizeKeepsTheBooks: what a machine may not have, or the worker has not, is refused before anything is done; where the guest does not
// use what came, the machine is made as it was, and the worker's capacity is whole again.
func TestResizeKeepsTheBooks(t *testing.T) {
	r, g := newRig(t), &growing{}
	l, resize, end := resizable(t, r, g)
	for _, c := range []struct {
		name string
		ask  jobs.ResizeRequest
		code jobs.Code
	}{
		{"more than its headroom", jobs.ResizeRequest{VCPUs: 9}, jobs.CodeInvalid},
		{"more memory than its headroom, rounded up", jobs.ResizeRequest{MemoryMiB: 961}, jobs.CodeInvalid},
		{"less than it began with", jobs.ResizeRequest{MemoryMiB: 63}, jobs.CodeInvalid},
		{"more than the worker has", jobs.ResizeRequest{VCPUs: 5}, jobs.CodeNoCapacity},
		{"what the guest does not use", jobs.ResizeRequest{VCPUs: 4, MemoryMiB: 300}, jobs.CodeUnsupported},
	} {
		now, err := resize(c.ask)
		if e, ok := errors.AsType[*jobs.Error](err); !ok || e.Code != c.code || now != l.Spec.Resources {
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
	r.free(t, 4, 1024)
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
