package build_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/images/build"
	"github.com/paddockvm/paddock/test/leak"
)

// This program is the tests, and other processes that build.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "build" {
		s, err := images.Open(os.Args[2])
		if err == nil {
			_, err = build.Image(context.Background(), s, recipe(), build.Options{Agent: os.Args[3]})
		}
		fmt.Println(err)
		return
	}
	leak.VerifyTestMain(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// recipe has a file that a link of the root would lead out of it, and one that no shell could quote.
func recipe() images.Recipe {
	return images.Recipe{
		Name: "x", Base: images.Base{Distribution: "debian", Suite: "bookworm"},
		Files: []images.File{
			{Path: "/link/file", Content: "inside"}, {Path: "/opt/new dir/it's", Mode: "0750", Content: "a\x00b\n'$HOME'\\n"},
		},
		Run:       []string{`echo "it's $PWD" > /opt/ran`, "cat /opt/ran >> /opt/ran2"},
		Resources: images.Resources{VCPUs: 1, MemoryMiB: 128, ScratchMiB: 32},
	}
}

// bench is a store, an agent, and tools of which some are fakes.
type bench struct {
	store *images.Store
	agent string
	fakes string // where the fakes are and what they leave
	// outside is a directory of the host to which links of the root lead; not below /tmp, which a build empties.
	outside string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("needs root")
		}
		t.Skip("SKIPPED: needs root: nothing is built here (sudo -E go test ./images/build)")
	}
	for _, tool := range []string{"mkfs.erofs", "fsck.erofs", "mkfs.ext4", "dpkg-deb", "xz"} {
		_, err := exec.LookPath(tool)
		if _, sbin := os.Stat("/usr/sbin/" + tool); err != nil && sbin != nil {
			if os.Getenv("REQUIRE_ROOT") != "" {
				t.Fatal(err)
			}
			t.Skipf("SKIPPED: %v: nothing is built here (deploy/install-deps.sh test)", err)
		}
	}
	s, err := images.Open(t.TempDir())
	must(t, err)
	b := &bench{store: s, agent: filepath.Join(t.TempDir(), "agent"), fakes: t.TempDir()}
	must(t, os.WriteFile(b.agent, []byte("agent 1"), 0o755))
	b.outside, err = os.MkdirTemp("/var/tmp", "outside-") //nolint:usetesting // t.TempDir is below /tmp
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(b.outside) })
	for _, name := range []string{"mmdebstrap", "depmod"} {
		script, err := os.ReadFile("testdata/" + name)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(b.fakes, name), script, 0o755))
	}
	t.Setenv("FAKE", b.fakes)
	t.Setenv("OUTSIDE", b.outside)
	t.Setenv("PATH", b.fakes+":"+os.Getenv("PATH"))
	return b
}

func (b *bench) build(ctx context.Context) (images.Image, error) {
	return build.Image(ctx, b.store, recipe(), build.Options{Agent: b.agent})
}

// calls counts the runs of mmdebstrap, which make a root.
func (b *bench) calls() int {
	log, _ := os.ReadFile(filepath.Join(b.fakes, "calls"))
	return bytes.Count(log, []byte("\n"))
}

// empty checks that nothing looks whole, and that nothing is left of work in progress.
func (b *bench) empty(t *testing.T) {
	t.Helper()
	if list, err := b.store.List(); err != nil || len(list) > 0 {
		t.Errorf("there is an image: %+v, %v", list, err)
	}
	left, err := filepath.Glob(filepath.Join(b.store.Dir(), "tmp", "*"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestImage(t *testing.T) {
	b := newBench(t)
	var stages []string
	img, err := build.Image(t.Context(), b.store, recipe(), build.Options{Agent: b.agent, Progress: func(s, _ string) { stages = append(stages, s) }})
	must(t, err)
	if diff := cmp.Diff([]string{"packages", "kernel", "root disk", "publish"}, stages); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
	must(t, b.store.Verify(t.Context(), "x"))
	root := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "fsck.erofs", "--extract="+root, img.Root).CombinedOutput(); err != nil {
		t.Fatalf("fsck.erofs: %v: %s", err, out)
	}
	for name, want := range map[string]string{
		b.outside + "/file": "inside", "/opt/new dir/it's": "a\x00b\n'$HOME'\\n", "/opt/ran": "it's /\n", "/opt/ran2": "it's /\n",
		"/etc/machine-id": "", "/etc/hostname": "paddock\n", "/etc/resolv.conf": "", "/etc/hosts": "127.0.0.1 localhost\n",
		"/etc/passwd": "root:x:0:0::/root:/bin/sh\nsandbox:x:1000:1000::/work:/bin/sh\n",
	} {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v; want %q", name, got, err, want)
		}
	}
	for name, want := range map[string]os.FileMode{"/opt/new dir/it's": 0o750, b.outside + "/file": 0o644, "/work": 0o755 | os.ModeDir} {
		if st, err := os.Stat(filepath.Join(root, name)); err != nil || st.Mode() != want {
			t.Errorf("%s has the mode %v, %v; want %v", name, st, err, want)
		}
	}
	st, err := os.Stat(root + "/work")
	must(t, err)
	if own := st.Sys().(*syscall.Stat_t); own.Uid != 1000 || own.Gid != 1000 {
		t.Errorf("/work is %d:%d's", own.Uid, own.Gid)
	}
	for _, dir := range []string{"/tmp", "/run", "/var/log", "/var/cache"} {
		if left, err := os.ReadDir(root + dir); err != nil || len(left) > 0 {
			t.Errorf("%s: %v, %v", dir, left, err)
		}
	}
	outside, err := filepath.Glob(b.outside + "/*")
	must(t, err)
	if diff := cmp.Diff([]string{b.outside + "/resolv.conf"}, outside); diff != "" {
		t.Errorf("on the host (-want +got):\n%s", diff)
	}
	if got, err := os.ReadFile(b.outside + "/resolv.conf"); err != nil || string(got) != "host\n" {
		t.Errorf("the host's file holds %q, %v", got, err)
	}
	if got, err := os.ReadFile(img.Kernel); err != nil || string(got) != "kernel\n" {
		t.Errorf("kernel: %q, %v", got, err)
	}
	if out, err := exec.CommandContext(t.Context(), "/usr/sbin/e2fsck", "-fn", img.Scratch).CombinedOutput(); err != nil {
		t.Errorf("scratch: %v: %s", err, out)
	}
}

// What has not changed is not built again, and what has costs no more than it must.
func TestStages(t *testing.T) {
	b := newBench(t)
	first, err := b.build(t.Context())
	must(t, err)
	for _, tool := range []string{"mmdebstrap", "depmod", "mkfs.erofs", "mkfs.ext4", "dpkg-deb"} { // none is needed any more
		must(t, os.WriteFile(filepath.Join(b.fakes, tool), []byte("#!/bin/sh\nexit 9\n"), 0o755))
	}
	again, err := b.build(t.Context())
	if err != nil || again.Digest != first.Digest {
		t.Errorf("the same again: %v, %v", again.Digest, err)
	}
	must(t, os.WriteFile(b.agent, []byte("agent 2"), 0o755))
	other, err := b.build(t.Context())
	if err != nil || other.Digest == first.Digest || other.Root != first.Root || other.Initrd == first.Initrd {
		t.Errorf("with another agent: %+v, %v", other.Manifest, err)
	}
	r := recipe()
	r.Warm, r.Env, r.Description, r.Resources.MemoryMiB = []images.Warm{{Shell: "true"}}, map[string]string{"A": "b"}, "x", 256
	warmer, err := build.Image(t.Context(), b.store, r, build.Options{Agent: b.agent})
	if err != nil || warmer.Digest == other.Digest || warmer.Root != other.Root {
		t.Errorf("with what does not change the root: %v", err)
	}
	r.Run = append(r.Run, "true")
	if _, err := build.Image(t.Context(), b.store, r, build.Options{Agent: b.agent}); err == nil {
		t.Error("another run line needs no new root")
	}
	if got, err := b.store.OpenImage(t.Context(), "x"); err != nil || got.Digest != warmer.Digest {
		t.Errorf("after a build that failed: %v", err)
	}
}

func TestSameInputsSameImage(t *testing.T) {
	b := newBench(t)
	first, err := b.build(t.Context())
	must(t, err)
	b.store, err = images.Open(t.TempDir())
	must(t, err)
	second, err := b.build(t.Context())
	must(t, err)
	if diff := cmp.Diff(first.Manifest, second.Manifest); diff != "" {
		t.Errorf("two builds differ (-first +second):\n%s", diff)
	}
}

// A corrupt file of an image is made again by its next build.
func TestBuildMends(t *testing.T) {
	b := newBench(t)
	img, err := b.build(t.Context())
	must(t, err)
	for name, file := range map[string]string{"root": img.Root, "kernel": img.Kernel, "initrd": img.Initrd, "scratch": img.Scratch} {
		content, err := os.ReadFile(file)
		must(t, err)
		content[len(content)/2] ^= 1
		must(t, errors.Join(os.Chmod(file, 0o644), os.WriteFile(file, content, 0o644)))
		if err := b.store.Verify(t.Context(), "x"); err == nil {
			t.Errorf("%s: the harm is not seen", name)
		}
		if _, err := b.build(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := b.store.Verify(t.Context(), "x"); err != nil {
			t.Errorf("%s is not mended: %v", name, err)
		}
	}
}

func TestFailingTools(t *testing.T) {
	for tool, c := range map[string]struct {
		calls int // of mmdebstrap, for the build that fails and the one after it
	}{
		"mmdebstrap": {1}, "dpkg-deb": {2}, "depmod": {2}, "xz": {2}, "mkfs.erofs": {2}, "mkfs.ext4": {1}, // the root is kept
	} {
		t.Run(tool, func(t *testing.T) {
			b := newBench(t)
			fake, script := filepath.Join(b.fakes, tool), "#!/bin/sh\necho the last words >&2\nexit 9\n"
			switch tool { // which the fake mmdebstrap uses too
			case "dpkg-deb":
				script = "#!/bin/sh\ncase $1 in -x) echo the last words >&2; exit 9;; *) exec /usr/bin/dpkg-deb \"$@\";; esac\n"
			case "xz":
				script = "#!/bin/sh\ncase $1 in -dc) exit 9;; *) exec /usr/bin/xz \"$@\";; esac\n"
			}
			whole, _ := os.ReadFile(fake)
			must(t, os.WriteFile(fake, []byte(script), 0o755))
			_, err := b.build(t.Context())
			if err == nil || !strings.HasPrefix(err.Error(), "build x: ") || !strings.Contains(err.Error(), map[bool]string{true: "erofs.ko.xz", false: tool + ": exit status 9: the last words"}[tool == "xz"]) {
				t.Errorf("err = %v", err)
			}
			b.empty(t)
			must(t, os.Remove(fake))
			if whole != nil {
				must(t, os.WriteFile(fake, whole, 0o755))
			}
			if _, err := b.build(t.Context()); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			if got := b.calls(); got != c.calls {
				t.Errorf("%d roots were made, want %d", got, c.calls)
			}
		})
	}
	t.Run("no mirror", func(t *testing.T) {
		b := newBench(t)
		t.Setenv("FAKE_MODE", "fail")
		if _, err := b.build(t.Context()); err == nil || !strings.Contains(err.Error(), "is there a network?") {
			t.Errorf("err = %v", err)
		}
		b.empty(t)
	})
	t.Run("a run line", func(t *testing.T) {
		b := newBench(t)
		r := recipe()
		r.Run = []string{"true", "no-such-program --now", "true"}
		if _, err := build.Image(t.Context(), b.store, r, build.Options{Agent: b.agent}); err == nil || !strings.Contains(err.Error(), "no-such-program: not found") {
			t.Errorf("err = %v", err)
		}
		b.empty(t)
	})
	t.Run("no agent", func(t *testing.T) {
		b := newBench(t)
		if _, err := build.Image(t.Context(), b.store, recipe(), build.Options{Agent: "/no/such"}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("not installed", func(t *testing.T) {
		b := newBench(t)
		must(t, os.Remove(b.fakes+"/mmdebstrap"))
		t.Setenv("PATH", b.fakes)
		_, err := b.build(t.Context())
		if err == nil || !strings.Contains(err.Error(), "not installed: mmdebstrap (Debian package mmdebstrap), dpkg-deb (Debian package dpkg), xz (Debian package xz-utils)") {
			t.Errorf("err = %v", err)
		}
	})
}

// hanging starts a build whose mmdebstrap hangs, and gives the end of a pipe that all of its processes hold.
func (b *bench) hanging(t *testing.T, start func()) *os.File {
	t.Helper()
	t.Setenv("FAKE_MODE", "hang")
	name := filepath.Join(b.fakes, "alive")
	must(t, syscall.Mkfifo(name, 0o600))
	alive, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() { alive.Close() })
	must(t, alive.SetDeadline(time.Now().Add(time.Minute)))
	start()
	_, err = alive.Read(make([]byte, len("hangs\n")))
	must(t, err)
	read, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	must(t, err)
	t.Cleanup(func() { read.Close() })
	must(t, errors.Join(alive.Close(), read.SetDeadline(time.Now().Add(time.Minute))))
	return read
}

func ended(t *testing.T, alive *os.File) {
	t.Helper()
	if n, err := alive.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("something that the build has started lives: %d, %v", n, err)
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(b, []byte("/root/dev")) {
		t.Errorf("something that the build has mounted stays: %v\n%s", err, b)
	}
}

func TestCancelledBuildLeavesNothing(t *testing.T) {
	b := newBench(t)
	why := errors.New("the caller has gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	alive := b.hanging(t, func() {
		go func() {
			_, err := b.build(ctx)
			done <- err
		}()
	})
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("err = %v", err)
	}
	ended(t, alive)
	b.empty(t)
	t.Setenv("FAKE_MODE", "")
	if _, err := b.build(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestKilledBuildLeavesNothing(t *testing.T) {
	b := newBench(t)
	self, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(t.Context(), self, "build", b.store.Dir(), b.agent)
	alive := b.hanging(t, func() { must(t, cmd.Start()) })
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	ended(t, alive)
	t.Setenv("FAKE_MODE", "fail") // this one too shows nothing
	if _, err := b.build(t.Context()); err == nil {
		t.Error("built")
	}
	b.empty(t)
	t.Setenv("FAKE_MODE", "")
	if _, err := b.build(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestConcurrentBuildsBuildOnce(t *testing.T) {
	b := newBench(t)
	self, err := os.Executable()
	must(t, err)
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if _, err := b.build(t.Context()); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			if out, err := exec.CommandContext(t.Context(), self, "build", b.store.Dir(), b.agent).CombinedOutput(); err != nil || string(out) != "<nil>\n" {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	all.Wait()
	if got := b.calls(); got != 1 {
		t.Errorf("%d roots were made", got)
	}
	must(t, b.store.Verify(t.Context(), "x"))
}
