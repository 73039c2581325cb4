package jail_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/paddockvm/paddock/test/leak"
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
		case "filtered":
			filtered()
			os.Exit(0)
		case "unprivileged":
			unprivileged(os.Args[2])
			os.Exit(0)
		case "launcher":
			launcher(os.Args[2])
			os.Exit(0)
		}
	}
	leak.VerifyTestMain(m)
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

func TestDescriptorsAndMemory(t *testing.T) {
	l := newLauncher(t, jail.Config{})
	got, _ := run(t, l, vmm.Command{AddressSpaceBytes: 512 << 20}, "for n in 0 1 2 3 4 5 6 7 8 9; do test -e /proc/$$/fd/$n && echo $n; done; ulimit -v; ulimit -c; ulimit -n")
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
