package qemu_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// small mounts a file system of 4 MiB.
func small(t *testing.T) (dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("needs root")
		}
		t.Skip("SKIPPED: needs root to mount a small file system: a full host disk is not tried")
	}
	dir = t.TempDir()
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"))
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A guest whose scratch disk is larger than what the host has left gets an I/O error, and the machine tells whose fault it was.
func TestFullHostDisk(t *testing.T) {
	need(t)
	guest := vmmtest.TestGuest{}
	d := newDriver(t, qemu.Config{RunDir: filepath.Join(small(t), "run")})
	template := vmmtest.Build(t, d, linux(t), guest)
	clone := func() vmm.Machine {
		p, err := d.Prepare(within(t), template, vmm.Attach{})
		must(t, err)
		m, err := p.Restore(within(t))
		must(t, err)
		t.Cleanup(func() { must(t, m.Close()) })
		return m
	}
	m, other := clone(), clone()
	must(t, guest.Do(within(t), m, "disk-beyond"))
	must(t, guest.Do(within(t), m, "disk-put x"))
	if err := m.(vmm.HostFault).HostFault(); err != nil {
		t.Errorf("before the host's disk is full: %v", err)
	}
	answer, err := guest.Ask(within(t), m, "disk-fill")
	must(t, err)
	if answer == "ok" {
		t.Fatal("the host's disk was not full")
	}
	if err := m.(vmm.HostFault).HostFault(); err == nil || !strings.Contains(err.Error(), "write of the scratch disk: No space left") {
		t.Errorf("the guest was told %q, and the host fault is %v", answer, err)
	}
	if err := other.(vmm.HostFault).HostFault(); err != nil {
		t.Errorf("of a machine that wrote nothing: %v", err)
	}
	must(t, m.Close())
	if m.(vmm.HostFault).HostFault() == nil {
		t.Error("forgotten with the machine's end")
	}
}

// What QEMU says of its disks, and whose doing it is.
func TestHostFault(t *testing.T) {
	s := &saboteur{Launcher: vmm.Direct{}}
	d := newDriver(t, qemu.Config{Launcher: s})
	boot := linux(t)
	for _, c := range []struct {
		name, node, operation, want string
	}{
		{"the host cannot read an image", "root", "read", "read of the root disk: Input/output error"},
		{"the guest writes to what it may only read", "root", "write", ""},
		{"the host cannot read what was written", "scratch", "read", "read of the scratch disk: Input/output error"},
		{"the host cannot write", "scratch", "write", "write of the scratch disk: Input/output error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := d.Boot(within(t), boot, vmm.Attach{})
			must(t, err)
			defer m.Close()
			s.next("stop", fault(fmt.Sprintf(`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "BLOCK_IO_ERROR", "data": `+
				`{"device": "", "node-name": %q, "operation": %q, "action": "report", "nospace": false, "reason": "Input/output error"}}`+"\n",
				c.node, c.operation)), func() {})
			defer s.next("", "", nil)
			must(t, m.Pause(within(t)))
			got := ""
			if err := m.(vmm.HostFault).HostFault(); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
