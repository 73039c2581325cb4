package images_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/images"
)

func TestPublish(t *testing.T) {
	s := open(t)
	img := publish(t, s, "x", "1")
	b, err := os.ReadFile(filepath.Join(s.Dir(), "images", "x.json"))
	must(t, err)
	if sum := sha256.Sum256(b); img.Digest != hex.EncodeToString(sum[:]) {
		t.Errorf("digest %s is not the manifest's", img.Digest)
	}
	for _, file := range []string{img.Kernel, img.Initrd, img.Root} {
		b, err := os.ReadFile(file)
		must(t, err)
		if sum := sha256.Sum256(b); filepath.Base(file) != hex.EncodeToString(sum[:]) {
			t.Errorf("%s is not named by its content", file)
		}
		st, err := os.Stat(file)
		must(t, err)
		if st.Mode().Perm() != 0o444 {
			t.Errorf("%s has the mode %v", file, st.Mode())
		}
	}
	again := publish(t, s, "x", "1")
	if again.Digest != img.Digest {
		t.Error("the same image has another digest")
	}
	if other := publish(t, s, "x", "2"); other.Digest == img.Digest {
		t.Error("another image has the same digest")
	}
	publish(t, s, "a", "1")
	for name, store := range map[string]*images.Store{"this process": s, "another": reopen(t, s)} {
		got, err := store.OpenImage(t.Context(), "x")
		must(t, err)
		list, err := store.List()
		must(t, err)
		if len(list) != 2 || list[0].Name != "a" || list[1].Digest != got.Digest {
			t.Errorf("%s lists %+v", name, list)
		}
		if n := got.Size(); n < 4*512 || n > 1<<20 {
			t.Errorf("size %d", n)
		}
	}
	if left := files(t, s, "tmp"); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}

func reopen(t testing.TB, s *images.Store) *images.Store {
	t.Helper()
	s, err := images.Open(s.Dir())
	must(t, err)
	return s
}

func TestEnv(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		want []string
	}{
		{nil, []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
		{map[string]string{"PATH": "/opt/bin:/usr/bin", "A": "b"}, []string{"A=b", "PATH=/opt/bin:/usr/bin"}},
	} {
		img := images.Image{Manifest: images.Manifest{Recipe: images.Recipe{Env: c.env}}}
		if diff := cmp.Diff(c.want, img.Env()); diff != "" {
			t.Errorf("%v (-want +got):\n%s", c.env, diff)
		}
	}
}

// Whatever is flipped in whichever file is found by a process that has read it before, and by one that has not; and it is named.
func TestEveryFlippedFileIsNamed(t *testing.T) {
	s := open(t)
	img := publish(t, s, "x", "1")
	_, err := s.OpenImage(t.Context(), "x")
	must(t, err)
	parts := map[string]string{"kernel": img.Kernel, "initrd": img.Initrd, "root": img.Root, "scratch": img.Scratch}
	for name, file := range parts {
		st, err := os.Stat(file)
		must(t, err)
		for _, off := range []int64{0, st.Size() / 2, st.Size() - 1} {
			t.Run(fmt.Sprintf("%s at %d", name, off), func(t *testing.T) {
				defer flip(t, file, off)()
				_, here := s.OpenImage(t.Context(), "x")
				_, there := reopen(t, s).OpenImage(t.Context(), "x")
				for who, err := range map[string]error{"verify": s.Verify(t.Context(), "x"), "open": here, "open in another process": there} {
					corrupt, ok := errors.AsType[*images.CorruptError](err)
					if !ok || corrupt.File != file {
						t.Errorf("%s: %v, want %s", who, err, file)
					}
					for other, f := range parts {
						if f != file && strings.Contains(fmt.Sprint(err), f) {
							t.Errorf("%s blames %s too: %v", who, other, err)
						}
					}
				}
			})
		}
	}
	if err := s.Verify(t.Context(), "x"); err != nil {
		t.Errorf("mended: %v", err)
	}
	for _, file := range parts {
		flip(t, file, 0)
	}
	err = s.Verify(t.Context(), "x")
	for name, file := range parts {
		if err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s is not named among all: %v", name, err)
		}
	}
}

func TestLostAndCutFilesAreNamed(t *testing.T) {
	s := open(t)
	img := publish(t, s, "x", "1")
	for name, harm := range map[string]func() error{
		"cut":     func() error { return os.Truncate(img.Root, 3) },
		"grown":   func() error { return os.Truncate(img.Scratch, 1<<20) }, // with zeros, which the digest of a sparse file passes over
		"removed": func() error { return os.Remove(img.Initrd) },
	} {
		must(t, harm())
		file := map[string]string{"cut": img.Root, "grown": img.Scratch, "removed": img.Initrd}[name]
		if err := s.Verify(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v, want %s", name, err, file)
		}
		if _, err := s.OpenImage(t.Context(), "x"); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	publish(t, s, "x", "1") // which mends it
	if err := s.Verify(t.Context(), "x"); err != nil {
		t.Error(err)
	}
}

// strange puts what is no file in the place of one.
var strange = map[string]func(file string) error{
	"a directory": func(file string) error { return os.Mkdir(file, 0o755) },
	"a pipe":      func(file string) error { return syscall.Mkfifo(file, 0o644) }, // of which nobody opens the other end
	"a device":    func(file string) error { return os.Symlink("/dev/zero", file) },
	"a socket": func(file string) error {
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		dir, err := os.Open(filepath.Dir(file))
		if err != nil {
			return err
		}
		defer dir.Close()
		return syscall.Bind(fd, &syscall.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(file))})
	},
}

// What stands in a file's place and is none is told of as any corrupt file is; nobody waits for it, nor reads it without an end.
func TestWhatIsNoFileIsNamed(t *testing.T) {
	for what, put := range strange {
		t.Run(what, func(t *testing.T) {
			s := open(t)
			img := publish(t, s, "x", "1")
			for name, file := range map[string]string{"kernel": img.Kernel, "scratch": img.Scratch, "manifest": filepath.Join(s.Dir(), "images", "x.json")} {
				must(t, os.Rename(file, file+".away"))
				must(t, put(file))
				err := reopen(t, s).Verify(t.Context(), "x")
				if corrupt, ok := errors.AsType[*images.CorruptError](err); !ok || corrupt.File != file || !strings.Contains(err.Error(), what) {
					t.Errorf("%s: %v", name, err)
				}
				must(t, os.Remove(file))
				must(t, os.Rename(file+".away", file))
			}
			must(t, s.Verify(t.Context(), "x"))
		})
	}
}

func TestSparseDigestIsOfContent(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, size int64, at map[int64]string) images.Part {
		f, err := os.Create(filepath.Join(dir, name))
		must(t, err)
		defer f.Close()
		must(t, f.Truncate(size))
		for off, s := range at {
			_, err := f.WriteAt([]byte(s), off)
			must(t, err)
		}
		p, err := images.SparsePartOf(f.Name())
		must(t, err)
		return p
	}
	zeros := strings.Repeat("\x00", 64<<10)
	const size = 3<<20 + 5
	plain := file("holes", size, map[int64]string{1 << 20: "data", size - 2: "x"})
	for name, p := range map[string]images.Part{
		"written zeros":       file("zeros", size, map[int64]string{0: zeros, 1<<20 + 4096: zeros, 1 << 20: "data", size - 2: "x"}),
		"another data extent": file("extent", size, map[int64]string{1<<20 - 100: zeros[:100], 1 << 20: "data", size - 2: "x\x00"}),
	} {
		if p != plain {
			t.Errorf("%s: the digest differs", name)
		}
	}
	for name, p := range map[string]images.Part{
		"moved by a block": file("moved", size, map[int64]string{1<<20 + 4096: "data", size - 2: "x"}),
		"in a hole":        file("in", size, map[int64]string{2 << 20: "\x01", 1 << 20: "data", size - 2: "x"}),
		"at the end":       file("end", size, map[int64]string{1 << 20: "data", size - 2: "y"}),
		"longer":           file("longer", size+1, map[int64]string{1 << 20: "data", size - 2: "x"}),
	} {
		if p == plain {
			t.Errorf("%s: the digest is the same", name)
		}
	}
}

// What a manifest says is not believed further than it can be checked, and one that is broken hurts no other image.
func TestManifestTampering(t *testing.T) {
	for _, c := range []struct {
		name     string
		old, new string
		want     string
		notThere bool // ErrNoImage: it is as if it were not there
	}{
		{"cut", "\n}", "", "manifest of x: unexpected end of JSON", false},
		{"no JSON", "{", "<", "manifest of x: invalid character", false},
		{"of another version", `"format": 1`, `"format": 2`, "format 2 of another version", true},
		{"of another image", `"name": "x"`, `"name": "y"`, `it is that of "y"`, false},
		{"a path", `"sha256": "`, `"sha256": "../../`, "kernel: ", false},
		{"no digest", `"root": {`, `"root": {}, "was": {`, `root: "" is no sha256`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			publish(t, s, "x", "1")
			good := publish(t, s, "good", "1")
			file := filepath.Join(s.Dir(), "images", "x.json")
			b, err := os.ReadFile(file)
			must(t, err)
			bad := strings.Replace(string(b), c.old, c.new, 1)
			if bad == string(b) {
				t.Fatal("nothing was changed")
			}
			must(t, os.WriteFile(file, []byte(bad), 0o644))
			if _, err := s.OpenImage(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, images.ErrNoImage) != c.notThere {
				t.Errorf("open: %v, want %q", err, c.want)
			}
			list, err := s.List()
			if len(list) != 1 || list[0].Digest != good.Digest || (err == nil) != c.notThere {
				t.Errorf("list: %+v, %v", list, err)
			}
			must(t, s.Remove(t.Context(), "x"))
			if _, err := s.OpenImage(t.Context(), "good"); err != nil {
				t.Errorf("the other image after the removal: %v", err)
			}
			if got := len(files(t, s, "blobs")); got != 4 {
				t.Errorf("%d blobs, want those of the other image", got)
			}
		})
	}
	t.Run("another blob", func(t *testing.T) { // which is whole, so the digest tells
		s := open(t)
		img := publish(t, s, "x", "1")
		file := filepath.Join(s.Dir(), "images", "x.json")
		b, err := os.ReadFile(file)
		must(t, err)
		must(t, os.WriteFile(file, []byte(strings.ReplaceAll(string(b), img.Manifest.Initrd.SHA256, img.Manifest.Root.SHA256)), 0o644))
		if got, err := s.OpenImage(t.Context(), "x"); err == nil && got.Digest == img.Digest {
			t.Error("it is the image that it was")
		}
	})
}

// A reader sees the one or the other, whole, whenever it looks.
func TestPublishIsAtomic(t *testing.T) {
	s := open(t)
	a, b := publish(t, s, "x", "1"), publish(t, s, "x", "2")
	var all sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		all.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if got, err := s.Get("x"); err != nil || got.Digest != a.Digest && got.Digest != b.Digest {
					t.Errorf("got %s, %v", got.Digest, err)
					return
				}
			}
		})
	}
	for i := range 20 {
		_, err := s.Publish([]images.Manifest{a.Manifest, b.Manifest}[i%2])
		must(t, err)
	}
	close(done)
	all.Wait()
}

func TestNames(t *testing.T) {
	s := open(t)
	for _, name := range []string{"", "none", "../images/x", "X", "a/b", strings.Repeat("x", 64)} {
		for what, err := range map[string]error{
			"get": second(s.Get(name)), "open": second(s.OpenImage(t.Context(), name)), "verify": s.Verify(t.Context(), name), "remove": s.Remove(t.Context(), name),
		} {
			if !errors.Is(err, images.ErrNoImage) {
				t.Errorf("%s %q: %v", what, name, err)
			}
		}
	}
}

func second[T any](_ T, err error) error { return err }

// small mounts a file system of 256 KiB.
func small(t *testing.T) (dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("needs root")
		}
		t.Skip("SKIPPED: needs root to mount a small file system: a full disk is not tried")
	}
	dir = t.TempDir()
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestFullDisk(t *testing.T) {
	s, err := images.Open(small(t))
	must(t, err)
	old := publish(t, s, "x", "1")
	m, err := manifest(s, "x", "2")
	must(t, err)
	filler, err := os.Create(filepath.Join(s.Dir(), "filler"))
	must(t, err)
	defer filler.Close()
	for chunk := make([]byte, 4096); err == nil; {
		_, err = filler.Write(chunk)
	}
	m.Recipe.Description = strings.Repeat("long ", 2000)
	for what, err := range map[string]error{
		"publish": second(s.Publish(m)), "adopt": second(adopt(s, strings.Repeat("x", 10_000), (*images.Store).Adopt)), "stage": s.PutStage("key", strings.Repeat("x", 10_000)),
	} {
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got, err := s.OpenImage(t.Context(), "x"); err != nil || got.Digest != old.Digest {
		t.Errorf("what was there is not any more: %v", err)
	}
	if left := append(files(t, s, "tmp"), files(t, s, "stages")...); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	must(t, os.Remove(filler.Name()))
	filler.Close()
	if _, err := s.Publish(m); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

func TestReadOnlyDisk(t *testing.T) {
	dir := small(t)
	s, err := images.Open(dir)
	must(t, err)
	img := publish(t, s, "x", "1")
	must(t, syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
	if got, err := reopen(t, s).OpenImage(context.Background(), "x"); err != nil || got.Digest != img.Digest {
		t.Errorf("open: %v", err)
	}
	for what, err := range map[string]error{
		"publish": second(s.Publish(img.Manifest)), "adopt": second(adopt(s, "x", (*images.Store).Adopt)), "stage": s.PutStage("k", 1), "remove": s.Remove(t.Context(), "x"),
	} {
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
