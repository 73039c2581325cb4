package jail_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker/jail"
)

// This program is the tests, the stub, the hostile program and a launcher that is killed, as its first argument says.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 {
		switch os.Args[1] {
		case "stub":
			jail.Child(os.Args[2])
		case "hostile":
			hostile(os.Args[2])
			os.Exit(0)
		case "launcher":
			launcher(os.Args[2])
			os.Exit(0)
		}
	}
	goleak.VerifyTestMain(m)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ROOT") != "" {
		t.Fatal("needs root")
	}
	t.Skip("SKIPPED: needs root: no jail is tested here (sudo -E go test ./worker/jail)")
}

// self is this test's program.
func self(t *testing.T) string {
	t.Helper()
	name, err := os.Executable()
	must(t, err)
	return name
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newLauncher(t *testing.T, cfg jail.Config) *jail.Launcher {
	t.Helper()
	needRoot(t)
	if cfg.Self == nil {
		cfg.Self = []string{"/proc/self/exe", "stub"}
	}
	if cfg.UIDLock == "" {
		cfg.UIDLock = filepath.Join(t.TempDir(), "uids")
	}
	l, err := jail.New(cfg)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

func launch(t *testing.T, l *jail.Launcher, c vmm.Command) vmm.Process {
	t.Helper()
	p, err := l.Launch(t.Context(), c)
	must(t, err)
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// pipe is one whose end is the end of all that have w; the reader does not wait for ever.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	must(t, r.SetReadDeadline(time.Now().Add(time.Minute)))
	return r, w
}

// run runs a shell line in a jail and gives what it writes to descriptor 3.
func run(t *testing.T, l *jail.Launcher, c vmm.Command, line string) (string, vmm.Process) {
	t.Helper()
	r, w := pipe(t)
	c.Path, c.Args, c.Files = "/bin/sh", []string{"-c", "exec >&3 2>&3; " + line}, []*os.File{w}
	if c.Name == "" {
		c.Name = "m-0123456789abcdef"
	}
	p := launch(t, l, c)
	w.Close()
	b, err := io.ReadAll(r)
	must(t, err)
	return strings.TrimSpace(string(b)), p
}

func TestHostileProgram(t *testing.T) {
	l := newLauncher(t, jail.Config{})
	dir := t.TempDir()
	p := prey{Secret: filepath.Join(dir, "secret"), ReadOnly: filepath.Join(dir, "ro"), Writable: filepath.Join(dir, "rw"), Abstract: "@paddock-" + filepath.Base(filepath.Dir(dir))}
	must(t, errors.Join(os.Mkdir(p.ReadOnly, 0o755), os.Mkdir(p.Writable, 0o755), id(p.ReadOnly)))
	must(t, errors.Join(os.WriteFile(p.Secret, []byte("secret"), 0o666), os.WriteFile(p.ReadOnly+"/file", nil, 0o666), os.Chmod(p.ReadOnly+"/file", 0o666)))
	must(t, errors.Join(syscall.Mknod(p.Writable+"/device", syscall.S_IFCHR|0o666, 1<<8|5), os.Chmod(p.Writable+"/device", 0o666)))
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer tcp.Close()
	abstract, err := net.Listen("unix", p.Abstract)
	must(t, err)
	defer abstract.Close()
	p.TCP = tcp.Addr().String()
	arg, err := json.Marshal(p)
	must(t, err)

	r, w := pipe(t)
	errs, errsW := pipe(t)
	m := launch(t, l, vmm.Command{
		Name: "m-0123456789abcdef", Path: self(t), Args: []string{"hostile", string(arg)}, Files: []*os.File{w}, Stderr: errsW,
		ReadOnly: []string{self(t), p.ReadOnly}, Writable: []string{p.Writable},
	})
	w.Close()
	errsW.Close()
	said, err := io.ReadAll(r)
	must(t, err)
	got := map[string]string{}
	if err := json.Unmarshal(said, &got); err != nil {
		b, _ := io.ReadAll(errs)
		t.Fatalf("it tells %q: %v\n%s", said, err, b)
	}
	<-m.Done()
	uid := m.(interface{ UID() int }).UID()
	want := map[string]string{
		"read shadow": "ENOENT", "read passwd": "ENOENT", "read a file not given": "ENOENT", "leave by ..": "ENOENT",
		"read the host's cmdline": "ENOENT", "read the host's sysctls": "ENOENT", "read what it was given": "done",
		"write /": "EROFS", "write /usr": "EROFS", "write /dev": "EROFS", "write read-only": "EROFS", "create in read-only": "EROFS",
		"write writable": "done", "chmod read-only": "EROFS", "remount read-only": "EPERM", "mount": "EPERM", "unmount": "EPERM",
		"chroot": "EPERM", "make a device": "EPERM", "open a device": "EACCES",
		"setuid": "EPERM", "setgid": "EPERM", "setgroups": "EPERM", "chown": "EPERM", "hostname": "EPERM",
		"raise nofile": "EPERM", "raise nproc": "EPERM", "raise core": "EPERM", "open files without end": "EMFILE", "lock memory": "ENOMEM",
		"user namespace": "EPERM", "network namespace": "EPERM", "reach loopback": "ENETUNREACH", "reach an address": "ENETUNREACH",
		"reach a socket": "ECONNREFUSED", "raise the loopback": "EPERM", "raw socket": "EPERM", "trace its parent": "EPERM",
		"kill everybody": "ESRCH", "be given new privileges": "EINVAL", "leave by way of /proc": "ENOENT",
		"processes": "1 self thread-self", "devices": "null random urandom zero", "etc": "alternatives ld.so.cache",
		"env": "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "name": "m-0123456789abcdef", "interfaces": "",
		"setuid program's uid": fmt.Sprint(uid), "processes it can start": "less than 256",
		"credentials": fmt.Sprintf("Uid %d, Gid %d, Groups , NoNewPrivs 1, CapInh 0000000000000000, CapPrm 0000000000000000, CapEff 0000000000000000, "+
			"CapBnd 0000000000000000, CapAmb 0000000000000000", uid, uid),
	}
	got["credentials"] = order(got["credentials"], want["credentials"])
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what came of it (-want +got):\n%s", diff)
	}
	st, err := os.Stat(p.Writable + "/x")
	must(t, err)
	if own := st.Sys().(*syscall.Stat_t); int(own.Uid) != uid || int(own.Gid) != uid {
		t.Errorf("what it wrote is %d:%d's, want %d's", own.Uid, own.Gid, uid)
	}
}

// order gives got as want where they hold the same in another order, in which /proc has changed over time.
func order(got, want string) string {
	sorted := func(s string) string { l := strings.Split(s, ", "); return fmt.Sprint(len(l), sortedSet(l)) }
	if sorted(got) == sorted(want) {
		return want
	}
	return got
}

func sortedSet(l []string) map[string]bool {
	set := map[string]bool{}
	for _, s := range l {
		set[s] = true
	}
	return set
}

func TestDescriptorsAndMemory(t *testing.T) {
	l := newLauncher(t, jail.Config{})
	got, _ := run(t, l, vmm.Command{MemoryBytes: 512 << 20}, "for n in 0 1 2 3 4 5 6 7 8 9; do test -e /proc/$$/fd/$n && echo $n; done; ulimit -v; ulimit -c; ulimit -n")
	if want := "0\n1\n2\n3\n524288\n0\n1024"; got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// A link in a directory that becomes the machine's leads to what does not.
func TestWritableGivesAwayNothingElse(t *testing.T) {
	l := newLauncher(t, jail.Config{})
	dir := t.TempDir()
	outside, rw := filepath.Join(dir, "outside"), filepath.Join(dir, "rw")
	must(t, errors.Join(os.MkdirAll(rw+"/sub", 0o755), os.Mkdir(outside, 0o755), os.WriteFile(outside+"/file", nil, 0o600),
		os.Symlink(outside, rw+"/dir"), os.Symlink(outside+"/file", rw+"/sub/link")))
	_, p := run(t, l, vmm.Command{Writable: []string{rw}}, "true")
	for name, want := range map[string]int{rw: p.UID(), rw + "/sub": p.UID(), rw + "/sub/link": p.UID(), rw + "/dir": p.UID(), outside: 0, outside + "/file": 0} {
		st, err := os.Lstat(name)
		must(t, err)
		if got := int(st.Sys().(*syscall.Stat_t).Uid); got != want {
			t.Errorf("%s is %d's, want %d's", name, got, want)
		}
	}
}

func TestRefusesWithoutSelf(t *testing.T) {
	if l, err := jail.New(jail.Config{}); err == nil {
		t.Errorf("got %v", l)
	}
}
