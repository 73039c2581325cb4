package qemu_test

import (
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
		*template = vmmtest.Build(t, d, linux(t), guest)
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

// TestDiskLimits shows that a guest's rate of writing is held. The scratch disk has 64 MiB, and is written 256 KiB at a time.
func TestDiskLimits(t *testing.T) {
	var template vmm.Template
	free := fill(t, vmm.DiskLimits{}, &template)
	least := max(8*time.Second, 2*free) // a nested host's disk is no faster than that by itself
	for name, limits := range map[string]vmm.DiskLimits{
		"bytes":      {BytesPerSecond: int64(float64(64<<20) / least.Seconds())},
		"operations": {OpsPerSecond: int64(256 / least.Seconds())},
	} {
		t.Run(name, func(t *testing.T) {
			took := fill(t, limits, &template)
			t.Logf("%v at %+v, and %v without a limit", took, limits, free)
			if took < least*3/4 {
				t.Errorf("64 MiB in %v, want about %v", took, least)
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
