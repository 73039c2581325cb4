// Package soak makes and ends many machines, whole ones: jailed, with a network card, with Paddock's own agent inside, and kills them and
// what is around them at moments that nobody chose. What counts is that nothing is left.
package soak_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/test/harness"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor"
	"github.com/paddockvm/paddock/vmm/qemu"
	"github.com/paddockvm/paddock/vmm/vmmtest"
	"github.com/paddockvm/paddock/worker/hostnet"
	"github.com/paddockvm/paddock/worker/jail"
)

// This program is the tests, and the jail's stub.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "stub" {
		jail.Child(os.Args[2])
	}
	os.Exit(m.Run())
}

// rounds is how many machines are made: fewer where each takes seconds. PADDOCK_SOAK says otherwise.
func rounds(t *testing.T) int {
	t.Helper()
	if n, err := strconv.Atoi(os.Getenv("PADDOCK_SOAK")); err == nil {
		return n
	}
	if os.Getenv("REQUIRE_KVM") != "" {
		return 20
	}
	return 200
}

func TestQEMU(t *testing.T) {
	h := newHost(t)
	d, err := qemu.New(qemu.Config{
		RunDir: h.run, Launcher: h.launcher, CIDLock: filepath.Join(h.dir, "cids"), ProbeTimeout: 20 * time.Second, StepTimeout: 2 * time.Minute,
	})
	must(t, err)
	h.closing(d.Close)
	h.soak(t, d, rounds(t))
}

func TestCloudHypervisor(t *testing.T) {
	binary := os.Getenv("CLOUD_HYPERVISOR")
	if binary == "" {
		t.Skip("NOT RUN: CLOUD_HYPERVISOR names no cloud-hypervisor")
	}
	h := newHost(t)
	d, err := cloudhypervisor.New(cloudhypervisor.Config{
		Binary: binary, RunDir: h.run, Launcher: h.launcher, ProbeTimeout: 20 * time.Second, StepTimeout: 2 * time.Minute,
	})
	must(t, err)
	if _, err := d.Probe(t.Context()); err != nil {
		if os.Getenv("REQUIRE_KVM") != "" {
			t.Fatal(err)
		}
		t.Skip("NOT RUN: ", err)
	}
	h.soak(t, d, rounds(t))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// host is all that machines need of one, apart from what else runs on this machine: a network namespace, a uid and a cgroup of its own
// for each machine, directories of the test's.
type host struct {
	dir, run, netns string
	launcher        watched
	took            [stepsOfLife]time.Duration // by a machine that nobody killed
	net             *hostnet.Host
	closers         []func() error
}

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("needs root")
		}
		t.Skip("SKIPPED: needs root: machines are jailed and have networks")
	}
	dir, err := os.MkdirTemp("", "soak-") //nolint:usetesting // t.TempDir is too long for a socket in it
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := &host{dir: dir, run: filepath.Join(dir, "run"), netns: namespace(t)}
	l, err := jail.New(jail.Config{Self: []string{"/proc/self/exe", "stub"}, UIDLock: filepath.Join(dir, "uids"), CgroupParent: "/" + cgroupParent()})
	t.Cleanup(func() { removeCgroups(t) })
	must(t, err)
	h.closing(l.Close)
	h.launcher = watched{l}
	return h
}

func (h *host) closing(f func() error) { h.closers = append(h.closers, f) }

// slots are how many wait for machines.
const slots = 2

// connect begins to keep networks.
func (h *host) connect(t *testing.T) {
	t.Helper()
	n, err := hostnet.New(t.Context(), hostnet.Config{StateDir: filepath.Join(h.dir, "net"), Netns: h.netns, Slots: slots})
	must(t, err)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	h.net = n
	h.closing(func() error { stop(); return <-ended })
}

func (h *host) close(t *testing.T) {
	t.Helper()
	for i := len(h.closers) - 1; i >= 0; i-- {
		if err := h.closers[i](); err != nil {
			t.Error("close:", err)
		}
	}
	h.closers = nil
}

// template boots Paddock's base image with the agent as it is in this source, and a network card.
func (h *host) template(t *testing.T, d vmm.Driver) vmm.Template {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	img, err := harness.Image(ctx, "base")
	must(t, err)
	b := vmmtest.Agent(t, img.Kernel, img.Initrd, img.Root, img.Scratch)
	b.NIC = true
	s, err := h.net.Take(ctx)
	must(t, err)
	defer s.Close()
	m, err := d.Boot(ctx, b, vmm.Attach{Tap: s.Tap()})
	must(t, err)
	defer m.Close() // Snapshot has ended it
	conn, err := m.DialGuest(ctx)
	must(t, err)
	agent, err := client.Connect(ctx, conn)
	if err != nil {
		t.Fatalf("%v; console:\n%s", err, m.Console())
	}
	must(t, agent.Quiesce(ctx))
	must(t, agent.Close())
	tmpl, err := m.Snapshot(ctx, t.TempDir())
	must(t, err)
	return tmpl
}

// filesOf names the files that a template's clones share.
func filesOf(t *testing.T, tmpl vmm.Template) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(tmpl.Dir, "*"))
	must(t, err)
	return append(files, tmpl.Boot.Root, tmpl.Boot.Scratch)
}

// soak lives through many machines, three at once, and counts what is left.
func (h *host) soak(t *testing.T, d vmm.Driver, n int) {
	h.connect(t)
	tmpl := h.template(t, d)
	files := filesOf(t, tmpl)
	template := vmmtest.Hashes(t, files...)
	calm := rand.New(rand.NewPCG(0, 0))
	if res, err := h.life(t.Context(), d, tmpl, calm, h.measure); err != nil || !res.ran {
		t.Fatalf("a machine that nobody kills: %v, %+v", err, res)
	}
	before := h.still(t)
	var all tally
	// The first kill of each step is not left to chance, and has no neighbours.
	for step := range stepsOfLife {
		res, err := h.life(t.Context(), d, tmpl, calm, attack{step: step}.hurt)
		if ran := step >= duringClose; err != nil || res.ran != ran || res.hit != (step != never) {
			t.Errorf("killed %s: %v, %+v", stepNames[step], err, res)
		}
		all.add(step, res)
	}
	var next atomic.Int64
	next.Store(stepsOfLife)
	var three sync.WaitGroup
	seed := uint64(time.Now().UnixNano())
	for i := range 3 {
		three.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for at := next.Add(1) - 1; at < int64(n); at = next.Add(1) - 1 {
				step := int(at % stepsOfLife)
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
				res, err := h.life(ctx, d, tmpl, r, h.violence(step, r).hurt)
				cancel()
				if err != nil || step == never && !res.ran {
					t.Errorf("seed %d, killed %s: %v, %+v", seed, stepNames[step], err, res)
				}
				all.add(step, res)
			}
		})
	}
	three.Wait()
	t.Log(&all)
	for step, c := range all.steps {
		if c.aimed == 0 || c.hit == 0 && step != never {
			t.Errorf("%s: %+v", stepNames[step], c)
		}
	}
	h.settled(t, before)
	if diff := cmp.Diff(template, vmmtest.Hashes(t, files...)); diff != "" {
		t.Errorf("after %d clones the template has changed:\n%s", n, diff)
	}
	if now := filesOf(t, tmpl); !slices.Equal(now, files) {
		t.Errorf("the template's files are %v, and were %v", now, files)
	}
	h.close(t)
	h.empty(t)
}

// life is a machine's, from its place in the network to its end. What is done to it is no failure; what fails of itself is, and what cannot
// be cleaned up.
func (h *host) life(ctx context.Context, d vmm.Driver, tmpl vmm.Template, r *rand.Rand, hurt hurt) (res result, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v := &victim{cancel: cancel}
	ctx = context.WithValue(ctx, victimKey{}, v)
	unhurt := context.WithoutCancel(ctx)
	defer func() { res.hit = v.wasHit() }()
	s, err := h.net.Take(unhurt)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	kind := []hostnet.Kind{hostnet.None, hostnet.Internet, hostnet.Allowlist}[r.IntN(3)]
	if err := s.Allow(unhurt, hostnet.Policy{Kind: kind}); err != nil {
		return res, err
	}
	stop := hurt(duringPrepare, v)
	p, err := d.Prepare(ctx, tmpl, vmm.Attach{Tap: s.Tap()})
	stop()
	if err != nil {
		return res, v.excuse(err)
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	stop = hurt(duringRestore, v)
	m, err := p.Restore(ctx)
	stop()
	if err != nil {
		return res, v.excuse(err)
	}
	defer func() {
		stop := hurt(duringClose, v)
		defer stop()
		err = errors.Join(err, m.Close())
	}()
	stop = hurt(duringIntroduction, v)
	agent, err := introduce(ctx, m, s)
	stop()
	if err != nil {
		return res, v.excuse(err)
	}
	defer agent.Close()
	stop = hurt(duringRun, v)
	err = program(ctx, agent)
	stop()
	res.ran = err == nil
	return res, v.excuse(err)
}

// introduce makes the guest a machine of its own.
func introduce(ctx context.Context, m vmm.Machine, s *hostnet.Slot) (*client.Client, error) {
	conn, err := m.DialGuest(ctx)
	if err != nil {
		return nil, err
	}
	agent, err := client.Connect(ctx, conn)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	g := s.Guest()
	_, err = agent.Restore(ctx, wire.Restore{
		Epoch: make([]byte, 16), Entropy: make([]byte, 64), MachineID: fmt.Sprintf("%032x", rand.Uint64()), TimeUnixNS: time.Now().UnixNano(),
		Hostname: m.ID(), Scratch: true,
		Network: &wire.Network{Address: g.Address.String(), Gateway: g.Gateway.String(), GatewayMAC: hostnet.HostMAC, DNS: []string{g.DNS.String()}, MTU: g.MTU},
	})
	if err != nil {
		_ = agent.Close() // of a machine that may be dead
		return nil, err
	}
	return agent, nil
}

// program runs one in the guest.
func program(ctx context.Context, agent *client.Client) error {
	exit, err := agent.Exec(ctx, wire.Exec{
		ID: "soak", Argv: []string{"/bin/sh", "-c", "dd if=/dev/zero of=/work/x bs=64k count=16 2>/dev/null; cat /proc/net/route"}, User: "sandbox",
		Env: []string{"PATH=/usr/bin:/bin"}, Limits: wire.ExecLimits{WallMS: 60_000, OutputBytes: 1 << 16},
	}, client.Streams{})
	if err == nil && exit.Code != 0 {
		return fmt.Errorf("the program ended with %d", exit.Code)
	}
	return err
}
