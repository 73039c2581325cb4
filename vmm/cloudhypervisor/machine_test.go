package cloudhypervisor_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// lab is a driver with a template.
type lab struct {
	vmmtest.Fixture
	vmmtest.TestGuest
	driver *cloudhypervisor.Driver
	*registry
	runDir string
}

func newLab(t testing.TB, launcher vmm.Launcher, change func(*cloudhypervisor.Config, *vmm.Boot)) *lab {
	boot := linux(t)
	l := &lab{registry: &registry{Launcher: launcher}, runDir: t.TempDir()}
	cfg := cloudhypervisor.Config{RunDir: l.runDir, Launcher: l.registry}
	if change != nil {
		change(&cfg, &boot)
	}
	l.driver = newDriver(t, cfg)
	l.Fixture = vmmtest.Fixture{Driver: l.driver, Boot: boot, Template: vmmtest.Build(t, l.driver, boot, l.TestGuest), Dirs: []string{l.runDir}}
	return l
}

func (l *lab) ask(t testing.TB, m vmm.Machine, line string) string {
	t.Helper()
	answer, err := l.Ask(within(t), m, line)
	if err != nil {
		t.Fatalf("ask %q: %v", line, err)
	}
	return answer
}

// exit waits for the machine's end.
func exit(t testing.TB, m vmm.Machine) vmm.Exit {
	t.Helper()
	select {
	case <-m.Done():
	case <-within(t).Done():
		t.Fatalf("the machine is not over; console:\n%s", m.Console())
	}
	return m.Exit()
}

func TestRealMachine(t *testing.T) {
	l := newLab(t, vmm.Direct{}, nil)
	nothing := func([]byte) []byte { return []byte("{}") }
	vmmtest.RunMachines(t, vmmtest.MachineFixture{
		Fixture: l.Fixture, Last: func() vmm.Process { return l.last },
		Broken: map[string]func(string) error{
			"a manifest of nothing":      vmmtest.Overwrite("cloud-hypervisor.json", nothing),
			"a configuration of nothing": vmmtest.Overwrite("config.json", nothing),
			"another version's":          vmmtest.Overwrite("cloud-hypervisor.json", func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(`"v53`), []byte(`"v52`)) }),
			"memory to copy":             func(dir string) error { return os.WriteFile(filepath.Join(dir, "memory-ranges"), nil, 0o444) },
			"memory elsewhere": func(dir string) error {
				path := filepath.Join(dir, "memory")
				return errors.Join(os.Remove(path), os.Symlink(filepath.Join(l.Template.Dir, "memory"), path))
			},
		},
	})
	for _, c := range []struct {
		name string
		test func(*testing.T, *lab)
	}{
		{"template cannot be changed", testImmutable},
		{"a stopped vmm", testStopped},
		{"what is no kernel, and no tap", testNoKernel},
		{"nothing has a name", testNoNames},
		{"resize", testResize},
		{"many clones", testManyClones},
		{"random kills", testRandomKills},
	} {
		t.Run(c.name, func(t *testing.T) {
			vmmtest.NoLeaks(t, l.runDir)
			c.test(t, l)
		})
	}
}

func templateFiles(t testing.TB, l *lab) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(l.Template.Dir, "*"))
	must(t, err)
	if len(files) != 4 {
		t.Errorf("template: %v", files)
	}
	return files
}

// Clones write to all of their memory that they can, a VMM that is taken over tries to write to the template's, and nothing happens to it.
func testImmutable(t *testing.T, l *lab) {
	files := templateFiles(t, l)
	before := vmmtest.Hashes(t, files...)
	m, other := l.Machine(t), l.Machine(t)
	must(t, l.Set(within(t), other, "mine"))
	must(t, l.Do(within(t), m, "dirty 100"))

	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", l.pid(m.ID())))
	must(t, err)
	mapped := int64(0)
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(strings.TrimSpace(line), "/memory") {
			fields := strings.Fields(line)
			if fields[1] != "rw-p" {
				t.Errorf("the template is mapped %s", line)
			}
			var from, to int64
			_, err := fmt.Sscanf(fields[0], "%x-%x", &from, &to)
			must(t, err)
			mapped += to - from
		}
	}
	if mapped != int64(l.Boot.MemoryMiB)<<20 {
		t.Errorf("of the template %d bytes are mapped:\n%s", mapped, maps)
	}
	tryToWrite(t, fmt.Sprintf("/proc/%d/fd", l.pid(m.ID())), l.Template.Dir)
	if got := l.ask(t, other, "get"); got != "mine" {
		t.Errorf("the other clone has %q", got)
	}
	if got := l.ask(t, l.Machine(t), "get"); got != "" {
		t.Errorf("a new clone has %q", got)
	}
	if diff := cmp.Diff(before, vmmtest.Hashes(t, files...)); diff != "" {
		t.Errorf("the template has changed: %s", diff)
	}
}

// tryToWrite opens what a VMM has of a template as the VMM could, here as root even.
func tryToWrite(t *testing.T, fds, template string) {
	t.Helper()
	tried := 0
	names, err := os.ReadDir(fds)
	must(t, err)
	for _, n := range names {
		path := filepath.Join(fds, n.Name())
		target, _ := os.Readlink(path)
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		switch {
		case info.IsDir() && sameFile(path, template):
			tried++
			for _, name := range []string{"memory", "state.json", "config.json"} {
				if f, err := os.OpenFile(filepath.Join(path, name), os.O_RDWR, 0); !errors.Is(err, unix.EROFS) {
					t.Errorf("open %s to write: %v", name, err)
					f.Close()
				}
			}
			if up, err := filepath.EvalSymlinks(path + "/.."); err == nil && sameFile(path+"/..", filepath.Dir(template)) {
				t.Errorf("the template's descriptor leads to %s", up)
			}
		case strings.HasSuffix(target, "/memory"):
			tried++
			if f, err := os.OpenFile(path, os.O_RDWR, 0); !errors.Is(err, unix.EROFS) {
				t.Errorf("open the memory to write: %v", err)
				f.Close()
			}
		}
	}
	if tried < 2 {
		t.Errorf("found %d descriptors of the template to try", tried)
	}
}

func sameFile(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// A VMM that does nothing at all, not even answer, can be left and ended.
func testStopped(t *testing.T, l *lab) {
	m := l.Machine(t)
	must(t, syscall.Kill(l.pid(m.ID()), syscall.SIGSTOP))
	ctx, cancel := context.WithTimeout(within(t), 200*time.Millisecond)
	defer cancel()
	if err := m.Pause(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("pause: %v", err)
	}
	for range 40 {
		if conn, err := m.DialGuest(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial: %v", err)
			if err == nil {
				conn.Close()
			}
		}
	}
	must(t, m.Close())
	if diff := cmp.Diff(vmm.Exit{}, m.Exit()); diff != "" {
		t.Error(diff)
	}
}

func testNoKernel(t *testing.T, l *lab) {
	noise := l.Boot
	noise.Kernel = l.Boot.Root
	if m, err := l.Driver.Boot(within(t), noise, vmm.Attach{}); err == nil {
		m.Close()
		t.Error("booted a kernel that is none")
	}
	card := l.Template
	card.Boot.NIC = true
	if p, err := l.Driver.Prepare(within(t), card, vmm.Attach{}); err == nil || !strings.Contains(err.Error(), "tap") {
		t.Errorf("prepare without a tap: %v", err)
		if err == nil {
			p.Close()
		}
	}
}

// So there is nothing to clear up, whoever is killed.
func testNoNames(t *testing.T, l *lab) {
	m := l.Machine(t)
	must(t, l.Do(within(t), m, "disk-put x"))
	names, err := os.ReadDir(l.runDir)
	must(t, err)
	if len(names) > 0 {
		t.Errorf("in the run directory: %v", names)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if strings.Contains(string(mounts), l.Template.Dir) {
		t.Errorf("the template is mounted:\n%s", mounts)
	}
}

func testResize(t *testing.T, l *lab) {
	m := l.Machine(t)
	r, ok := m.(vmm.Resizer)
	if !ok {
		t.Fatal("it cannot be resized")
	}
	must(t, r.Resize(within(t), 1, l.Boot.MemoryMiB))
	if err := r.Resize(within(t), 2, l.Boot.MemoryMiB); err == nil {
		t.Error("it has grown beyond what it was booted for")
	}
	if err := r.Resize(within(t), 0, l.Boot.MemoryMiB); err == nil {
		t.Error("it has no processor")
	}
	if err := r.Resize(within(t), 1, 2*l.Boot.MemoryMiB); !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("more memory: %v", err)
	}
	if got := l.ask(t, m, "get"); got != "" {
		t.Errorf("value: %q", got)
	}
}

// testManyClones wants the template's files as they were after thirty clones have run and written.
func testManyClones(t *testing.T, l *lab) {
	files := templateFiles(t, l)
	before := vmmtest.Hashes(t, files...)
	for i := range 30 {
		m := l.Machine(t)
		must(t, l.Set(within(t), m, fmt.Sprint(i)))
		if i%10 == 0 {
			must(t, l.Do(within(t), m, "dirty 50"))
		}
		must(t, m.Close())
	}
	if diff := cmp.Diff(before, vmmtest.Hashes(t, files...)); diff != "" {
		t.Errorf("the template has changed: %s", diff)
	}
}

// testRandomKills kills VMMs at moments that nobody chose. What it comes to is an error or a machine that is over, and nothing is left.
func testRandomKills(t *testing.T, l *lab) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		after := time.Duration(random.IntN(600)) * time.Millisecond
		killed := make(chan struct{})
		ctx := within(t)
		var once sync.Once
		k := &killer{Launcher: vmm.Direct{}, kill: func(p vmm.Process) {
			once.Do(func() {
				time.AfterFunc(after, func() {
					defer close(killed)
					_ = syscall.Kill(p.PID(), syscall.SIGKILL)
				})
			})
		}}
		d := newDriver(t, cloudhypervisor.Config{RunDir: l.runDir, Launcher: &probeFirst{registry: &registry{Launcher: vmm.Direct{}}, then: k}})
		if _, err := d.Probe(ctx); err != nil {
			t.Fatal(err)
		}
		p, err := d.Prepare(ctx, l.Template, vmm.Attach{})
		if err == nil {
			var m vmm.Machine
			if m, err = p.Restore(ctx); err == nil {
				_, err = l.Echo(ctx, m, []byte("x"))
				<-killed
				<-m.Done()
				if e := m.Exit(); e.Guest || e.Err == nil {
					t.Errorf("exit: %+v", e)
				}
				must(t, m.Close())
			}
			must(t, p.Close())
		}
		<-killed
		t.Logf("after %v: %v", after, err)
	}
}

// killer does something to each process that it launches.
type killer struct {
	vmm.Launcher
	kill func(vmm.Process)
}

func (k *killer) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	p, err := k.Launcher.Launch(ctx, c)
	if err == nil {
		k.kill(p)
	}
	return p, err
}

// probeFirst launches the probe's VMM by one launcher, and machines by another.
type probeFirst struct {
	*registry
	then vmm.Launcher
}

func (p *probeFirst) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	if c.Name == "probe" {
		return p.registry.Launch(ctx, c)
	}
	return p.then.Launch(ctx, c)
}

// TestRealMultiprocessor takes a processor from a machine that was booted with two, and gives it back.
func TestRealMultiprocessor(t *testing.T) {
	l := newLab(t, vmm.Direct{}, func(c *cloudhypervisor.Config, b *vmm.Boot) {
		b.VCPUs, b.MaxVCPUs = 1, 2
		c.Disk = vmm.DiskLimits{BytesPerSecond: 8 << 20}
	})
	t.Run("resize", func(t *testing.T) {
		m := l.Machine(t)
		r := m.(vmm.Resizer)
		resize := func(vcpus int, present string) {
			t.Helper()
			must(t, r.Resize(within(t), vcpus, l.Boot.MemoryMiB))
			until(t, "present are "+present, func() bool { return l.ask(t, m, "read /sys/devices/system/cpu/present") == present })
		}
		resize(2, `"0-1\n"`)
		resize(1, `"0\n"`)
		resize(2, `"0-1\n"`)
		keep := func() error {
			_, err := m.(vmm.Checkpointer).Checkpoint(within(t), t.TempDir(), l.Template)
			return err
		}
		must(t, m.Pause(within(t))) // its guest lets go of nothing
		ctx, cancel := context.WithTimeout(within(t), time.Second)
		defer cancel()
		if err := r.Resize(ctx, 1, l.Boot.MemoryMiB); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while its guest has both: %v", err)
		}
		if err := keep(); !errors.Is(err, vmm.ErrUnsupported) {
			t.Errorf("kept while a processor leaves: %v", err)
		}
		must(t, m.Resume(within(t)))
		resize(2, `"0-1\n"`)
		resize(1, `"0\n"`)
		must(t, keep())
	})
	t.Run("a disk's limit", func(t *testing.T) {
		m := l.Machine(t)
		start := time.Now()
		must(t, l.Do(within(t), m, "disk-fill")) // 64 MiB, the first 8 at once
		if took := time.Since(start); took < 5*time.Second {
			t.Errorf("64 MiB took %v at 8 MiB/s", took)
		}
	})
}

// commands is a launcher that keeps what it was told.
type commands struct {
	vmm.Launcher
	mu   sync.Mutex
	told map[string]vmm.Command // by the machine's name
}

func (l *commands) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told[c.Name] = c
	return l.Launcher.Launch(ctx, c)
}

// A VMM makes no file larger than its guest's memory, so that one that is taken over cannot fill the host's disk by way of its scratch disk.
// Launchers allow it what its largest file has already.
func TestFileSize(t *testing.T) {
	fakes, _ := newFakes(t, "v53.0")
	l := &commands{Launcher: fakes, told: map[string]vmm.Command{}}
	d, err := cloudhypervisor.New(cloudhypervisor.Config{Binary: "/bin/true", RunDir: t.TempDir(), Launcher: l})
	must(t, err)
	boot := fakeBoot(t)
	boot.MemoryMiB = 96
	m, err := d.Boot(within(t), boot, vmm.Attach{})
	must(t, err)
	booted := l.told[m.ID()]
	template, err := m.Snapshot(within(t), t.TempDir())
	must(t, err)
	p, err := d.Prepare(within(t), template, vmm.Attach{})
	must(t, err)
	clone, err := p.Restore(within(t))
	must(t, err)
	defer clone.Close()
	for name, c := range map[string]vmm.Command{"booted": booted, "cloned": l.told[clone.ID()]} {
		if c.FileBytes != 96<<20 {
			t.Errorf("%s: files of %d bytes, want %d", name, c.FileBytes, 96<<20)
		}
	}
}
