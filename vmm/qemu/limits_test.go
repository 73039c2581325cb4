package qemu_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// fill has a guest write all of its scratch disk and tells how long that took.
func fill(t *testing.T, limits vmm.DiskLimits, template *vmm.Template) time.Duration {
	t.Helper()
	d, guest := newDriver(t, qemu.Config{Disk: limits}), vmmtest.TestGuest{}
	if template.Dir == "" { // a template is not of a limit: drivers of any limit clone it
		boot := linux(t)
		boot.Scratch = filepath.Join(t.TempDir(), "scratch")
		must(t, os.WriteFile(boot.Scratch, nil, 0o444))
		must(t, os.Truncate(boot.Scratch, scratchMiB<<20))
		*template = vmmtest.Build(t, d, boot, guest)
	}
	p, err := d.Prepare(within(t), *template, vmm.Attach{})
	must(t, err)
	m, err := p.Restore(within(t))
	must(t, err)
	defer m.Close()
	start := time.Now()
	must(t, guest.Do(within(t), m, "disk-fill"))
	return time.Since(start)
}

// scratchMiB is what is written: little, for a nested host writes a few MiB in a second.
const scratchMiB = 16

// TestDiskLimits shows that a guest's rate of writing is held. The scratch disk is written 256 KiB at a time.
func TestDiskLimits(t *testing.T) {
	var template vmm.Template
	free := fill(t, vmm.DiskLimits{}, &template)
	least := max(4*time.Second, 2*free) // a nested host's disk is no faster than that by itself
	for name, limits := range map[string]vmm.DiskLimits{
		"bytes":      {BytesPerSecond: int64(float64(scratchMiB<<20) / least.Seconds())},
		"operations": {OpsPerSecond: max(1, int64(4*scratchMiB/least.Seconds()))},
	} {
		t.Run(name, func(t *testing.T) {
			took := fill(t, limits, &template)
			t.Logf("%v at %+v, and %v without a limit", took, limits, free)
			want := least
			if limits.OpsPerSecond > 0 {
				want = min(want, 4*scratchMiB*time.Second/time.Duration(limits.OpsPerSecond))
			}
			if took < want*3/4 {
				t.Errorf("%d MiB in %v, want about %v", scratchMiB, took, want)
			}
		})
	}
}

func TestDiskLimitsRefused(t *testing.T) {
	need(t)
	for _, l := range []vmm.DiskLimits{{BytesPerSecond: -1}, {OpsPerSecond: -1}} {
		if d, err := qemu.New(qemu.Config{RunDir: t.TempDir(), Launcher: vmm.Direct{}, Disk: l}); err == nil {
			d.Close()
			t.Errorf("%+v: got a driver", l)
		}
	}
}
