package jail_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
	"github.com/paddockvm/paddock/vmm/vmmtest"
	"github.com/paddockvm/paddock/worker/jail"
)

// launcher starts a machine on a uid that is the only one, tells its uid, and waits to be killed. Descriptor 3 is the machine's.
func launcher(lock string) {
	l, err := jail.New(jail.Config{Self: []string{"/proc/self/exe", "stub"}, UIDCount: 1, UIDLock: lock, CgroupParent: os.Getenv("CGROUP_PARENT")})
	if err == nil {
		held := os.NewFile(3, "held")
		var p vmm.Process
		// The program is deaf to all that can be ignored, and leaves a child that hides.
		p, err = l.Launch(context.Background(), vmm.Command{
			Name: "m-0123456789abcdef", Path: "/bin/sh", Args: []string{"-c", "trap '' HUP INT TERM PIPE; setsid sleep 1000 & echo up >&3; sleep 1000"},
			Files: []*os.File{held},
		})
		held.Close()
		if err == nil {
			fmt.Println(p.UID())
			<-p.Done()
		}
	}
	fmt.Println(err)
}

func TestMachineDiesWithItsLauncher(t *testing.T) {
	needRoot(t)
	lock := filepath.Join(t.TempDir(), "uids")
	held, w := pipe(t)
	cmd := exec.CommandContext(t.Context(), self(t), "launcher", lock)
	cmd.Env = append(os.Environ(), "CGROUP_PARENT="+ownParent(t))
	cmd.ExtraFiles = []*os.File{w}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	w.Close()
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	if line != "200000\n" {
		t.Fatalf("the launcher says %q", line)
	}
	_, err = io.ReadFull(held, make([]byte, len("up\n")))
	must(t, err)

	other := newLauncher(t, jail.Config{UIDCount: 1, UIDLock: lock})
	if _, err := other.Launch(t.Context(), vmm.Command{Name: "m-0", Path: "/bin/true"}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("another process's machine got the same uid: %v", err)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if b, err := io.ReadAll(held); err != nil || len(b) > 0 { // ends when all that held it are gone
		t.Fatalf("something of the machine lives: %q, %v", b, err)
	}
	if got, p := run(t, other, vmm.Command{}, "id -u"); got != "200000" {
		t.Errorf("the dead launcher's uid: %q, %d", got, p.UID())
	}
	newLauncher(t, jail.Config{CgroupParent: ownParent(t)}) // removes its cgroup
}

func TestUIDs(t *testing.T) {
	lock := filepath.Join(t.TempDir(), "uids")
	a, b := newLauncher(t, jail.Config{UIDCount: 3, UIDLock: lock}), newLauncher(t, jail.Config{UIDCount: 3, UIDLock: lock})
	sleeper := vmm.Command{Name: "m-0", Path: "/bin/sleep", Args: []string{"1000"}}
	first, second, third := launch(t, a, sleeper), launch(t, b, sleeper), launch(t, a, sleeper)
	if got, want := []int{first.UID(), second.UID(), third.UID()}, []int{200000, 200001, 200002}; !cmp.Equal(got, want) {
		t.Errorf("three machines have the uids %v, want %v", got, want)
	}
	for _, p := range []vmm.Process{first, second, third} { // as the kernel has it
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
		must(t, err)
		if want := fmt.Sprintf("\nUid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", p.UID()); !strings.Contains(string(status), want) {
			t.Errorf("a machine of the uid %d is another's:\n%s", p.UID(), status)
		}
	}
	for _, l := range []*jail.Launcher{a, b} {
		if _, err := l.Launch(t.Context(), sleeper); err == nil || !strings.Contains(err.Error(), "all 3 uids are in use") {
			t.Errorf("a fourth machine: %v", err)
		}
	}
	must(t, second.Kill())
	if again := launch(t, a, sleeper); again.UID() != 200001 {
		t.Errorf("the uid that was given back is not given: %d", again.UID())
	}
}

// Every step can fail. The error names it, and nothing is left: no process, descriptor, mount, and not the only uid there is.
func TestFailingSteps(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	must(t, errors.Join(os.WriteFile(file, []byte("no program"), 0o755), os.Symlink(dir, link)))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for _, c := range []struct {
		name string
		ctx  context.Context
		cfg  jail.Config
		cmd  vmm.Command
		says string
		is   error
	}{
		{name: "no such writable directory", cmd: vmm.Command{Writable: []string{"/no/such"}}, says: "/no/such"},
		{name: "writable is a file", cmd: vmm.Command{Writable: []string{file}}, says: file + " is no directory"},
		{name: "writable is a link", cmd: vmm.Command{Writable: []string{link}}, says: link + " is no directory"},
		{name: "no such read-only file", cmd: vmm.Command{ReadOnly: []string{"/no/such"}}, says: "root: lstat /no/such"},
		{name: "no such device", cmd: vmm.Command{Devices: []string{"/dev/no-such"}}, says: "root: lstat /dev/no-such"},
		{name: "no device", cmd: vmm.Command{Devices: []string{file}}, says: "root: " + file + " is no character device"},
		{name: "a name that is too long", cmd: vmm.Command{Name: strings.Repeat("m", 65)}, says: "hostname: "},
		{name: "a uid that there cannot be", cfg: jail.Config{UIDBase: -1}, says: "uid"},
		{name: "no such program", cmd: vmm.Command{Path: "/no/such"}, says: "execute /no/such: no such file"},
		{name: "a program of the host", cmd: vmm.Command{Path: file}, says: "execute " + file + ": no such file"},
		{name: "no program", cmd: vmm.Command{Path: file, ReadOnly: []string{file}}, says: "execute " + file + ": exec format error"},
		{name: "no program, and no memory", cmd: vmm.Command{Path: "/no/such", AddressSpaceBytes: 1 << 20}, says: "execute /no/such: no such file"},
		{name: "no stub", cfg: jail.Config{Self: []string{"/no/such"}}, says: "launch m-0: fork/exec /no/such"},
		{name: "a stub that is none", cfg: jail.Config{Self: []string{"/bin/true"}}, says: "the stub ended: with status 0"},
		{name: "a stub that crashes", cfg: jail.Config{Self: []string{"/bin/sh", "-c", "kill -9 $$"}}, says: "the stub ended: "},
		{name: "cancelled before", ctx: gone, is: context.Canceled},
		{name: "cancelled while a stub hangs", ctx: soon, cfg: jail.Config{Self: []string{"/bin/sh", "-c", "sleep 1000"}}, is: context.DeadlineExceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.ctx == nil {
				c.ctx = t.Context()
			}
			if c.cmd.Name == "" {
				c.cmd.Name = "m-0"
			}
			if c.cmd.Path == "" {
				c.cmd.Path = "/bin/true"
			}
			c.cfg.UIDCount = 1
			l := newLauncher(t, c.cfg)
			vmmtest.NoLeaks(t, dir)
			before := mounts(t)
			for range 2 { // the second time shows that the uid is there again
				p, err := l.Launch(c.ctx, c.cmd)
				if err == nil {
					t.Fatalf("it runs: %v", p.Kill())
				}
				if c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("err = %v, want %q %v", err, c.says, c.is)
				}
			}
			if diff := cmp.Diff(before, mounts(t)); diff != "" {
				t.Errorf("mounts left (-before +after):\n%s", diff)
			}
		})
	}
}

// mounts are those where the stub makes some, in its own namespace. Other programs of this host make and remove others meanwhile.
func mounts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	var here []string
	for line := range strings.Lines(string(b)) {
		if at := strings.Fields(line)[4]; at == "/tmp" || at == "/tmp/root" || strings.HasPrefix(at, "/tmp/root/") {
			here = append(here, line)
		}
	}
	return strings.Join(here, "")
}

// Cancelling the context later does not end the machine; Kill does, as often as it is called, and Done tells.
func TestKill(t *testing.T) {
	l := newLauncher(t, jail.Config{})
	vmmtest.NoLeaks(t)
	ctx, cancel := context.WithCancel(t.Context())
	held, w := pipe(t)
	p, err := l.Launch(ctx, vmm.Command{Name: "m-0", Path: "/bin/sh", Args: []string{"-c", "setsid sleep 1000 & echo up >&3; wait"}, Files: []*os.File{w}})
	must(t, err)
	w.Close()
	_, err = io.ReadFull(held, make([]byte, len("up\n")))
	must(t, err)
	cancel()
	select {
	case <-p.Done():
		t.Fatal("ended with the context of its launch")
	default:
	}
	must(t, errors.Join(p.Kill(), p.Kill()))
	<-p.Done()
	if exit, ok := errors.AsType[*exec.ExitError](p.Err()); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("err = %v", p.Err())
	}
	if b, err := io.ReadAll(held); err != nil || len(b) > 0 {
		t.Errorf("something of it lives: %q, %v", b, err)
	}
}

// filteredTwice waits until each of a VMM's threads is held by filters of system calls, the jail's and one of its own.
func filteredTwice(t *testing.T, p vmm.Process) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(time.Minute)
	for {
		list := vmmtest.Threads(t, p.PID())
		if len(list) > 0 && !slices.ContainsFunc(list, func(th vmmtest.Thread) bool { return th.Seccomp != 2 || th.Filters < 2 }) {
			return
		}
		select {
		case <-tick.C:
		case <-p.Done(): // the driver says why
			return
		case <-late:
			t.Errorf("not held by two filters: %+v", list)
			return
		}
	}
}

// The walls let a real VMM live: the probe boots a guest.
func TestQEMU(t *testing.T) {
	l := newLauncher(t, jail.Config{})
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		if os.Getenv("REQUIRE_QEMU") != "" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: %v: no VMM is tried in the jail (apt-get install qemu-system-x86)", err)
	}
	d, err := qemu.New(qemu.Config{Launcher: vmmtest.Onlooker{Launcher: l, Look: func(p vmm.Process) { filteredTwice(t, p) }}, RunDir: t.TempDir()})
	must(t, err)
	defer d.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	caps, err := d.Probe(ctx)
	if err != nil || !caps.Isolated || caps.BootProbe == 0 {
		t.Errorf("caps: %+v, %v", caps, err)
	}
	for _, wall := range l.Degraded() {
		if !slices.Contains(caps.Degraded, wall) {
			t.Errorf("the driver says that %v are missing, and not %s", caps.Degraded, wall)
		}
	}
}
