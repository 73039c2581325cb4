package cloudhypervisor_test

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/paddockvm/paddock/test/harness"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// binary names the real Cloud Hypervisor, where there is one.
func binary(t testing.TB) string {
	t.Helper()
	path := os.Getenv("CLOUD_HYPERVISOR")
	if path == "" {
		t.Skip("SKIPPED: CLOUD_HYPERVISOR names no binary: the real one is not tested")
	}
	return path
}

// usable is whether guests run here with KVM; asked once.
var usable = sync.OnceValue(func() error {
	dir, err := os.MkdirTemp("", "pd-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d, err := cloudhypervisor.New(cloudhypervisor.Config{
		Binary: os.Getenv("CLOUD_HYPERVISOR"), RunDir: dir, Launcher: vmm.Direct{}, ProbeTimeout: 20 * time.Second,
	})
	if err != nil {
		return err
	}
	_, err = d.Probe(context.Background())
	return err
})

// needKVM skips where real machines cannot run, and fails where they have to.
func needKVM(t testing.TB) {
	t.Helper()
	binary(t)
	if err := usable(); err != nil {
		if os.Getenv("REQUIRE_KVM") != "" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: %v: no machine is tested here (make test-kvm does it)", err)
	}
}

// linux is a machine to boot, with the kernel of the image that `make test` has built.
func linux(t testing.TB) vmm.Boot {
	t.Helper()
	needKVM(t)
	img, err := harness.Image(t.Context(), "base")
	if err != nil {
		if os.Getenv("REQUIRE_KVM") != "" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: %v: no machine is tested here (make test builds it)", err)
	}
	return vmmtest.Linux(t, img.Kernel, img.Initrd)
}

// newDriver makes a driver of the real binary. Nested machines are slow.
func newDriver(t testing.TB, cfg cloudhypervisor.Config) *cloudhypervisor.Driver {
	t.Helper()
	cfg.Binary = binary(t)
	if cfg.RunDir == "" {
		cfg.RunDir = t.TempDir()
	}
	if cfg.Launcher == nil {
		cfg.Launcher = vmm.Direct{}
	}
	if cfg.ProbeTimeout == 0 {
		cfg.ProbeTimeout = 20 * time.Second
	}
	d, err := cloudhypervisor.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// within bounds what a test waits for.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// registry is a launcher that knows its processes by their names.
type registry struct {
	vmm.Launcher
	mu    sync.Mutex
	procs map[string]vmm.Process
	last  vmm.Process
}

func (r *registry) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	p, err := r.Launcher.Launch(ctx, c)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.procs == nil {
			r.procs = make(map[string]vmm.Process)
		}
		r.procs[c.Name], r.last = p, p
	}
	return p, err
}

func (r *registry) pid(id string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.procs[id].PID()
}

func TestRealConformance(t *testing.T) {
	boot := linux(t)
	runDir := t.TempDir()
	r := &registry{Launcher: vmm.Direct{}}
	vmmtest.Run(t, vmmtest.Fixture{
		Driver: newDriver(t, cloudhypervisor.Config{RunDir: runDir, Launcher: r}),
		Boot:   boot,
		Guest:  vmmtest.TestGuest{},
		Kill:   func(m vmm.Machine) error { return syscall.Kill(r.pid(m.ID()), syscall.SIGKILL) },
		Dirs:   []string{runDir},
		// Five frames in the first second (virtio-devices/src/net.rs).
		Announces: true,
	})
}

func TestRealProbe(t *testing.T) {
	needKVM(t)
	caps, err := newDriver(t, cloudhypervisor.Config{}).Probe(within(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", caps)
	if !caps.Isolated || caps.Accel != "kvm" || caps.Version == "" || caps.CPU == "" || caps.BootProbe <= 0 {
		t.Errorf("caps: %+v", caps)
	}
}

// TestProbeHonest wants an answer in time of the real binary, wherever it runs, and no word of a machine where none comes through.
func TestProbeHonest(t *testing.T) {
	start := time.Now()
	d := newDriver(t, cloudhypervisor.Config{ProbeTimeout: time.Millisecond})
	vmmtest.NoLeaks(t)
	caps, err := d.Probe(within(t))
	if err == nil && caps.BootProbe > time.Second {
		t.Errorf("caps: %+v", caps)
	}
	t.Log(err)
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, cfg := range map[string]cloudhypervisor.Config{
		"no launcher":  {RunDir: t.TempDir()},
		"no directory": {Launcher: vmm.Direct{}},
		"no binary":    {RunDir: t.TempDir(), Launcher: vmm.Direct{}, Binary: "/no/such/cloud-hypervisor"},
		"below 0":      {RunDir: t.TempDir(), Launcher: vmm.Direct{}, Binary: "/bin/true", Disk: vmm.DiskLimits{OpsPerSecond: -1}},
	} {
		if _, err := cloudhypervisor.New(cfg); err == nil {
			t.Errorf("%s: got a driver", name)
		} else if name == "no binary" && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
