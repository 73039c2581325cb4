package qemu_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// grown has the machine be of that size, and the guest use it.
func grown(t *testing.T, m vmm.Machine, c *client.Client, vcpus, memoryMiB int) {
	t.Helper()
	must(t, m.(vmm.Resizer).Resize(within(t), vcpus, memoryMiB))
	used(t, c, vcpus, memoryMiB-256)
}

// used has the guest use that much.
func used(t *testing.T, c *client.Client, vcpus, pluggedMiB int) {
	t.Helper()
	got, err := c.Resize(within(t), wire.Resize{VCPUs: vcpus, PluggedMiB: pluggedMiB})
	must(t, err)
	if diff := cmp.Diff(wire.Size{VCPUs: vcpus, PluggedMiB: pluggedMiB}, got); diff != "" {
		t.Errorf("in use: %s", diff)
	}
}

// weighs has the machine weigh what one of that size does: what QEMU has beside it is in there.
func weighs(t *testing.T, s *vmmtest.Scales, m vmm.Machine, vcpus, memoryMiB int) {
	t.Helper()
	if diff := cmp.Diff(vmm.Weight{CPUs: float64(vcpus) + 0.5, MemoryBytes: int64(memoryMiB+128) << 20}, s.Weight(m.ID())); diff != "" {
		t.Errorf("with %d processors and %d MiB it weighs (-want +got):\n%s", vcpus, memoryMiB, diff)
	}
}

// sized is the guest as vmmtest has it.
type sized struct {
	t testing.TB
	*client.Client
}

func (s sized) Use(ctx context.Context, vcpus, pluggedMiB int) (vcpusUsed, pluggedMiBUsed int, err error) {
	got, err := s.Resize(ctx, wire.Resize{VCPUs: vcpus, PluggedMiB: pluggedMiB})
	return got.VCPUs, got.PluggedMiB, err
}

func (s sized) Run(_ context.Context, line string) (string, error) {
	return inGuest(s.t, s.Client, line), nil
}

// TestResize grows a clone and shrinks it; an emulated processor cannot be pulled.
func TestResize(t *testing.T) {
	scales := &vmmtest.Scales{Launcher: vmm.Direct{}}
	d := newDriver(t, qemu.Config{Launcher: &registry{Launcher: scales}})
	template := agentTemplate(t, d, vmmtest.Headroom(agentBoot(t)), vmm.Attach{})
	caps, err := d.Probe(within(t))
	must(t, err)
	vmmtest.RunResize(t, vmmtest.ResizeFixture{
		Scales: scales, BesideMiB: 128, Kept: caps.Accel == "tcg",
		Clone: func(t testing.TB) (vmm.Machine, vmmtest.Sized) {
			m, c := agentClone(t, d, template, vmm.Attach{}, nil)
			return m, sized{t, c}
		},
	})
}

// TestNoHeadroom shows what a machine without headroom says, and what cannot be booted.
func TestNoHeadroom(t *testing.T) {
	l := newLab(t, vmm.Direct{})
	m := l.Machine(t).(vmm.Resizer)
	must(t, m.Resize(within(t), 1, 256)) // it has that size
	for _, size := range [][2]int{{2, 256}, {1, 384}} {
		if err := m.Resize(within(t), size[0], size[1]); !errors.Is(err, vmm.ErrUnsupported) {
			t.Errorf("%v: %v", size, err)
		}
	}
	for name, change := range map[string]func(*vmm.Boot){
		"fewer processors": func(b *vmm.Boot) { b.VCPUs, b.MaxVCPUs = 2, 1 },
		"less memory":      func(b *vmm.Boot) { b.MaxMemoryMiB = 128 },
		"part of a DIMM":   func(b *vmm.Boot) { b.MaxMemoryMiB = 300 },
	} {
		boot := l.Boot
		change(&boot)
		if m, err := l.Driver.Boot(within(t), boot, vmm.Attach{}); err == nil {
			m.Close()
			t.Errorf("%s: booted", name)
		}
	}
}

// TestResizeFails lets single steps of a resize fail: the machine is then as it was before.
func TestResizeFails(t *testing.T) {
	s := &saboteur{Launcher: vmm.Direct{}}
	scales := &vmmtest.Scales{Launcher: s}
	d := newDriver(t, qemu.Config{Launcher: scales})
	boot := agentBoot(t)
	boot.MaxVCPUs, boot.MaxMemoryMiB = 2, 512
	template := agentTemplate(t, d, boot, vmm.Attach{})
	m, c := agentClone(t, d, template, vmm.Attach{}, nil)
	for _, command := range []string{"query-hotpluggable-cpus", "object-add", "device_add"} {
		s.next(command, refuse, func() { s.command = "" }) // once: what undoes it works
		if err := m.(vmm.Resizer).Resize(within(t), 2, 512); err == nil || !strings.HasSuffix(err.Error(), command+": sabotage") {
			t.Errorf("%s: %v", command, err)
		}
		used(t, c, 1, 0)
	}
	weightless := errors.New("it cannot be weighed")
	refused := func(vcpus, memoryMiB int) {
		t.Helper()
		scales.Refuse(weightless)
		defer scales.Refuse(nil)
		if err := m.(vmm.Resizer).Resize(within(t), vcpus, memoryMiB); !errors.Is(err, weightless) {
			t.Errorf("weight: %v", err)
		}
	}
	refused(2, 256)
	grown(t, m, c, 2, 384) // which an emulator does not survive that has plugged in a processor and pulled it
	refused(2, 512)
	used(t, c, 2, 128)
	weighs(t, scales, m, 2, 384)
	grown(t, m, c, 2, 512)
	s.next("device_del", refuse, func() { s.command = "" })
	if err := m.(vmm.Resizer).Resize(within(t), 2, 256); err == nil || !strings.HasSuffix(err.Error(), "device_del: sabotage") {
		t.Errorf("device_del: %v", err)
	}
	used(t, c, 2, 256)
	must(t, m.(vmm.Resizer).Resize(within(t), 2, 512)) // as it was
}

// TestResizeNotHeard has QEMU obey, and nobody hear of it: the next who resizes the machine finds it as it is.
func TestResizeNotHeard(t *testing.T) {
	s := &saboteur{Launcher: vmm.Direct{}}
	scales := &vmmtest.Scales{Launcher: s}
	d := newDriver(t, qemu.Config{Launcher: scales})
	boot := agentBoot(t)
	boot.MaxVCPUs, boot.MaxMemoryMiB = 2, 512
	template := agentTemplate(t, d, boot, vmm.Attach{})
	caps, err := d.Probe(within(t))
	must(t, err)
	m, c := agentClone(t, d, template, vmm.Attach{}, nil)
	givenUp := func(command string, vcpus, memoryMiB int) error {
		ctx, cancel := context.WithCancel(within(t))
		defer cancel()
		hit := false
		s.next(command, unheard, func() {
			s.command, hit = "", true // once
			cancel()
		})
		err := m.(vmm.Resizer).Resize(ctx, vcpus, memoryMiB)
		if s.next("", "", nil); !hit {
			t.Errorf("%s: the fault was never met", command)
		}
		return err
	}
	for _, command := range []string{"object-add", "device_add"} {
		if err := givenUp(command, 1, 384); !errors.Is(err, context.Canceled) || errors.Is(err, vmm.ErrUnsupported) {
			t.Errorf("%s: %v", command, err)
		}
		used(t, c, 1, 0)
		weighs(t, scales, m, 1, 256)
		_, err := m.(vmm.Checkpointer).Checkpoint(within(t), t.TempDir(), template)
		must(t, err)           // it has what its template has
		grown(t, m, c, 1, 512) // for which there is a place, and no more
		grown(t, m, c, 1, 256)
	}
	grown(t, m, c, 1, 512)
	// The guest may have let go before anybody has given up.
	if err := givenUp("device_del", 1, 384); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("device_del: %v", err)
	}
	grown(t, m, c, 1, 384)
	s.next("object-del", refuse, func() { s.command = "" })
	if err := m.(vmm.Resizer).Resize(within(t), 1, 256); err == nil || !strings.Contains(err.Error(), "object-del: sabotage") {
		t.Errorf("object-del: %v", err)
	}
	grown(t, m, c, 1, 384) // as it was
	grown(t, m, c, 1, 256)
	err = givenUp("device_add", 2, 256)
	if !errors.Is(err, context.Canceled) || errors.Is(err, vmm.ErrUnsupported) != (caps.Accel == "tcg") {
		t.Errorf("device_add of a processor: %v", err)
	}
	kept := 1
	if caps.Accel == "tcg" { // it cannot be pulled
		kept = 2
	}
	weighs(t, scales, m, kept, 256)
	if _, err := m.(vmm.Checkpointer).Checkpoint(within(t), t.TempDir(), template); caps.Accel == "tcg" && !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("checkpoint of a machine with another processor: %v", err)
	}
	grown(t, m, c, 2, 256) // for which there is one place
}
