package cloudhypervisor_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// growing is a clone of a fake's template that was booted with 8 MiB, and may have 264.
type growing struct {
	*fakeLauncher
	vmm.Machine
	scales   *vmmtest.Scales
	driver   *cloudhypervisor.Driver
	template vmm.Template
	vm       *fakeVMM
}

func newGrowing(t *testing.T) *growing {
	t.Helper()
	l, slow := newFakes(t, "v53.0")
	boot := fakeBoot(t)
	boot.MaxVCPUs, boot.MaxMemoryMiB = 2, 264
	g := &growing{fakeLauncher: l, scales: &vmmtest.Scales{Launcher: l}, template: vmmtest.Build(t, slow, boot, talk{})}
	var err error
	g.driver, err = cloudhypervisor.New(cloudhypervisor.Config{
		Binary: "/bin/true", RunDir: t.TempDir(), Launcher: g.scales, StepTimeout: time.Minute, ProbeTimeout: time.Minute,
	})
	must(t, err)
	g.Machine = g.clone(t)
	g.vm = l.procs[g.ID()].vm
	t.Cleanup(func() { l.next("", noMoreWords, nil) })
	return g
}

func (g *growing) clone(t *testing.T) vmm.Machine {
	t.Helper()
	f := vmmtest.Fixture{Driver: g.driver, Boot: g.template.Boot, Template: g.template}
	return f.Machine(t)
}

func (g *growing) resize(ctx context.Context, vcpus, memoryMiB int) error {
	return g.Machine.(vmm.Resizer).Resize(ctx, vcpus, memoryMiB)
}

func (g *growing) keep(t *testing.T) error {
	t.Helper()
	_, err := g.Machine.(vmm.Checkpointer).Checkpoint(within(t), t.TempDir(), g.template)
	return err
}

// is wants the guest to be offered that many MiB beyond its own, and to have no more, and the machine to be bound to that.
func (g *growing) is(t *testing.T, vcpus, memoryMiB int) {
	t.Helper()
	g.vm.mu.Lock()
	offered, taken := g.vm.offered>>20, g.vm.taken>>20
	g.vm.mu.Unlock()
	if want := int64(memoryMiB - 8); offered != want || taken > want {
		t.Errorf("the guest was offered %d MiB and has %d, want %d", offered, taken, want)
	}
	bounds := g.scales.Bounds(g.ID())
	if got, want := bounds[len(bounds)-1], int64(memoryMiB+64)<<20; got != want {
		t.Errorf("it is bound to %d, want %d", got, want)
	}
	if diff := cmp.Diff(vmm.Weight{CPUs: float64(vcpus) + 0.5, MemoryBytes: int64(memoryMiB+64) << 20}, g.scales.Weight(g.ID())); diff != "" {
		t.Errorf("weight (-want +got):\n%s", diff)
	}
}

func (g *growing) hoard(hoards bool) {
	g.vm.mu.Lock()
	defer g.vm.mu.Unlock()
	g.vm.hoards = hoards
}

// takes has the guest take what it was offered.
func (g *growing) takes() {
	g.vm.mu.Lock()
	defer g.vm.mu.Unlock()
	g.vm.taken = g.vm.offered
}

// TestMemory: a machine has as much memory as it was given, is bound to it before it has more and after it has less, and what is kept of it
// has that of its template.
func TestMemory(t *testing.T) {
	g := newGrowing(t)
	g.is(t, 1, 8)
	for _, size := range [][2]int{{1, 7}, {1, 16}, {1, 265}, {1, 392}, {3, 136}, {0, 136}} {
		if err := g.resize(within(t), size[0], size[1]); !errors.Is(err, vmm.ErrUnsupported) {
			t.Errorf("%v: %v", size, err)
		}
	}
	g.is(t, 1, 8)
	must(t, g.Pause(within(t)))
	must(t, g.resize(within(t), 1, 136))
	if err := g.keep(t); !errors.Is(err, vmm.ErrUnsupported) { // it has been offered what it has not taken
		t.Errorf("kept: %v", err)
	}
	must(t, g.Resume(within(t)))
	for _, size := range [][2]int{{1, 136}, {2, 264}, {2, 264}, {1, 136}} {
		must(t, g.resize(within(t), size[0], size[1]))
		g.is(t, size[0], size[1])
		g.takes()
		if err := g.keep(t); !errors.Is(err, vmm.ErrUnsupported) {
			t.Errorf("with %v it is kept: %v", size, err)
		}
	}
	must(t, g.resize(within(t), 1, 8))
	g.is(t, 1, 8)
	must(t, g.keep(t))
	var most []int64
	for _, b := range g.scales.Bounds(g.ID()) {
		most = append(most, b>>20-64)
	}
	if diff := cmp.Diff([]int64{8, 136, 264, 136, 8}, most); diff != "" {
		t.Errorf("it was bound to, one after the other (-want +got):\n%s", diff)
	}
	must(t, g.clone(t).Close())
}

// TestMemoryNotOffered: Cloud Hypervisor knows of what it has given, and whatever else it says of it is not kept.
func TestMemoryNotOffered(t *testing.T) {
	g := newGrowing(t)
	g.vm.mu.Lock()
	g.vm.taken = 2 << 20
	g.vm.mu.Unlock()
	if err := g.keep(t); !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("err = %v", err)
	}
}

// TestMemoryHoarded: a guest that gives no memory back keeps it, and the machine is as it was; once it does it can be had.
func TestMemoryHoarded(t *testing.T) {
	g := newGrowing(t)
	inVain := func(vcpus, memoryMiB int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(within(t), 50*time.Millisecond)
		defer cancel()
		if err := g.resize(ctx, vcpus, memoryMiB); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err = %v", err)
		}
	}
	must(t, g.resize(within(t), 1, 264))
	g.takes()
	g.hoard(true)
	inVain(2, 136)
	g.is(t, 1, 264)
	must(t, g.Pause(within(t)))
	g.hoard(false)
	inVain(1, 8)
	must(t, g.Resume(within(t)))
	g.is(t, 1, 264)
	must(t, g.resize(within(t), 1, 8))
	g.is(t, 1, 8)
	must(t, g.keep(t))
}

// TestMemoryFails has each step of a resize fail: the machine is as it was. Where the first undoing fails too, the next resize finds it as it is.
func TestMemoryFails(t *testing.T) {
	g := newGrowing(t)
	for _, path := range []string{"vm.info", "vm.resize-zone", "vm.resize"} {
		for _, f := range []fault{refuse, hangUp, garbage} {
			t.Run(path+"/"+string(f), func(t *testing.T) {
				g.next(path, f, nil)
				if err := g.resize(within(t), 2, 264); err == nil {
					t.Error("nobody noticed")
				}
				g.is(t, 1, 8)
				must(t, g.keep(t))
			})
		}
	}
	for _, f := range []fault{silent, unheard} {
		ctx, cancel := context.WithCancel(within(t))
		g.next("vm.resize-zone", f, cancel)
		if err := g.resize(ctx, 1, 264); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", f, err)
		}
		g.is(t, 1, 8)
		must(t, g.keep(t))
	}
	weightless := errors.New("it cannot be weighed")
	g.scales.Refuse(weightless)
	g.next("vm.resize-zone", badEvents, nil)
	if err := g.resize(within(t), 2, 264); !errors.Is(err, weightless) {
		t.Errorf("err = %v", err)
	}
	if g.hits != 0 {
		t.Error("the guest was offered what the process is not bound to yet")
	}
	g.scales.Refuse(nil)
	must(t, g.resize(within(t), 1, 136))
	g.is(t, 1, 136)
	g.takes()
	g.next("vm.resize-zone", refuseAll, nil)
	if err := g.resize(within(t), 1, 8); err == nil {
		t.Error("nobody noticed")
	}
	g.next("", noMoreWords, nil)
	if err := g.keep(t); !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("kept: %v", err)
	}
	must(t, g.resize(within(t), 1, 136))
	g.is(t, 1, 136)
	must(t, g.resize(within(t), 1, 8))
	g.is(t, 1, 8)
	must(t, g.keep(t))
}

// TestMemoryOfOldTemplates: those that have nothing to grow by are cloned as before, and their clones say so.
func TestMemoryOfOldTemplates(t *testing.T) {
	g := newGrowing(t)
	path := filepath.Join(g.template.Dir, "config.json")
	b, err := os.ReadFile(path)
	must(t, err)
	old := bytes.Replace(bytes.Replace(b, []byte(`"hotplug_size":268435456,`), nil, 1), []byte(`"hotplug_method":"VirtioMem",`), nil, 1)
	if len(old) >= len(b)-40 {
		t.Fatalf("the template's configuration: %s", b)
	}
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, old, 0o444))
	g.Machine = g.clone(t)
	if err := g.resize(within(t), 1, 136); !errors.Is(err, vmm.ErrUnsupported) || !strings.Contains(err.Error(), "older") {
		t.Errorf("err = %v", err)
	}
	must(t, g.resize(within(t), 2, 8))
}

// TestMemoryHeadroom refuses to boot what cannot grow so, and what is to be a template keeps its size.
func TestMemoryHeadroom(t *testing.T) {
	_, d := newFakes(t, "v53.0")
	boot := fakeBoot(t)
	for name, most := range map[string]int{"less": 4, "part of a block": 100} {
		boot.MaxMemoryMiB = most
		if m, err := d.Boot(within(t), boot, vmm.Attach{}); err == nil {
			must(t, m.Close())
			t.Errorf("%s: booted", name)
		}
	}
	boot.MaxMemoryMiB = 136
	m, err := d.Boot(within(t), boot, vmm.Attach{})
	must(t, err)
	defer m.Close()
	if err := m.(vmm.Resizer).Resize(within(t), 1, 136); !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("err = %v", err)
	}
}
