package worker_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker"
)

// places are networks that behave: each place is taken once, allows nothing until it is told, and knows whether its machine had ended
// when it was given up.
type places struct {
	mu      sync.Mutex
	live    int
	taken   int
	allowed []jobs.Network
	refuse  error // what Allow gives
	full    error // what Take gives
}

func (*places) Offers() []string { return []string{jobs.NetworkInternet, jobs.NetworkAllowlist} }

func (p *places) Take(context.Context) (worker.Network, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.full != nil {
		return nil, p.full
	}
	p.live++
	p.taken++
	return &place{of: p, left: sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.live--
	})}, nil
}

func (p *places) count() (live, taken int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.live, p.taken
}

type place struct {
	of   *places
	left func()
}

func (*place) Tap() *os.File { return os.Stdin }
func (*place) Guest() wire.Network {
	return wire.Network{Address: "169.254.100.2/30", Gateway: "169.254.100.1"}
}
func (*place) Dial(context.Context, uint16) (net.Conn, error) {
	return nil, errors.New("nobody listens")
}
func (p *place) Close() error { p.left(); return nil }

func (p *place) Allow(_ context.Context, n jobs.Network) error {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.of.allowed = append(p.of.allowed, n)
	return p.of.refuse
}

// wired is a driver that notes who was given a tap.
type wired struct {
	vmm.Driver
	mu      sync.Mutex
	taps    int
	without int
}

func (w *wired) Prepare(ctx context.Context, t vmm.Template, a vmm.Attach) (vmm.Prepared, error) {
	w.mu.Lock()
	if a.Tap != nil {
		w.taps++
	} else {
		w.without++
	}
	w.mu.Unlock()
	return w.Driver.Prepare(ctx, t, a)
}

func newWired(t *testing.T) (*rig, *places, *wired) {
	r, p := newRig(t), &places{}
	w := &wired{Driver: r.cfg.Driver}
	r.cfg.Driver, r.cfg.Networks = w, p
	return r, p, w
}

func internet(argv ...string) jobs.Spec {
	s := steps(argv)
	s.Network.Policy = jobs.NetworkInternet
	return s
}

// crowded are networks without a free place, until there is one.
type crowded struct {
	*places
	asked chan struct{}
	free  chan struct{} // closed when there is one
}

func (c *crowded) Take(ctx context.Context) (worker.Network, error) {
	c.asked <- struct{}{}
	select {
	case <-c.free:
	case <-ctx.Done():
	}
	select {
	case <-c.free: // however late it is
		return c.places.Take(ctx)
	default:
		return nil, context.Cause(ctx)
	}
}

// TestNoPlaceInTheNetwork: machines that wait for a place in the network hold up none that need no such place.
func TestNoPlaceInTheNetwork(t *testing.T) {
	r, p, _ := newWired(t)
	c := &crowded{p, make(chan struct{}, 10), make(chan struct{})}
	r.cfg.Networks, r.cfg.Makers = c, 1
	r.cfg.Ready, r.cfg.Prepared, r.cfg.Warm = 0, 0, nil
	r.run(t)
	waits := r.put(internet("true"))
	<-c.asked
	if rep := r.report(t, r.put(steps([]string{"true"})).Job); !rep.Result.Success() {
		t.Errorf("without a network it ended %s: %s", rep.Result.Ending, rep.Result.Reason)
	}
	close(c.free)
	if rep := r.report(t, waits.Job); !rep.Result.Success() {
		t.Errorf("with one it ended %s: %s", rep.Result.Ending, rep.Result.Reason)
	}
}

// TestNoPlaceInTheNetworkForLong: a job whose machine gets no place in the network goes back, as one that another worker may run, and holds up
// nothing here.
func TestNoPlaceInTheNetworkForLong(t *testing.T) {
	r, p, _ := newWired(t)
	c := &crowded{p, make(chan struct{}, 10), make(chan struct{})}
	r.cfg.Networks, r.cfg.PlaceWithin = c, 50*time.Millisecond
	r.cfg.Ready, r.cfg.Prepared, r.cfg.Warm = 0, 0, nil
	r.run(t)
	for range 2 { // the second is told of a first failure too
		rep := r.report(t, r.put(internet("true")).Job)
		if rep.Result.Ending != jobs.HostResources || !strings.Contains(rep.Result.Reason, "no place") {
			t.Errorf("it ended %s: %s", rep.Result.Ending, rep.Result.Reason)
		}
	}
	if n := len(c.asked); n != 2 {
		t.Errorf("a place was waited for %d times, by two jobs", n)
	}
	close(c.free)
	if rep := r.report(t, r.put(internet("true")).Job); !rep.Result.Success() {
		t.Errorf("when there was one it ended %s: %s", rep.Result.Ending, rep.Result.Reason)
	}
}

func TestNetworkedMachine(t *testing.T) {
	r, p, w := newWired(t)
	r.run(t)
	if rep := r.report(t, r.put(steps([]string{"true"})).Job); !rep.Result.Success() {
		t.Fatalf("without a network: %+v", rep.Result)
	}
	if _, taken := p.count(); taken != 0 || w.taps != 0 {
		t.Errorf("%d places and %d taps for a job without a network", taken, w.taps)
	}
	s := internet("true")
	s.Network = jobs.Network{Policy: jobs.NetworkAllowlist, Allow: []string{"example.com"}}
	if rep := r.report(t, r.put(s).Job); !rep.Result.Success() {
		t.Fatalf("with a network: %+v", rep.Result)
	}
	if diff := cmp.Diff([]jobs.Network{s.Network}, p.allowed); diff != "" {
		t.Errorf("allowed (-want +got):\n%s", diff)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if live, taken := p.count(); live != 0 || taken == 0 || w.taps != taken {
		t.Errorf("%d of %d places are still taken, %d taps", live, taken, w.taps)
	}
	if n := len(r.beats); n == 0 || !slices.Equal(r.beats[0].Networks, p.Offers()) {
		t.Errorf("the worker offers %v", r.beats[0].Networks)
	}
}

// TestNetworkFailures: what the host's network fails at is the host's failure, and no place is lost for it.
func TestNetworkFailures(t *testing.T) {
	for _, c := range []struct {
		name   string
		broken func(r *rig, p *places)
		ending jobs.Ending
		says   string
	}{
		{"no place", func(_ *rig, p *places) { p.full = errors.New("no slot is free") }, jobs.VMFailed, "no slot is free"},
		{"no rules", func(_ *rig, p *places) { p.refuse = errors.New("nftables says no") }, jobs.HostResources, "nftables says no"},
		{"what no job may reach", func(_ *rig, p *places) { p.refuse = fmt.Errorf("%w: 10.0.0.0/8", worker.ErrNeverAllowed) }, jobs.StartFailed, "10.0.0.0/8"},
		{"no networks at all", func(r *rig, _ *places) { r.cfg.Networks = nil }, jobs.VMFailed, "no networks"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, p, _ := newWired(t)
			c.broken(r, p)
			r.run(t)
			rep := r.report(t, r.put(internet("true")).Job)
			if rep.Result.Ending != c.ending || !strings.Contains(rep.Result.Reason, c.says) {
				t.Errorf("ended %s: %s", rep.Result.Ending, rep.Result.Reason)
			}
			if err := r.stop(); err != nil {
				t.Error(err)
			}
			if live, _ := p.count(); live != 0 {
				t.Errorf("%d places are still taken", live)
			}
		})
	}
}

// TestNetworkOfAMachineThatFails: its place is given up, whoever it was that failed.
func TestNetworkOfAMachineThatFails(t *testing.T) {
	r, p, w := newWired(t)
	w.Driver = failing{w.Driver}
	r.run(t)
	rep := r.report(t, r.put(internet("true")).Job)
	if rep.Result.Ending != jobs.VMFailed {
		t.Errorf("ended %s: %s", rep.Result.Ending, rep.Result.Reason)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if live, taken := p.count(); live != 0 || taken == 0 {
		t.Errorf("%d of %d places are still taken", live, taken)
	}
}

type failing struct{ vmm.Driver }

func (f failing) Prepare(ctx context.Context, t vmm.Template, a vmm.Attach) (vmm.Prepared, error) {
	if a.Tap != nil {
		return failsToRestore{}, nil
	}
	return f.Driver.Prepare(ctx, t, a)
}

type failsToRestore struct{}

func (failsToRestore) Restore(context.Context) (vmm.Machine, error) {
	return nil, errors.New("restore fails")
}
func (failsToRestore) Close() error { return nil }
