package qemu_test

import (
	"context"
	"crypto/sha256"
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
	l.Fixture = vmmtest.Fixture{Driver: l.driver, Boot: boot, Template: vmmtest.Build(t, l.driver, boot, l.TestGuest)}
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

func TestMachine(t *testing.T) {
	l := newLab(t, vmm.Direct{})
	must(t, l.Machine(t).Close())
	for name, test := range map[string]func(*testing.T, *lab){
		"guest reboots":              testReboot,
		"guest panics":               testPanic,
		"console flood":              testFlood,
		"console is kept":            testConsole,
		"disks":                      testDisks,
		"template cannot be changed": testImmutable,
		"killed before the restore":  testKilledPrepared,
		"a stopped qemu":             testStopped,
		"broken templates":           testBrokenTemplates,
		"missing files":              testMissingFiles,
		"release":                    testRelease,
		"clone has no snapshot":      testNoSnapshotOfClone,
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

func testReboot(t *testing.T, l *lab) {
	m := l.Machine(t)
	must(t, l.Reboot(within(t), m))
	if diff := cmp.Diff(vmm.Exit{Guest: true, Reason: "reset"}, exit(t, m)); diff != "" {
		t.Error(diff)
	}
}

func testPanic(t *testing.T, l *lab) {
	m := l.Machine(t)
	must(t, l.Panic(within(t), m))
	if diff := cmp.Diff(vmm.Exit{Guest: true, Reason: "panic"}, exit(t, m)); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(m.Console(), "Kernel panic") {
		t.Errorf("the console does not tell of the panic:\n%s", m.Console())
	}
}

func testConsole(t *testing.T, l *lab) {
	m := l.Machine(t)
	must(t, l.Do(within(t), m, "print \x1b[31mred\x1b[0m\xff and done"))
	must(t, m.Close())
	if got := m.Console(); !strings.Contains(got, "[31mred[0m? and done\n") || strings.Contains(got, "\x1b") {
		t.Errorf("console: %q", got)
	}
}

// A guest that prints without end is answered and takes no memory of ours.
func testFlood(t *testing.T, l *lab) {
	m := l.Machine(t)
	must(t, l.Do(within(t), m, "flood"))
	for range 50 {
		if got, err := l.Echo(within(t), m, []byte("still there")); err != nil || string(got) != "still there" {
			t.Fatalf("echo: %q, %v", got, err)
		}
	}
	for !strings.Contains(m.Console(), "flood flood") {
		l.ask(t, m, "get")
	}
	if n := len(m.Console()); n > 16<<10 {
		t.Errorf("the console kept %d bytes", n)
	}
}

func testDisks(t *testing.T, l *lab) {
	before := hashes(t, l.Boot.Root, l.Boot.Scratch)
	a, b := l.Machine(t), l.Machine(t)
	if got, want := l.ask(t, a, "sum /dev/vda"), before[l.Boot.Root]; got != want {
		t.Errorf("root disk: %s, want %s", got, want)
	}
	if got, want := l.ask(t, b, "sum /dev/vdb"), before[l.Boot.Scratch]; got != want {
		t.Errorf("scratch disk: %s, want %s", got, want)
	}
	must(t, l.Do(within(t), a, "disk-put of a"))
	if got := l.ask(t, a, "disk-get"); got != "of a" {
		t.Errorf("scratch of a: %q", got)
	}
	if got := l.ask(t, b, "disk-get"); got != "" {
		t.Errorf("scratch of b: %q", got)
	}
	if diff := cmp.Diff(before, hashes(t, l.Boot.Root, l.Boot.Scratch)); diff != "" {
		t.Errorf("images have changed: %s", diff)
	}
}

func hashes(t testing.TB, paths ...string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, p := range paths {
		b, err := os.ReadFile(p)
		must(t, err)
		all[p] = fmt.Sprintf("%x", sha256.Sum256(b))
	}
	return all
}

// Clones write to all of their memory that they can, a VMM that is taken over tries to write to the template's, and nothing happens to it.
func testImmutable(t *testing.T, l *lab) {
	files, err := filepath.Glob(filepath.Join(l.Template.Dir, "*"))
	must(t, err)
	before := hashes(t, files...)
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
	if diff := cmp.Diff(before, hashes(t, files...)); diff != "" {
		t.Errorf("the template has changed: %s", diff)
	}
}

func testKilledPrepared(t *testing.T, l *lab) {
	for _, restore := range []bool{true, false} {
		before := len(l.procs)
		p, err := l.Driver.Prepare(within(t), l.Template, vmm.Attach{})
		must(t, err)
		if len(l.procs) != before+1 {
			t.Fatal("no new process")
		}
		must(t, syscall.Kill(l.last.PID(), syscall.SIGKILL))
		<-l.last.Done()
		if restore {
			if m, err := p.Restore(within(t)); err == nil {
				m.Close()
				t.Error("restored a dead QEMU")
			}
		}
		must(t, p.Close())
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

func testBrokenTemplates(t *testing.T, l *lab) {
	overwrite := func(name string, change func([]byte) []byte) func(string) error {
		return func(dir string) error {
			path := filepath.Join(dir, name)
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return errors.Join(os.Remove(path), os.WriteFile(path, change(b), 0o444))
		}
	}
	memory := func(size int64) func(string) error {
		return func(dir string) error {
			path := filepath.Join(dir, "memory")
			return errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o644), os.Truncate(path, size))
		}
	}
	remove := func(name string) func(string) error {
		return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
	}
	half := func(b []byte) []byte { return b[:len(b)/2] }
	empty := func([]byte) []byte { return nil }
	noise := func(b []byte) []byte { return []byte(strings.Repeat("noise", len(b)/5)) }
	for name, breakIt := range map[string]func(string) error{
		"half the state": overwrite("state", half), "no state": overwrite("state", empty), "noise for a state": overwrite("state", noise),
		"half the memory": memory(128 << 20), "no memory": memory(0), "other memory": memory(256<<20 + 1),
		"noise for a manifest": overwrite("qemu.json", noise), "an empty manifest": overwrite("qemu.json", func([]byte) []byte { return []byte("{}") }),
		"missing state": remove("state"), "missing memory": remove("memory"), "missing manifest": remove("qemu.json"),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, name := range []string{"state", "memory", "qemu.json"} {
				must(t, os.Link(filepath.Join(l.Template.Dir, name), filepath.Join(dir, name)))
			}
			must(t, breakIt(dir))
			template := l.Template
			template.Dir = dir
			defer l.driver.Release(dir)
			p, err := l.Driver.Prepare(within(t), template, vmm.Attach{})
			if err == nil {
				var m vmm.Machine
				if m, err = p.Restore(within(t)); err == nil {
					m.Close()
					t.Fatal("a machine came out of it")
				}
			}
			t.Log(err)
		})
	}
}

func testMissingFiles(t *testing.T, l *lab) {
	for name, change := range map[string]func(*vmm.Boot){
		"kernel":  func(b *vmm.Boot) { b.Kernel += ".none" },
		"initrd":  func(b *vmm.Boot) { b.Initrd += ".none" },
		"root":    func(b *vmm.Boot) { b.Root += ".none" },
		"scratch": func(b *vmm.Boot) { b.Scratch += ".none" },
	} {
		boot := l.Boot
		change(&boot)
		if m, err := l.Driver.Boot(within(t), boot, vmm.Attach{}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("boot without a %s: %v", name, err)
			if err == nil {
				m.Close()
			}
		}
		if name == "kernel" || name == "initrd" {
			continue
		}
		template := l.Template
		template.Boot = boot
		if p, err := l.Driver.Prepare(within(t), template, vmm.Attach{}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("prepare without a %s: %v", name, err)
			if err == nil {
				p.Close()
			}
		}
	}
}

func testNoSnapshotOfClone(t *testing.T, l *lab) {
	m := l.Machine(t)
	if _, err := m.Snapshot(within(t), t.TempDir()); !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("err = %v", err)
	}
	if got := l.ask(t, m, "get"); got != "" {
		t.Errorf("value: %q", got)
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
	if got := l.ask(t, m, "sum /dev/vdb"); got != hashes(t, l.Boot.Scratch)[l.Boot.Scratch] {
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
			d, err := qemu.New(qemu.Config{Binary: binary, RunDir: dir, Launcher: vmm.Direct{}, Accel: "tcg", StepTimeout: 200 * time.Millisecond})
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
