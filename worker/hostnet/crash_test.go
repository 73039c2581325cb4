package hostnet_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/paddockvm/paddock/worker/hostnet"
)

// worker is a process that has a Host, in the namespace of descriptor 3, and two slots of it; it waits to be killed, or for its input's end.
func worker(args []string) {
	ctx, stop := context.WithCancel(context.Background())
	h, err := hostnet.New(ctx, hostnet.Config{
		StateDir: args[0], Netns: "/proc/self/fd/3", Slots: 2, MaxSlots: 64, Bridge: bridgeOf(args[1:]), Upstream: []netip.AddrPort{netip.MustParseAddrPort(resolver + ":53")},
	})
	if err != nil {
		panic(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	var slots []*hostnet.Slot
	for range 2 {
		s, err := h.Take(ctx)
		if err != nil {
			panic(err)
		}
		if err := s.Allow(ctx, hostnet.Policy{Kind: hostnet.Internet}); err != nil {
			panic(err)
		}
		slots = append(slots, s)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	for _, s := range slots {
		if err := s.Close(); err != nil {
			panic(err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		panic(err)
	}
}

// churn takes slots and closes them until it is killed.
func churn(dir string) {
	ctx := context.Background()
	h, err := hostnet.New(ctx, hostnet.Config{
		StateDir: dir, Netns: "/proc/self/fd/3", Slots: 3, MaxSlots: 64, Upstream: []netip.AddrPort{netip.MustParseAddrPort(resolver + ":53")},
	})
	if err != nil {
		panic(err)
	}
	for range 3 {
		go func() {
			for {
				s, err := h.Take(ctx)
				if err == nil {
					err = s.Allow(ctx, hostnet.Policy{Kind: hostnet.Internet})
				}
				if err == nil {
					err = s.Close()
				}
				if err != nil {
					panic(err)
				}
			}
		}()
	}
	fmt.Println("ready")
	panic(h.Run(ctx))
}

// TestKilledAnywhere kills workers while they make, give and remove slots, one after the other; each has to begin with what the one before
// left.
func TestKilledAnywhere(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	docker(t, l)
	cfg := l.config(t)
	before := leftOf(t, l, cfg.StateDir)
	dirty := 0
	r := rand.New(rand.NewPCG(1, 2))
	for range 25 {
		c := startChild(t, l, "churn", cfg.StateDir)
		time.Sleep(time.Duration(r.IntN(150)) * time.Millisecond) // anywhere
		c.kill(t)
		if !leftOf(t, l, cfg.StateDir).none() {
			dirty++
		}
	}
	if dirty == 0 {
		t.Error("no killed worker left anything: there is nothing to see here")
	}
	ctx, stop := context.WithCancel(t.Context())
	h, err := hostnet.New(ctx, cfg)
	must(t, err)
	if f := leftOf(t, l, cfg.StateDir); !f.none() {
		t.Errorf("after New there is left: %+v", f)
	}
	stop()
	must(t, h.Run(ctx))
	settled(t, l, cfg.StateDir, before)
}

type child struct {
	cmd *exec.Cmd
	in  io.Closer
}

func startWorker(t *testing.T, l *lab, dir string, args ...string) *child {
	t.Helper()
	return startChild(t, l, append([]string{"worker", dir}, args...)...)
}

func startChild(t *testing.T, l *lab, args ...string) *child {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self, args...)
	cmd.ExtraFiles = []*os.File{l.host}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	c := &child{cmd, stdin}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the worker said %q: %v", line, err)
	}
	return c
}

func (c *child) kill(t *testing.T) {
	t.Helper()
	must(t, c.cmd.Process.Kill())
	c.cmd.Wait()
}

// left is what there is of slots on a lab's host.
type left struct {
	Links, Anchors, Mounts, Leases, Tables []string
}

func leftOf(t testing.TB, l *lab, dir string) left {
	t.Helper()
	var f left
	nl := rtnl(t, l.host)
	defer nl.Close()
	links, err := hostnet.Whole(nl.LinkList)
	must(t, err)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "pdk") {
			f.Links = append(f.Links, l.Attrs().Name)
		}
	}
	for sub, to := range map[string]*[]string{"netns": &f.Anchors, "leases": &f.Leases} {
		entries, _ := os.ReadDir(filepath.Join(dir, sub))
		for _, e := range entries {
			*to = append(*to, e.Name())
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		if w := strings.Fields(line); strings.HasPrefix(w[4], dir) {
			f.Mounts = append(f.Mounts, w[4])
		}
	}
	c, err := nftables.New(nftables.WithNetNSFd(int(l.host.Fd())))
	must(t, err)
	chains, err := c.ListChains()
	must(t, err)
	for _, chain := range chains {
		rules, err := c.GetRules(chain.Table, chain)
		must(t, err)
		f.Tables = append(f.Tables, fmt.Sprintf("%s %s %d", chain.Table.Name, chain.Name, len(rules)))
	}
	slices.Sort(f.Tables)
	return f
}

func (f left) none() bool {
	return len(f.Links)+len(f.Anchors)+len(f.Mounts)+len(f.Leases) == 0
}

func TestKilledWorker(t *testing.T) {
	t.Parallel()
	for name, bridge := range map[string][]string{"routed": nil, "bridged": {"br0", "192.168.77.0/24", "192.168.77.64/26", "192.168.77.254"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			if bridge != nil {
				l.bridge(t)
			}
			docker(t, l)
			cfg := l.config(t)
			cfg.Bridge = bridgeOf(bridge)
			before := leftOf(t, l, cfg.StateDir)
			dies, lives := startWorker(t, l, cfg.StateDir, bridge...), startWorker(t, l, cfg.StateDir, bridge...)
			if n := len(leftOf(t, l, cfg.StateDir).Links); n < 4 { // both have two taken, and perhaps one or two ready by now
				t.Fatalf("two workers have %d links", n)
			}
			// Nothing of the one that lives may go.
			dies.kill(t)
			had := leftOf(t, l, cfg.StateDir)
			if had.none() {
				t.Fatal("a killed worker left nothing: there is nothing to see here")
			}
			third := startWorker(t, l, cfg.StateDir, bridge...)
			must(t, lives.in.Close())
			if err := lives.cmd.Wait(); err != nil {
				t.Errorf("the worker that lived on: %v", err)
			}
			third.kill(t)
			if leftOf(t, l, cfg.StateDir).none() {
				t.Fatal("a killed worker left nothing: there is nothing to see here")
			}

			ctx, stop := context.WithCancel(t.Context())
			h, err := hostnet.New(ctx, cfg)
			must(t, err)
			if f := leftOf(t, l, cfg.StateDir); !f.none() {
				t.Errorf("after New there is left: %+v", f)
			}
			stop()
			must(t, h.Run(ctx))
			settled(t, l, cfg.StateDir, before)
		})
	}
}

// settled holds what there is against what there was.
func settled(t *testing.T, l *lab, dir string, before left) {
	t.Helper()
	after := leftOf(t, l, dir)
	if fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("left: %+v\nbefore: %+v", after, before)
	}
}

func TestOtherRange(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cfg := l.config(t)
	other := startWorker(t, l, cfg.StateDir)
	cfg.Range = netip.MustParsePrefix("100.99.0.0/16")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if h, err := hostnet.New(ctx, cfg); err == nil {
		t.Error("two workers of one host have different ranges")
		cancel()
		must(t, h.Run(ctx))
	}
	if f := leftOf(t, l, cfg.StateDir); len(f.Links) == 0 || len(f.Tables) == 0 {
		t.Errorf("who was refused took away: %+v", f)
	}
	must(t, other.in.Close())
	must(t, other.cmd.Wait())
}
