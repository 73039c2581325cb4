package cloudhypervisor_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// fakeBoot is a machine to boot whose files are small.
func fakeBoot(t testing.TB) vmm.Boot {
	t.Helper()
	dir := t.TempDir()
	b := vmm.Boot{Cmdline: "quiet", VCPUs: 1, MemoryMiB: 8}
	for name, path := range map[string]*string{"kernel": &b.Kernel, "initrd": &b.Initrd, "root": &b.Root, "scratch": &b.Scratch} {
		*path = filepath.Join(dir, name)
		must(t, os.WriteFile(*path, []byte(strings.Repeat(name, 1000)), 0o444))
	}
	return b
}

// talk is with the fake's guest, which has no network card to try.
type talk struct{ vmmtest.TestGuest }

// TestFakeConformance holds the fake against what the real one is held against, in every version that it plays.
func TestFakeConformance(t *testing.T) {
	for _, version := range []string{"v51.0", "v52.0", "v53.0", "v54.0-3-g0123456"} {
		t.Run(version, func(t *testing.T) {
			l, d := newFakes(t, version)
			vmmtest.Run(t, vmmtest.Fixture{
				Driver: d, Boot: fakeBoot(t), Guest: talk{},
				Kill: func(m vmm.Machine) error {
					l.mu.Lock()
					defer l.mu.Unlock()
					l.procs[m.ID()].end(errKilled)
					return nil
				},
			})
		})
	}
}

func TestVersions(t *testing.T) {
	for version, want := range map[string]string{
		"v50.1": "v51.0 or newer", "v9.0": "v51.0 or newer", "main": "not a release", "": "not a release", "v51.0": "", "v53.0-dirty": "", "v100.2": "",
	} {
		_, d := newFakes(t, version)
		caps, err := d.Probe(within(t))
		if want == "" && (err != nil || caps.Version != version) {
			t.Errorf("%s: %+v, %v", version, caps, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", version, err)
		}
	}
}

// Where machines fail since the VMM was replaced under a process that runs, the error says so.
func TestReplacedUnderUs(t *testing.T) {
	l, _ := newFakes(t, "v53.0")
	binary := filepath.Join(t.TempDir(), "cloud-hypervisor")
	must(t, os.WriteFile(binary, []byte("#!/bin/true\n"), 0o755))
	d, err := cloudhypervisor.New(cloudhypervisor.Config{Binary: binary, RunDir: t.TempDir(), Launcher: l})
	must(t, err)
	_, err = d.Probe(within(t))
	must(t, err)
	l.version = "v9.0"
	if _, err := d.Boot(within(t), fakeBoot(t), vmm.Attach{}); err == nil || strings.Contains(err.Error(), "was replaced") {
		t.Errorf("another version by the same name: %v", err)
	}
	must(t, os.WriteFile(binary+".new", []byte("#!/bin/true\n"), 0o755))
	must(t, os.Rename(binary+".new", binary))
	if _, err := d.Boot(within(t), fakeBoot(t), vmm.Attach{}); err == nil || !strings.Contains(err.Error(), binary+" was replaced since this process started") {
		t.Errorf("it has been replaced: %v", err)
	}
}

// TestCard has a tap go with the requests, at the creation and at each restore, and the note of the template's gone.
func TestCard(t *testing.T) {
	_, d := newFakes(t, "v53.0")
	boot := fakeBoot(t)
	boot.NIC = true
	if _, err := d.Boot(within(t), boot, vmm.Attach{}); err == nil || !strings.Contains(err.Error(), "tap") {
		t.Errorf("boot without a tap: %v", err)
	}
	vmmtest.NoLeaks(t)
	tap := vmmtest.NewWire(t).Tap
	m, err := d.Boot(within(t), boot, vmm.Attach{Tap: tap})
	must(t, err)
	defer m.Close()
	template, err := m.Snapshot(within(t), t.TempDir())
	must(t, err)
	p, err := d.Prepare(within(t), template, vmm.Attach{Tap: tap})
	must(t, err)
	c, err := p.Restore(within(t))
	must(t, err)
	must(t, c.Close())
}

// TestResizing holds the limits against what was booted.
func TestResizing(t *testing.T) {
	l, _ := newFakes(t, "v53.0")
	scales := &vmmtest.Scales{Launcher: l}
	d, err := cloudhypervisor.New(cloudhypervisor.Config{Binary: "/bin/true", RunDir: t.TempDir(), Launcher: scales})
	must(t, err)
	boot := fakeBoot(t)
	boot.MaxVCPUs = 2
	m, err := d.Boot(within(t), boot, vmm.Attach{})
	must(t, err)
	defer m.Close()
	before := scales.Weight(m.ID())
	r := m.(vmm.Resizer)
	weightless := errors.New("it cannot be weighed")
	scales.Refuse(weightless)
	if err := r.Resize(within(t), 2, 8); !errors.Is(err, weightless) {
		t.Errorf("weight: %v", err)
	}
	scales.Refuse(nil)
	must(t, r.Resize(within(t), 2, 8))
	if after := scales.Weight(m.ID()); before.CPUs != 1.5 || after.CPUs != 2.5 || before.MemoryBytes <= 8<<20 || after.MemoryBytes != before.MemoryBytes {
		t.Errorf("it weighs %v, and with another processor %v", before, after)
	}
	for _, size := range [][2]int{{0, 8}, {3, 8}, {1, 16}} {
		if err := r.Resize(within(t), size[0], size[1]); err == nil {
			t.Errorf("it has become %v", size)
		}
	}
}

// TestResizeWaits: a machine has fewer processors when its guest has let go of the others, and no sooner.
func TestResizeWaits(t *testing.T) {
	c := newCheckpoints(t, "v53.0", time.Minute)
	vm, r, memoryMiB := c.procs[c.ID()].vm, c.Machine.(vmm.Resizer), c.base.Boot.MemoryMiB
	has := func(want int) {
		t.Helper()
		vm.mu.Lock()
		defer vm.mu.Unlock()
		if vm.vcpus != want || vm.leaving != 0 {
			t.Errorf("it has %d processors, of which %d leave, want %d", vm.vcpus, vm.leaving, want)
		}
	}
	keeps := func(keeps bool) {
		vm.mu.Lock()
		defer vm.mu.Unlock()
		vm.keeps = keeps
	}
	must(t, r.Resize(within(t), 2, memoryMiB))
	must(t, r.Resize(within(t), 1, memoryMiB))
	has(1)
	for _, next := range []int{2, 1} { // what was begun is ended first
		must(t, r.Resize(within(t), 2, memoryMiB))
		keeps(true)
		ctx, cancel := context.WithTimeout(within(t), 50*time.Millisecond)
		defer cancel()
		if err := r.Resize(ctx, 1, memoryMiB); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a guest that keeps what it has: %v", err)
		}
		if err := c.take(t, within(t)); !errors.Is(err, vmm.ErrUnsupported) {
			t.Errorf("of a machine whose processors leave: %v", err)
		}
		keeps(false)
		must(t, r.Resize(within(t), next, memoryMiB))
		has(next)
	}
	must(t, r.Resize(within(t), 2, memoryMiB))
	for _, f := range []fault{silent, unheard} { // whether or not it obeyed, it is as it was
		ctx, cancel := context.WithCancel(within(t))
		defer cancel()
		c.next("vm.resize", f, cancel)
		if err := r.Resize(ctx, 1, memoryMiB); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", f, err)
		}
		has(2)
	}
	must(t, r.Resize(within(t), 1, memoryMiB))
	must(t, c.take(t, within(t)))
}

// TestResizeNotHeard: a machine that has been given processors, and did not say so, gives them back.
func TestResizeNotHeard(t *testing.T) {
	c := newCheckpoints(t, "v53.0", 30*time.Second)
	vm, memoryMiB := c.procs[c.ID()].vm, c.base.Boot.MemoryMiB
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	c.next("vm.resize", unheard, cancel)
	if err := c.Machine.(vmm.Resizer).Resize(ctx, 2, memoryMiB); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	vm.mu.Lock()
	if vm.vcpus != 1 {
		t.Errorf("it has %d processors", vm.vcpus)
	}
	vm.mu.Unlock()
	must(t, c.take(t, within(t))) // it is as its template
	c.answers(t)
}

// TestDiskLimits has them in the request, and in a clone's configuration as they are then.
func TestDiskLimits(t *testing.T) {
	l, _ := newFakes(t, "v53.0")
	dir := t.TempDir()
	driver := func(limits vmm.DiskLimits) *cloudhypervisor.Driver {
		d, err := cloudhypervisor.New(cloudhypervisor.Config{Binary: "/bin/true", RunDir: dir, Launcher: l, Disk: limits})
		must(t, err)
		return d
	}
	m, err := driver(vmm.DiskLimits{BytesPerSecond: 1 << 20}).Boot(within(t), fakeBoot(t), vmm.Attach{})
	must(t, err)
	template, err := m.Snapshot(within(t), t.TempDir())
	must(t, err)
	for limits, want := range map[vmm.DiskLimits]any{
		{}: nil,
		{OpsPerSecond: 100, BytesPerSecond: 5 << 20}: []any{map[string]any{"id": "disks", "rate_limiter_config": map[string]any{
			"bandwidth": map[string]any{"size": 5e0 * (1 << 20), "refill_time": 1000.0}, "ops": map[string]any{"size": 100.0, "refill_time": 1000.0},
		}}},
	} {
		p, err := driver(limits).Prepare(within(t), template, vmm.Attach{})
		must(t, err)
		m, err := p.Restore(within(t))
		must(t, err)
		vm := l.procs[m.ID()].vm
		if diff := cmp.Diff(want, vm.config["rate_limit_groups"]); diff != "" {
			t.Errorf("%+v: %s", limits, diff)
		}
		for _, disk := range vm.config["disks"].([]any) {
			if _, limited := disk.(map[string]any)["rate_limit_group"]; limited != (want != nil) {
				t.Errorf("%+v: disk %v", limits, disk)
			}
		}
		must(t, m.Close())
	}
}

// TestFaults has everything go wrong at every request, and wants an error that says what, and nothing left.
func TestFaults(t *testing.T) {
	l, d := newFakes(t, "v51.0") // the one with the most requests
	boot, guest := fakeBoot(t), vmmtest.TestGuest{}
	template := vmmtest.Build(t, d, boot, guest)
	prepare := func(t *testing.T) vmm.Prepared {
		p, err := d.Prepare(within(t), template, vmm.Attach{})
		must(t, err) // the fault is for later
		return p
	}
	for _, phase := range []struct {
		name  string
		paths []string
		run   func(*testing.T, context.Context) error
	}{
		{"prepare", []string{"vmm.ping"}, func(_ *testing.T, ctx context.Context) error {
			p, err := d.Prepare(ctx, template, vmm.Attach{})
			if err != nil {
				return err
			}
			return p.Close()
		}},
		{"restore", []string{"vm.restore", "vm.resume"}, func(t *testing.T, ctx context.Context) error {
			p := prepare(t)
			m, err := p.Restore(ctx)
			if err != nil {
				return errors.Join(err, p.Close())
			}
			return m.Close()
		}},
		{"boot", []string{"vmm.ping", "vm.create", "vm.boot"}, func(_ *testing.T, ctx context.Context) error {
			m, err := d.Boot(ctx, boot, vmm.Attach{})
			if err != nil {
				return err
			}
			return m.Close()
		}},
		{"snapshot", []string{"vm.pause", "vm.snapshot"}, func(t *testing.T, ctx context.Context) error {
			m, err := d.Boot(within(t), boot, vmm.Attach{})
			must(t, err)
			defer m.Close()
			dir := t.TempDir()
			_, err = m.Snapshot(ctx, dir)
			if left, _ := os.ReadDir(dir); err != nil && len(left) > 0 {
				t.Errorf("files left: %v", left)
			}
			select {
			case <-m.Done():
			default:
				t.Error("the machine lives after its snapshot")
			}
			return err
		}},
		{"pause", []string{"vm.pause"}, func(t *testing.T, ctx context.Context) error {
			m, err := prepare(t).Restore(within(t))
			must(t, err)
			return errors.Join(m.Pause(ctx), m.Close())
		}},
		{"resize", []string{"vm.resize"}, func(t *testing.T, ctx context.Context) error {
			m, err := prepare(t).Restore(within(t))
			must(t, err)
			return errors.Join(m.(vmm.Resizer).Resize(ctx, 1, boot.MemoryMiB), m.Close())
		}},
		{"probe", []string{"vmm.ping", "vm.create", "vm.boot"}, func(t *testing.T, ctx context.Context) error {
			fresh, err := cloudhypervisor.New(cloudhypervisor.Config{Binary: "/bin/true", RunDir: t.TempDir(), Launcher: l})
			must(t, err)
			_, err = fresh.Probe(ctx)
			return err
		}},
	} {
		for _, path := range phase.paths {
			for _, f := range []fault{killBefore, killAfter, refuse, silent, unheard, garbage, hangUp, endless, badEvents} {
				if f == unheard && phase.name == "probe" && path == "vm.boot" {
					continue // the guest's end says it all
				}
				t.Run(phase.name+"/"+path+"/"+string(f), func(t *testing.T) {
					strike(t, l, path, f, phase.run)
				})
			}
		}
	}
}

// strike runs with a fault.
func strike(t *testing.T, l *fakeLauncher, path string, f fault, run func(*testing.T, context.Context) error) {
	vmmtest.NoLeaks(t)
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	onHit := func() {}
	if f == silent || f == unheard {
		onHit = cancel // nothing else would end the wait
	}
	l.next(path, f, onHit)
	defer l.next("", noMoreWords, nil)
	err := run(t, ctx)
	if err == nil && f != killAfter && f != badEvents { // one that is killed may have answered before, and its events are a guest's affair
		t.Error("nobody noticed")
	}
	if l.hits == 0 {
		t.Error("the fault was never met")
	}
	if f == refuse && !strings.Contains(fmt.Sprint(err), "sabotage") {
		t.Errorf("error does not say what the VMM said: %v", err)
	}
	if (f == silent || f == unheard) && !errors.Is(err, context.Canceled) {
		t.Errorf("error does not say that it was cancelled: %v", err)
	}
}

// TestLaunchFails leaves nothing of a process that there never was.
func TestLaunchFails(t *testing.T) {
	l, d := newFakes(t, "v53.0")
	boot := fakeBoot(t)
	_, err := d.Probe(within(t))
	must(t, err)
	vmmtest.NoLeaks(t)
	l.refuse = errors.New("no process today")
	if m, err := d.Boot(within(t), boot, vmm.Attach{}); !errors.Is(err, l.refuse) {
		t.Errorf("boot: %v", err)
		if err == nil {
			m.Close()
		}
	}
	if _, err := mustNew(t, l).Probe(within(t)); !errors.Is(err, l.refuse) {
		t.Errorf("probe: %v", err)
	}
}

func mustNew(t *testing.T, l *fakeLauncher) *cloudhypervisor.Driver {
	t.Helper()
	d, err := cloudhypervisor.New(cloudhypervisor.Config{Binary: "/bin/true", RunDir: t.TempDir(), Launcher: l})
	must(t, err)
	return d
}

// TestSlowVMM is given up when its time is over.
func TestSlowVMM(t *testing.T) {
	l, _ := newFakes(t, "v53.0")
	d, err := cloudhypervisor.New(cloudhypervisor.Config{Binary: "/bin/true", RunDir: t.TempDir(), Launcher: l, StepTimeout: 100 * time.Millisecond})
	must(t, err)
	vmmtest.NoLeaks(t)
	l.next("vm.boot", silent, nil)
	if _, err := d.Probe(within(t)); err == nil || !strings.Contains(err.Error(), "100ms") {
		t.Errorf("err = %v", err)
	}
}

// TestBrokenTemplate leaves nothing of a template that is none.
func TestBrokenTemplate(t *testing.T) {
	_, d := newFakes(t, "v53.0")
	whole := vmmtest.Build(t, d, fakeBoot(t), talk{})
	for name, breakIt := range map[string]func(dir string) error{
		"a shorter memory": func(dir string) error { return os.Truncate(dir+"/memory", 4096) },
		"a configuration":  func(dir string) error { return os.WriteFile(dir+"/config.json", []byte("noise"), 0) },
		"no state":         func(dir string) error { return os.Remove(dir + "/state.json") },
		"memory to copy":   func(dir string) error { return os.WriteFile(dir+"/memory-ranges", nil, 0o444) },
		"another version's": func(dir string) error {
			return os.WriteFile(dir+"/cloud-hypervisor.json", []byte(`{"version": "v52.0"}`), 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			percent := debug.SetGCPercent(-1) // which would close what is forgotten
			t.Cleanup(func() { debug.SetGCPercent(percent) })
			vmmtest.NoLeaks(t)
			broken := whole
			broken.Dir = t.TempDir()
			must(t, os.CopyFS(broken.Dir, os.DirFS(whole.Dir)))
			must(t, breakIt(broken.Dir))
			p, err := d.Prepare(within(t), broken, vmm.Attach{})
			if err == nil {
				must(t, p.Close())
				t.Error("a machine can be made of it")
			}
			t.Log(err)
		})
	}
}
