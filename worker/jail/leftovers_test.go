package jail_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/vmmtest"
	"github.com/paddockvm/paddock/worker/jail"
)

// ownParent is a cgroup for one test's machines, by a name of its own. It is empty where this host has none.
func ownParent(t *testing.T) string {
	t.Helper()
	if slices.Contains(newLauncher(t, jail.Config{}).Degraded(), jail.NoCgroup) {
		return ""
	}
	return fmt.Sprintf("/paddock-test-%d", os.Getpid())
}

// machineCgroups are all directories of cgroups below the parent, in whatever hierarchies there are.
func machineCgroups(t *testing.T, parent string) (dirs []string) {
	t.Helper()
	if parent == "" {
		return nil
	}
	must(t, filepath.WalkDir("/sys/fs/cgroup", func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // others' come and go
			return nil
		}
		if err == nil && e.IsDir() && strings.Contains(p+"/", parent+"/") && filepath.Base(p) != filepath.Base(parent) {
			dirs = append(dirs, p)
		}
		return err
	}))
	return dirs
}

// A launcher that is killed leaves cgroups. The next one removes them, and nobody else's.
func TestLeftovers(t *testing.T) {
	parent := ownParent(t)
	l := newLauncher(t, jail.Config{CgroupParent: parent})
	bounded(t, l, "kill")
	mine := launch(t, l, vmm.Command{Name: "m-mine", Path: "/bin/sleep", Args: []string{"1000"}})
	before := machineCgroups(t, parent)
	if len(before) == 0 {
		t.Fatal("a machine has no cgroup")
	}
	dead := exec.CommandContext(t.Context(), self(t), "launcher", filepath.Join(t.TempDir(), "uids"))
	dead.Env = append(os.Environ(), "CGROUP_PARENT="+parent)
	held, w := pipe(t)
	dead.ExtraFiles = []*os.File{w}
	out, err := dead.StdoutPipe()
	must(t, err)
	must(t, dead.Start())
	w.Close()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "200000\n" {
		t.Fatalf("the launcher says %q, %v", line, err)
	}
	must(t, dead.Process.Kill())
	_ = dead.Wait()
	if rest := tells(t, held, ""); len(rest) > 1 || len(rest) == 1 && rest[0] != "up" {
		t.Errorf("it tells %q", rest)
	}
	if len(machineCgroups(t, parent)) <= len(before) {
		t.Error("the dead launcher's cgroup is gone already: this test shows nothing")
	}
	newLauncher(t, jail.Config{CgroupParent: parent})
	if diff := cmp.Diff(before, machineCgroups(t, parent)); diff != "" {
		t.Errorf("cgroups (-before +after):\n%s", diff)
	}
	select {
	case <-mine.Done():
		t.Errorf("a living launcher's machine was taken for a leftover: %v", mine.Err())
	default:
	}
}

// Launchers come and go, and look for leftovers, while others launch: nobody's machine is taken for one.
func TestLaunchersTogether(t *testing.T) {
	needRoot(t)
	parent, lock := ownParent(t), filepath.Join(t.TempDir(), "uids")
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 8 {
				l, err := jail.New(jail.Config{Self: []string{"/proc/self/exe", "stub"}, UIDLock: lock, CgroupParent: parent})
				if err != nil {
					t.Error(err)
					return
				}
				p, err := l.Launch(t.Context(), vmm.Command{Name: "m-0", Path: "/bin/true"})
				if err != nil {
					t.Error(err)
				} else if <-p.Done(); p.Err() != nil {
					t.Errorf("it ended with %v", p.Err())
				}
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if left := machineCgroups(t, parent); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// The last launcher of a host removes what all have in common. Whoever comes at that moment has all walls that there are.
func TestLaunchersComeAndGo(t *testing.T) {
	needRoot(t)
	atOnce := 2
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		atOnce = 1 // of two of one process the first has made room for the parent (cgroup2_linux.go), and takes it back only where it ends last
	}
	lock := filepath.Join(t.TempDir(), "uids")
	comeAndGo := func() []string {
		l, err := jail.New(jail.Config{Self: []string{"/proc/self/exe", "stub"}, UIDLock: lock})
		if err != nil {
			t.Error(err)
			return nil
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		return l.Degraded()
	}
	want := comeAndGo()
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for range 100 {
				if got := comeAndGo(); !slices.Equal(got, want) {
					t.Errorf("it lacks %q, want %q", got, want)
				}
			}
		})
	}
	all.Wait()
}

// Nothing is left of machines that are killed at whatever moment, by whomever: their launcher, its context, the kernel.
func TestNothingIsLeft(t *testing.T) {
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	parent := ownParent(t)
	l := newLauncher(t, jail.Config{UIDCount: 4, CgroupParent: parent})
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "rw"), 0o755))
	vmmtest.NoLeaks(t, dir)
	before := holdings(t, parent)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	ends := map[string]int{}
	for range rounds {
		wait, how := time.Duration(random.IntN(12_000))*time.Microsecond, random.IntN(3)
		ends[oneRound(t, l, filepath.Join(dir, "rw"), wait, how)]++
	}
	t.Logf("ended: %v", ends)
	if diff := cmp.Diff(before, holdings(t, parent)); diff != "" {
		t.Errorf("left (-before +after):\n%s", diff)
	}
	var last []vmm.Process
	for range 4 { // all uids there are
		last = append(last, launch(t, l, vmm.Command{Name: "m-0", Path: "/bin/sleep", Args: []string{"1000"}}))
	}
	for _, p := range last {
		must(t, p.Kill())
	}
}

// oneRound starts a machine, and ends it after a while: it may not have become one yet. It tells what came of it.
func oneRound(t *testing.T, l *jail.Launcher, rw string, wait time.Duration, how int) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if how == 0 {
		stop := time.AfterFunc(wait, cancel)
		defer stop.Stop()
	}
	var killer sync.WaitGroup
	defer killer.Wait()
	if how == 1 { // from outside, stub or VMM
		killer.Go(func() {
			time.Sleep(wait)
			for _, pid := range children(t) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		})
	}
	p, err := l.Launch(ctx, vmm.Command{
		Name: "m-0", Path: "/bin/sh", Args: []string{"-c", "setsid sleep 1000 & sleep 1000"}, Writable: []string{rw}, Share: vmm.Share{PIDs: 50, MemoryBytes: 256 << 20},
	})
	if err != nil {
		if how == 2 {
			t.Errorf("nobody ended it: %v", err)
		}
		return "while it was made"
	}
	if how == 1 {
		killer.Wait() // that may have come before there was anything
		_ = syscall.Kill(p.PID(), syscall.SIGKILL)
		<-p.Done()
		return "by its death"
	}
	time.Sleep(wait / 4)
	if err := p.Kill(); err != nil {
		t.Errorf("kill: %v", err)
	}
	return "by its launcher"
}

// children are this process's.
func children(t *testing.T) (pids []int) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Error(err)
	}
	for _, task := range tasks {
		b, _ := os.ReadFile(task) // the thread may be gone
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// holdings are what this host has of machines: mounts, cgroups, processes of their uids.
func holdings(t *testing.T, parent string) map[string]string {
	t.Helper()
	uids := ""
	all, err := filepath.Glob("/proc/[0-9]*/status")
	must(t, err)
	for _, status := range all {
		b, _ := os.ReadFile(status) // the process may be gone
		for uid := 200000; uid < 200004; uid++ {
			if strings.Contains(string(b), fmt.Sprintf("\nUid:\t%d\t", uid)) && strings.Contains(string(b), "Name:\tsleep") {
				uids += status + " "
			}
		}
	}
	return map[string]string{"mounts": mounts(t), "cgroups": strings.Join(machineCgroups(t, parent), " "), "processes": uids}
}

// A launcher may move this process to make room for its machines' cgroups. When it is closed, all is as before.
func TestOwnCgroupIsAsBefore(t *testing.T) {
	own := func() string {
		b, err := os.ReadFile("/proc/self/cgroup")
		must(t, err)
		return string(b)
	}
	needRoot(t)
	before := own()
	for range 2 {
		l, err := jail.New(jail.Config{Self: []string{"/proc/self/exe", "stub"}, UIDLock: filepath.Join(t.TempDir(), "uids")})
		must(t, err)
		bounded(t, l, "kill")
		p := launch(t, l, vmm.Command{Name: "m-0", Path: "/bin/sleep", Args: []string{"1000"}})
		dir := filepath.Dir(filepath.Dir(cgroupPath(t, p.PID(), "cgroup.procs", "freezer", "cgroup.procs")))
		if filepath.Base(dir) != "paddock-machines" {
			t.Errorf("a machine's cgroup is in %s", dir)
		}
		must(t, errors.Join(p.Kill(), l.Close()))
		if after := own(); after != before {
			t.Errorf("this process is in\n%s\nwas in\n%s", after, before)
		}
	}
}
