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
	for name, c := range map[string]struct {
		limits vmm.DiskLimits
		least  time.Duration
	}{
		"bytes":      {vmm.DiskLimits{BytesPerSecond: 8 << 20}, 8 * time.Second},
		"operations": {vmm.DiskLimits{OpsPerSecond: 32}, 8 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			took := fill(t, c.limits, &template)
			t.Logf("%v, and %v without a limit", took, free)
			if took < c.least*3/4 || took <= free {
				t.Errorf("64 MiB in %v, want about %v; without a limit %v", took, c.least, free)
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
