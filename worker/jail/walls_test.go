package jail_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/vmmtest"
	"github.com/paddockvm/paddock/worker/jail"
)

// What a guest finds that has escaped from its VMM, and what it cannot do. The program is in hostile_test.go and acts_test.go.
func TestHostile(t *testing.T) {
	needRoot(t)
	vmmtest.NoLeaks(t)
	// No uids of workers beside this test: what it starts as one of them counts against all processes of that uid (RLIMIT_NPROC).
	l := newLauncher(t, jail.Config{UIDBase: 400_000})
	t.Logf("degraded: %v", l.Lacks())
	got, uid := findings(t, l)
	none := "0000000000000000"
	for _, c := range []struct {
		name string
		want map[string]string
	}{
		{"see another machine's files or processes", map[string]string{
			"read another machine's": "ENOENT", "read shadow": "ENOENT", "read passwd": "ENOENT", "read a file not given": "ENOENT", "leave by ..": "ENOENT",
			"leave by way of /proc": "ENOENT", "read the host's cmdline": "ENOENT", "read the host's sysctls": "ENOENT",
			"read what it was given": "done", "processes": "1 self thread-self", "etc": "alternatives ld.so.cache", "name": "m-0123456789abcdef",
			"env": "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "cgroup": "/", "trace its parent": "EPERM",
		}},
		{"reach any network", map[string]string{
			"reach loopback": "ENETUNREACH", "reach an address": "ENETUNREACH", "reach a socket": "ECONNREFUSED", "raise the loopback": "EPERM",
			"packet socket": "EPERM", "raw socket": "EPERM", "vsock": "EPERM", "netlink": "EPERM", "ipv6": "EPERM", "crypto socket": "EPERM",
			"interfaces": "lo", "network namespace": "EPERM",
		}},
		{"open a device", map[string]string{
			"make a device": "EPERM", "open a device": "EACCES", "open kvm": "ENOENT", "open the host's memory": "ENOENT", "write /dev": "EROFS",
			"devices": "null random urandom zero", "write a device's file": "done",
		}},
		{"gain a capability", map[string]string{
			"setuid": "EPERM", "setgid": "EPERM", "setgroups": "EPERM", "chown": "EPERM", "hostname": "EPERM", "chroot": "EPERM", "user namespace": "EPERM",
			"mount": "EPERM", "unmount": "EPERM", "remount read-only": "EPERM", "trace itself": "EPERM", "be given new privileges": "EINVAL",
			"setuid program's uid": strconv.Itoa(uid), "a program's capabilities": none,
			"credentials": fmt.Sprintf("CapAmb %[2]s, CapBnd %[2]s, CapEff %[2]s, CapInh %[2]s, CapPrm %[2]s, Gid %[1]d, Groups , NoNewPrivs 1, Seccomp 2, Uid %[1]d", uid, none),
		}},
		{"signal others", map[string]string{"kill everybody": "ESRCH", "kill a neighbour": "ESRCH"}},
		{"write what it was not given", map[string]string{
			"write /": "EROFS", "write /usr": "EROFS", "write read-only": "EROFS", "create in read-only": "EROFS", "chmod read-only": "EROFS",
			"write writable": "done",
		}},
		{"raise a limit", map[string]string{
			"raise nofile": "EPERM", "raise nproc": "EPERM", "raise core": "EPERM", "raise file size": "EPERM", "open files without end": "EMFILE",
			"lock memory": "ENOMEM", "processes it can start": "less than 256",
		}},
	} {
		here := map[string]string{}
		for name := range c.want {
			here[name] = got[name]
			delete(got, name)
		}
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, here); diff != "" {
				t.Errorf("what came of it (-want +got):\n%s", diff)
			}
		})
	}
	if len(got) > 0 {
		t.Errorf("nobody looks at %v", slices.Sorted(maps.Keys(got)))
	}
	t.Run("outlive its cgroup", func(t *testing.T) { testOutlive(t, l) })
	t.Run("fill the host's disk", func(t *testing.T) { testFill(t, l) })
	t.Run("exceed memory", func(t *testing.T) { testMemory(t, l) })
	t.Run("exceed pids", func(t *testing.T) { testPIDs(t, l) })
	t.Run("exceed cpu", func(t *testing.T) { testCPU(t, l) })
}

// findings runs the hostile program beside another machine, and gives what came of its tries.
func findings(t *testing.T, l *jail.Launcher) (got map[string]string, uid int) {
	t.Helper()
	dir := t.TempDir()
	p := prey{
		Secret: filepath.Join(dir, "secret"), ReadOnly: filepath.Join(dir, "ro"), Writable: filepath.Join(dir, "rw"), Other: filepath.Join(dir, "other"),
		Abstract: "@paddock-" + filepath.Base(filepath.Dir(dir)),
	}
	must(t, errors.Join(os.Mkdir(p.ReadOnly, 0o755), os.Mkdir(p.Writable, 0o755), os.Mkdir(p.Other, 0o755), programs(p.ReadOnly)))
	must(t, errors.Join(os.WriteFile(p.Secret, []byte("secret"), 0o666), os.WriteFile(p.ReadOnly+"/file", nil, 0o666), os.Chmod(p.ReadOnly+"/file", 0o666)))
	must(t, errors.Join(syscall.Mknod(p.Writable+"/device", syscall.S_IFCHR|0o666, 1<<8|5), os.Chmod(p.Writable+"/device", 0o666), os.WriteFile(p.Other+"/file", nil, 0o666)))
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer tcp.Close()
	abstract, err := net.Listen("unix", p.Abstract)
	must(t, err)
	defer abstract.Close()
	p.TCP = tcp.Addr().String()
	other := launch(t, l, vmm.Command{Name: "m-other", Path: "/bin/sleep", Args: []string{"1000"}, Writable: []string{p.Other}})

	errs, errsW := pipe(t)
	r, m := start(t, l, vmm.Command{ReadOnly: []string{p.ReadOnly}, Writable: []string{p.Writable}, Stderr: errsW, AddressSpaceBytes: 64 << 30, FileBytes: 64 << 30}, p)
	errsW.Close()
	said, err := io.ReadAll(r)
	must(t, err)
	if err := json.Unmarshal(said, &got); err != nil {
		b, _ := io.ReadAll(errs)
		t.Fatalf("it tells %q: %v\n%s", said, err, b)
	}
	<-m.Done()
	select {
	case <-other.Done():
		t.Errorf("it ended another machine: %v", other.Err())
	default:
	}
	st, err := os.Stat(p.Writable + "/x")
	must(t, err)
	if own := st.Sys().(*syscall.Stat_t); int(own.Uid) != m.UID() || int(own.Gid) != m.UID() {
		t.Errorf("what it wrote is %d:%d's, want %d's", own.Uid, own.Gid, m.UID())
	}
	return got, m.UID()
}

// start starts the hostile program; descriptor 3 is what it tells.
func start(t *testing.T, l *jail.Launcher, c vmm.Command, p prey) (says *os.File, m vmm.Process) {
	t.Helper()
	arg, err := json.Marshal(p)
	must(t, err)
	r, w := pipe(t)
	c.Name, c.Path, c.Args, c.Files = "m-0123456789abcdef", self(t), []string{"hostile", string(arg)}, []*os.File{w}
	c.ReadOnly = append(c.ReadOnly, self(t))
	m = launch(t, l, c)
	w.Close()
	return r, m
}

// tells gives the lines that the program tells, up to one that begins so, or to its end.
func tells(t *testing.T, r io.Reader, until string) (lines []string) {
	t.Helper()
	for s := bufio.NewScanner(r); s.Scan(); {
		lines = append(lines, s.Text())
		if until != "" && strings.HasPrefix(s.Text(), until) {
			return lines
		}
	}
	return lines
}

// bounded skips where this host has no cgroups for it; the nested host has all.
func bounded(t *testing.T, l *jail.Launcher, part string) {
	t.Helper()
	for _, lack := range l.Lacks() {
		if lack.Name != jail.NoCgroup && lack.Name != jail.NoCgroup+"."+part {
			continue
		}
		if os.Getenv("REQUIRE_KVM") != "" {
			t.Fatalf("%s: %s", lack.Name, lack.Why)
		}
		t.Skipf("SKIPPED: %s: %s", lack.Name, lack.Why)
	}
}

// cgroupFile reads a file of a machine's cgroup: its name in v2 or in v1, there of one controller.
func cgroupFile(t *testing.T, pid int, v2, controller, v1 string) string {
	t.Helper()
	b, err := os.ReadFile(cgroupPath(t, pid, v2, controller, v1))
	must(t, err)
	return strings.TrimSpace(string(b))
}

func cgroupPath(t *testing.T, pid int, v2, controller, v1 string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	must(t, err)
	for line := range strings.Lines(string(b)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if slices.Contains(strings.Split(fields[1], ","), controller) {
			return filepath.Join("/sys/fs/cgroup", controller, fields[2], v1)
		}
	}
	_, own, _ := strings.Cut(strings.TrimSpace(string(b)), "0::")
	return filepath.Join("/sys/fs/cgroup", own, v2)
}

func testOutlive(t *testing.T, l *jail.Launcher) {
	for name, end := range map[string]func(vmm.Process, string) error{
		"killed":                    func(m vmm.Process, _ string) error { return m.Kill() },
		"its first process is dead": func(m vmm.Process, _ string) error { return syscall.Kill(m.PID(), syscall.SIGKILL) },
	} {
		t.Run(name, func(t *testing.T) {
			r, m := start(t, l, vmm.Command{Share: vmm.Share{MemoryBytes: 512 << 20, PIDs: 200}}, prey{Act: "hide"})
			if _, err := io.ReadFull(r, make([]byte, 5*len("hidden\n"))); err != nil {
				t.Fatal(err)
			}
			procs := cgroupPath(t, m.PID(), "cgroup.procs", "freezer", "cgroup.procs")
			b, err := os.ReadFile(procs)
			must(t, err)
			if n := len(strings.Fields(string(b))); n < 10 && len(l.Degraded()) == 0 {
				t.Errorf("of its processes, more than 10, there are %d in its cgroup", n)
			}
			must(t, end(m, procs))
			if rest := tells(t, r, ""); len(rest) > 0 { // it ends when nobody has the descriptor any more
				t.Errorf("it tells %q", rest)
			}
			<-m.Done()
			if _, err := os.Stat(filepath.Dir(procs)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("its cgroup is there: %v", err)
			}
		})
	}
}

// Files are no larger than its memory and disks, its root is small and read-only, and what is no file of a disk is memory.
func testFill(t *testing.T, l *jail.Launcher) {
	dir := t.TempDir()
	disk, err := os.Create(filepath.Join(dir, "disk"))
	must(t, err)
	defer disk.Close()
	must(t, errors.Join(disk.Truncate(48<<20), os.Mkdir(filepath.Join(dir, "rw"), 0o755)))
	rw := filepath.Join(dir, "rw")
	r, w := pipe(t)
	m := launch(t, l, vmm.Command{
		Name: "m-0123456789abcdef", Path: "/bin/sh", Files: []*os.File{w, disk}, Writable: []string{rw}, FileBytes: 32 << 20,
		Args: []string{"-c", `exec >&3 2>&3; cd "$0"; trap '' XFSZ
			dd if=/dev/zero of=written bs=1M count=64; truncate -s 1G sparse; dd if=/dev/zero of=/proc/self/fd/4 bs=1M count=64
			for d in / /tmp /dev /dev/shm /run /var/tmp /usr /etc /proc; do echo x >$d/x; done; true`, rw},
	})
	w.Close()
	said, err := io.ReadAll(r)
	must(t, err)
	<-m.Done()
	for _, name := range []string{rw + "/written", rw + "/sparse", disk.Name()} {
		if st, err := os.Stat(name); err == nil && st.Size() > 48<<20 {
			t.Errorf("%s has %d bytes", name, st.Size())
		}
	}
	if n := strings.Count(string(said), "File too large"); n < 2 || strings.Count(string(said), "cannot create") != 9 {
		t.Errorf("it says:\n%s", said)
	}
	for _, act := range []string{"write memory files", "shared memory"} {
		t.Run(act, func(t *testing.T) { dies(t, l, act) })
	}
}

func testMemory(t *testing.T, l *jail.Launcher) { dies(t, l, "touch memory") }

// dies runs an act that takes memory without end. It is killed when it has had its share, and nothing else is.
func dies(t *testing.T, l *jail.Launcher, act string) {
	bounded(t, l, "memory")
	const share = 64 // MiB
	r, m := start(t, l, vmm.Command{Share: vmm.Share{MemoryBytes: share << 20}}, prey{Act: act})
	got := tells(t, r, "")
	<-m.Done()
	exit, ok := errors.AsType[*exec.ExitError](m.Err())
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v, want killed", m.Err())
	}
	had := 0
	for _, line := range got {
		if n, err := strconv.Atoi(line); err == nil {
			had = n
		}
	}
	if had < share/4 || had > share {
		t.Errorf("it had %d MiB, want no more than %d: %q", had, share, got)
	}
}

func testPIDs(t *testing.T, l *jail.Launcher) {
	bounded(t, l, "pids")
	const most = 40
	r, m := start(t, l, vmm.Command{Share: vmm.Share{PIDs: most}}, prey{Act: "fork"})
	got := tells(t, r, "end")
	if len(got) < 2 || len(got) > most || !strings.Contains(got[len(got)-1], "resource temporarily unavailable") {
		t.Errorf("it started %d processes, and then %q", len(got)-1, got[len(got)-1])
	}
	if set := cgroupFile(t, m.PID(), "pids.max", "pids", "pids.max"); set != strconv.Itoa(most) {
		t.Errorf("pids.max = %s", set)
	}
	must(t, m.Kill())
	if rest := tells(t, r, ""); len(rest) > 0 {
		t.Errorf("it tells %q", rest)
	}
}

func testCPU(t *testing.T, l *jail.Launcher) {
	bounded(t, l, "cpu")
	r, m := start(t, l, vmm.Command{Share: vmm.Share{CPUs: 0.1}}, prey{Act: "burn"})
	var had, took int // ms
	_, err := fmt.Fscan(r, &had, &took)
	must(t, err)
	// A tenth, and a period's worth at each end. A host is busy indeed that does not give it more.
	if had > took/10+100 {
		t.Errorf("with a tenth of a processor it had %d ms of time in %d", had, took)
	}
	stat := cgroupFile(t, m.PID(), "cpu.stat", "cpu", "cpu.stat")
	if throttled, ok := field(stat, "nr_throttled"); !ok || throttled == 0 {
		t.Errorf("it was never throttled:\n%s", stat)
	}
	must(t, m.Kill())
}

// field is a number in a file of names and values.
func field(text, name string) (int, bool) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			return n, err == nil
		}
	}
	return 0, false
}

// What is set in the machine's cgroup, as the kernel tells it.
func TestShare(t *testing.T) {
	l := newLauncher(t, jail.Config{})
	bounded(t, l, "memory")
	disk, err := os.CreateTemp(".", "disk") // on the disk where the sources are
	must(t, err)
	defer func() { disk.Close(); os.Remove(disk.Name()) }()
	m := launch(t, l, vmm.Command{
		Name: "m-0123456789abcdef", Path: "/bin/sleep", Args: []string{"1000"}, Files: []*os.File{disk},
		Share: vmm.Share{CPUs: 1.5, MemoryBytes: 100 << 20, PIDs: 66, DiskBytesPerSecond: 10 << 20},
	})
	for _, c := range []struct{ v2, want2, controller, v1, want1 string }{
		{"cpu.max", "150000 100000", "cpu", "cpu.cfs_quota_us", "150000"},
		{"cpu.weight", "150", "cpu", "cpu.shares", "1536"},
		{"memory.max", "104857600", "memory", "memory.limit_in_bytes", "104857600"},
		{"memory.swap.max", "0", "memory", "memory.memsw.limit_in_bytes", "104857600"},
		{"memory.oom.group", "1", "memory", "memory.oom_control", ""},
		{"pids.max", "66", "pids", "pids.max", "66"},
		{"io.max", " rbps=10485760 wbps=10485760 riops=max wiops=max", "blkio", "blkio.throttle.write_bps_device", " 10485760"},
	} {
		path := cgroupPath(t, m.PID(), c.v2, c.controller, c.v1)
		want := c.want2
		if filepath.Base(path) == c.v1 && filepath.Base(filepath.Dir(path)) != "" && strings.HasPrefix(path, "/sys/fs/cgroup/"+c.controller+"/") {
			want = c.want1
		}
		b, err := os.ReadFile(path)
		must(t, err)
		if got := strings.TrimSpace(string(b)); !strings.HasSuffix(got, want) {
			t.Errorf("%s holds %q, want %q", path, got, want)
		}
	}
}
