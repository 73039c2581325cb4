package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/vmm"
)

// Sized is a guest with Paddock's agent.
type Sized interface {
	// Use has the guest use so many processors and so much of the memory that was not there at its boot, and gives what it uses then.
	Use(ctx context.Context, vcpus, pluggedMiB int) (vcpusUsed, pluggedMiBUsed int, err error)
	// Run runs a line of shell and gives what it printed.
	Run(ctx context.Context, line string) (string, error)
}

// ResizeFixture is a driver whose machines are resized: clones of a template that was booted with one processor and 256 MiB, at most 3 and
// 1024 MiB.
type ResizeFixture struct {
	// Scales is what the driver launches by.
	Scales *Scales
	// Clone makes a machine that is ended with the test.
	Clone func(t testing.TB) (vmm.Machine, Sized)
	// BesideMiB is what the VMM weighs beside its guest's memory.
	BesideMiB int
	// Kept says that processors cannot be taken away.
	Kept bool
}

// Headroom makes of a machine to boot one that RunResize wants.
func Headroom(b vmm.Boot) vmm.Boot {
	b.VCPUs, b.MemoryMiB, b.MaxVCPUs, b.MaxMemoryMiB = 1, 256, 3, 1024
	return b
}

// resized is one that is resized.
type resized struct {
	ResizeFixture
	vmm.Machine
	guest Sized
}

func (f ResizeFixture) machine(t *testing.T) *resized {
	m, guest := f.Clone(t)
	return &resized{f, m, guest}
}

func (r *resized) resize(ctx context.Context, vcpus, memoryMiB int) error {
	return r.Machine.(vmm.Resizer).Resize(ctx, vcpus, memoryMiB)
}

// grown has the machine be of that size, and the guest use it.
func (r *resized) grown(t *testing.T, vcpus, memoryMiB int) {
	t.Helper()
	must(t, r.resize(deadline(t), vcpus, memoryMiB))
	r.used(t, vcpus, memoryMiB-256)
	r.weighs(t, vcpus, memoryMiB)
}

func (r *resized) used(t *testing.T, vcpus, pluggedMiB int) {
	t.Helper()
	gotVCPUs, gotMiB, err := r.guest.Use(deadline(t), vcpus, pluggedMiB)
	must(t, err)
	if gotVCPUs != vcpus || gotMiB != pluggedMiB {
		t.Errorf("%d processors and %d MiB of plugged memory are in use, want %d and %d", gotVCPUs, gotMiB, vcpus, pluggedMiB)
	}
}

// weighs has the machine weigh what one of that size does: what the VMM has beside it is in there.
func (r *resized) weighs(t *testing.T, vcpus, memoryMiB int) {
	t.Helper()
	want := vmm.Weight{CPUs: float64(vcpus) + 0.5, MemoryBytes: int64(memoryMiB+r.BesideMiB) << 20}
	if diff := cmp.Diff(want, r.Scales.Weight(r.ID())); diff != "" {
		t.Errorf("with %d processors and %d MiB it weighs (-want +got):\n%s", vcpus, memoryMiB, diff)
	}
}

func (r *resized) says(t *testing.T, line, want string) {
	t.Helper()
	got, err := r.guest.Run(deadline(t), line)
	if err != nil || got != want {
		t.Errorf("%s: %q, %v, want %q", line, got, err, want)
	}
}

// RunResize grows a clone, has its guest use what came, shrinks it, and grows it again.
func RunResize(t *testing.T, f ResizeFixture) {
	r := f.machine(t)
	for name, size := range map[string][2]int{
		"too many processors": {4, 256}, "too much memory": {1, 1152}, "no processor": {0, 256}, "less memory": {1, 128},
		"half a block": {1, 256 + 64},
	} {
		if err := r.resize(deadline(t), size[0], size[1]); !errors.Is(err, vmm.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.resize(gone, 2, 512); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	r.used(t, 1, 0)
	r.weighs(t, 1, 256)

	r.grown(t, 3, 768)
	r.says(t, "nproc; awk '/MemTotal/ { print ($2 > 600000) }' /proc/meminfo", "3\n1")
	// More than the machine was booted with is written, on all processors.
	const fill = "mount -t tmpfs -o size=600m none /mnt && head -c 400M /dev/zero > /mnt/f && wc -c < /mnt/f && rm /mnt/f && umount /mnt"
	r.says(t, fill, fmt.Sprint(400<<20))
	other := f.machine(t)
	other.used(t, 1, 0) // another clone is as the template was
	other.weighs(t, 1, 256)
	must(t, other.Close())

	fewest := 1
	if f.Kept {
		fewest = 3
		if err := r.resize(deadline(t), 2, 768); !errors.Is(err, vmm.ErrUnsupported) {
			t.Errorf("fewer processors: %v", err)
		}
	}
	r.used(t, max(2, fewest), 256)
	r.grown(t, max(2, fewest), 512)
	r.says(t, "awk '/MemTotal/ { print ($2 < 500000) }' /proc/meminfo", "1") // the rest has gone
	r.grown(t, fewest, 256)                                                  // the guest's kernel lets go of it although its agent was not asked
	r.grown(t, 3, 1024)
	r.says(t, "nproc", "3")
	r.says(t, fill, fmt.Sprint(400<<20))
}
