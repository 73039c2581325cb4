package qemu_test

import (
	"cmp"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/paddockvm/paddock/test/harness"
	"github.com/paddockvm/paddock/test/leak"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

// need skips where there is no QEMU, and fails where there has to be one.
func need(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		if os.Getenv("REQUIRE_QEMU") != "" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: %v: no machine is tested here (apt-get install qemu-system-x86)", err)
	}
}

// linux is a machine to boot, with the kernel of the image that `make test` has built.
func linux(t testing.TB) vmm.Boot {
	t.Helper()
	need(t)
	img, err := harness.Image(t.Context(), "base")
	if err != nil {
		if os.Getenv("REQUIRE_QEMU") != "" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: %v: no machine is tested here (make test builds it)", err)
	}
	return vmmtest.Linux(t, img.Kernel, img.Initrd)
}

// newDriver makes a driver. The tests can be run with another QEMU: PADDOCK_TEST_QEMU=/path/of/it.
func newDriver(t testing.TB, cfg qemu.Config) *qemu.Driver {
	t.Helper()
	need(t)
	cfg.Binary = os.Getenv("PADDOCK_TEST_QEMU")
	if os.Getenv("REQUIRE_KVM") != "" && cfg.Accel == "" {
		cfg.Accel, cfg.ProbeTimeout = "kvm", 20*time.Second
	}
	if cfg.RunDir == "" {
		cfg.RunDir = t.TempDir()
	}
	if cfg.Launcher == nil {
		cfg.Launcher = vmm.Direct{}
	}
	d, err := qemu.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// within bounds what a test waits for.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// registry is a launcher that knows its processes by their names.
type registry struct {
	vmm.Launcher
	mu    sync.Mutex
	procs map[string]vmm.Process
	space map[string]int64 // their address spaces
	last  vmm.Process
}

func (r *registry) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	p, err := r.Launcher.Launch(ctx, c)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.procs == nil {
			r.procs, r.space = make(map[string]vmm.Process), make(map[string]int64)
		}
		r.procs[c.Name], r.space[c.Name], r.last = p, c.AddressSpaceBytes, p
	}
	return p, err
}

func (r *registry) pid(id string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.procs[id].PID()
}

// Where machines fail since QEMU was replaced under a process that runs, the error says so.
func TestReplacedUnderUs(t *testing.T) {
	need(t)
	program, err := exec.LookPath(cmp.Or(os.Getenv("PADDOCK_TEST_QEMU"), "qemu-system-x86_64"))
	must(t, err)
	binary := filepath.Join(t.TempDir(), "qemu")
	must(t, os.Symlink(program, binary))
	d, err := qemu.New(qemu.Config{Binary: binary, RunDir: t.TempDir(), Launcher: vmm.Direct{}, Accel: "tcg"})
	must(t, err)
	defer d.Close()
	_, err = d.Probe(within(t))
	must(t, err)
	boot := func() error {
		kernel := filepath.Join(t.TempDir(), "kernel")
		must(t, os.WriteFile(kernel, []byte("none"), 0o444))
		_, err := d.Boot(within(t), vmm.Boot{Kernel: kernel, VCPUs: 1, MemoryMiB: 16}, vmm.Attach{})
		return err
	}
	if err := boot(); err == nil || strings.Contains(err.Error(), "was replaced") {
		t.Errorf("a kernel that is none: %v", err)
	}
	must(t, os.Remove(binary))
	must(t, os.WriteFile(binary, []byte("#!/bin/sh\nexit 3\n"), 0o755))
	if err := boot(); err == nil || !strings.Contains(err.Error(), binary+" was replaced since this process started") {
		t.Errorf("QEMU has been replaced: %v", err)
	}
}

func TestConformance(t *testing.T) { conformance(t, "serial") }

// conformance runs the suite over one way to guests.
func conformance(t *testing.T, channel string) {
	runDir := t.TempDir()
	r := &registry{Launcher: vmm.Direct{}}
	vmmtest.Run(t, vmmtest.Fixture{
		Driver: newDriver(t, qemu.Config{RunDir: runDir, Launcher: r, Channel: channel}),
		Boot:   linux(t),
		Guest:  vmmtest.TestGuest{},
		Kill:   func(m vmm.Machine) error { return syscall.Kill(r.pid(m.ID()), syscall.SIGKILL) },
		Dirs:   []string{runDir},
	})
}

func TestProbe(t *testing.T) {
	d := newDriver(t, qemu.Config{})
	caps, err := d.Probe(within(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v; kvm: %v", caps, d.KVMError(within(t)))
	if caps.Accel != "kvm" && d.KVMError(within(t)) == nil {
		t.Error("kvm is not used and nobody says why")
	}
	if !caps.Isolated || caps.Version == "" || caps.CPU == "" || caps.BootProbe <= 0 {
		t.Errorf("caps: %+v", caps)
	}
	if caps.Machine == "q35" || caps.Machine == "" {
		t.Errorf("machine %q has no version", caps.Machine)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, cfg := range map[string]qemu.Config{
		"no launcher":   {RunDir: t.TempDir()},
		"no directory":  {Launcher: vmm.Direct{}},
		"no such accel": {RunDir: t.TempDir(), Launcher: vmm.Direct{}, Accel: "hax"},
		"no such way":   {RunDir: t.TempDir(), Launcher: vmm.Direct{}, Channel: "pigeon"},
		"reserved cids": {RunDir: t.TempDir(), Launcher: vmm.Direct{}, CIDBase: 2, CIDCount: 5},
		"no binary":     {RunDir: t.TempDir(), Launcher: vmm.Direct{}, Binary: "/no/such/qemu"},
	} {
		if d, err := qemu.New(cfg); err == nil {
			t.Errorf("%s: got a driver", name)
			d.Close()
		} else if name == "no binary" && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
