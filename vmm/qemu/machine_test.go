package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// lab is a driver with a template.
type lab struct {
	vmmtest.Fixture
	vmmtest.TestGuest
	driver *qemu.Driver
	*registry
	runDir string
}

func newLab(t testing.TB, launcher vmm.Launcher) *lab {
	l := &lab{registry: &registry{Launcher: launcher}, runDir: t.TempDir()}
	l.driver = newDriver(t, qemu.Config{RunDir: l.runDir, Launcher: l.registry})
	boot := linux(t)
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

func TestMachine(t *testing.T) {
	l := newLab(t, vmm.Direct{})
	vmmtest.RunMachines(t, vmmtest.MachineFixture{
		Fixture: l.Fixture, Last: func() vmm.Process { return l.last }, Release: l.driver.Release,
		Broken: map[string]func(string) error{"a manifest of nothing": vmmtest.Overwrite("qemu.json", func([]byte) []byte { return []byte("{}") })},
	})
	for name, test := range map[string]func(*testing.T, *lab){
		"template cannot be changed": testImmutable,
		"a stopped qemu":             testStopped,
		"release":                    testRelease,
		"nothing has a name":         testNoNames,
	} {
		t.Run(name, func(t *testing.T) {
			vmmtest.NoLeaks(t, l.runDir)
			test(t, l)
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Clones write to all of their memory that they can, a VMM that is taken over tries to write to the template's, and nothing happens to it.
func testImmutable(t *testing.T, l *lab) {
	files, err := filepath.Glob(filepath.Join(l.Template.Dir, "*"))
	must(t, err)
	before := vmmtest.Hashes(t, files...)
	if len(before) != 3 {
		t.Errorf("template: %v", files)
	}
	m, other := l.Machine(t), l.Machine(t)
	must(t, l.Set(within(t), other, "mine"))
	must(t, l.Do(within(t), m, "dirty 100"))

	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", l.pid(m.ID())))
	must(t, err)
	mapped := 0
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "paddock-template") {
			mapped++
			if fields := strings.Fields(line); fields[1] != "rw-p" {
				t.Errorf("the template is mapped %s", line)
			}
		}
	}
	if mapped == 0 {
		t.Errorf("the template is not mapped:\n%s", maps)
	}
	tried := 0
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", l.pid(m.ID())))
	must(t, err)
	for _, path := range fds {
		if target, _ := os.Readlink(path); !strings.Contains(target, "paddock-template") {
			continue
		}
		tried++
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		defer f.Close()
		if _, err := f.WriteAt([]byte("x"), 1<<20); !errors.Is(err, unix.EPERM) {
			t.Errorf("write: %v", err)
		}
		if err := f.Truncate(0); !errors.Is(err, unix.EPERM) {
			t.Errorf("truncate: %v", err)
		}
		if _, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_WRITE, unix.MAP_SHARED); !errors.Is(err, unix.EPERM) {
			t.Errorf("shared mapping: %v", err)
		}
	}
	if tried == 0 {
		t.Error("found no descriptor of the template to try")
	}
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

// A QEMU that does nothing at all, not even answer, can be left and ended.
func testStopped(t *testing.T, l *lab) {
	m := l.Machine(t)
	must(t, syscall.Kill(l.pid(m.ID()), syscall.SIGSTOP))
	ctx, cancel := context.WithTimeout(within(t), 50*time.Millisecond)
	defer cancel()
	if err := m.Pause(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("pause: %v", err)
	}
	for range 40 { // more than the socket's queue holds
		conn, err := m.DialGuest(ctx)
		if err == nil {
			conn.Close()
			continue
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial: %v", err)
		}
	}
	must(t, m.Close())
	if diff := cmp.Diff(vmm.Exit{}, m.Exit()); diff != "" {
		t.Error(diff)
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
}

// A QEMU of another uid, with no right to any of our files, does all the same.
func TestUnprivileged(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("only root can give QEMU another uid")
		}
		t.Skip("SKIPPED: only root can give QEMU another uid")
	}
	l := newLab(t, otherUID{vmm.Direct{}})
	must(t, os.Chmod(l.Template.Dir, 0o700))
	must(t, os.Chmod(filepath.Join(l.Template.Dir, "memory"), 0o400))
	m := l.Machine(t)
	if got := l.ask(t, m, "sum /dev/vdb"); got != vmmtest.Hashes(t, l.Boot.Scratch)[l.Boot.Scratch] {
		t.Errorf("scratch disk: %s", got)
	}
	must(t, l.Do(within(t), m, "disk-put x"))
	var uid int
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.pid(m.ID())))
	must(t, err)
	_, rest, _ := strings.Cut(string(status), "\nUid:")
	if _, err := fmt.Sscan(rest, &uid); err != nil || uid != 54321 {
		t.Errorf("uid %d, %v", uid, err)
	}
}

type otherUID struct{ vmm.Launcher }

func (o otherUID) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	c.Args = append([]string{"--reuid=54321", "--regid=54321", "--clear-groups", "--no-new-privs", "--inh-caps=-all", c.Path}, c.Args...)
	c.Path = "/usr/bin/setpriv"
	return o.Launcher.Launch(ctx, c)
}

// QEMUs that are none.
func TestNoQEMU(t *testing.T) {
	dir := t.TempDir()
	for name, script := range map[string]string{
		"exits at once":   "echo out of order >&2; exit 3",
		"says nothing":    "sleep 1000",
		"speaks nonsense": "while :; do echo nonsense; done >&5",
		"is killed":       "kill -9 $$",
	} {
		t.Run(name, func(t *testing.T) {
			vmmtest.NoLeaks(t, dir)
			binary := filepath.Join(t.TempDir(), "qemu")
			must(t, os.WriteFile(binary, []byte("#!/bin/sh\n"+script+"\n"), 0o755))
			step := time.Minute // the others are noticed by what they do
			if name == "says nothing" {
				step = 200 * time.Millisecond
			}
			d, err := qemu.New(qemu.Config{Binary: binary, RunDir: dir, Launcher: vmm.Direct{}, Accel: "tcg", StepTimeout: step})
			must(t, err)
			_, err = d.Probe(within(t))
			if err == nil {
				t.Fatal("probe: nobody noticed")
			}
			if name == "exits at once" && !strings.Contains(err.Error(), "out of order") {
				t.Errorf("error does not say what it said: %v", err)
			}
			if name == "says nothing" && !strings.Contains(err.Error(), "took more than 200ms") {
				t.Errorf("error does not say that it took too long: %v", err)
			}
		})
	}
}

// A launcher that does not launch.
func TestNoLaunch(t *testing.T) {
	dir := t.TempDir()
	vmmtest.NoLeaks(t, dir)
	d := newDriver(t, qemu.Config{RunDir: dir, Launcher: strike{}})
	if _, err := d.Probe(within(t)); !errors.Is(err, errStrike) {
		t.Errorf("probe: %v", err)
	}
}

var errStrike = errors.New("strike")

type strike struct{}

func (strike) Degraded() []string                                       { return nil }
func (strike) Launch(context.Context, vmm.Command) (vmm.Process, error) { return nil, errStrike }

// A QEMU of another uid, without a capability, uses a card whose tap it could not have made.
func TestUnprivilegedCard(t *testing.T) {
	w := vmmtest.NewWire(t)
	d, guest := newDriver(t, qemu.Config{Launcher: otherUID{vmm.Direct{}}}), vmmtest.TestGuest{}
	boot := linux(t)
	boot.NIC = true
	m, err := d.Boot(within(t), boot, w.Attach())
	must(t, err)
	defer m.Close()
	must(t, guest.Do(within(t), m, "frame-listen"))
	must(t, guest.Do(within(t), m, fmt.Sprintf("frame-send %x", vmmtest.Frame(false, "sent by another uid's QEMU, to the host"))))
	if frame, err := w.Receive(time.Minute); err != nil || !strings.HasSuffix(string(frame), "to the host") {
		t.Errorf("%q, %v", frame, err)
	}
}
