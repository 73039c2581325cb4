package hostfile_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm/hostfile"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// image is a sparse file with data at its beginning, in its middle and at its end, or none.
func image(t *testing.T, size int64, at ...int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(size))
	for _, off := range at {
		_, err := f.WriteAt(bytes.Repeat([]byte("data"), 1024), off)
		must(t, err)
	}
	return path
}

// A program is another when a package has put one in its place, and when there is none.
func TestReplaced(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "program"), filepath.Join(dir, "other")
	for _, f := range []string{path, other} {
		if err := os.WriteFile(f, []byte("same"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	was, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if hostfile.Replaced(path, was) {
		t.Error("nothing has happened to it")
	}
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	if !hostfile.Replaced(path, was) {
		t.Error("another was put in its place")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if !hostfile.Replaced(path, was) {
		t.Error("it was removed")
	}
}

func TestScratch(t *testing.T) {
	const size = 64 << 20
	for name, path := range map[string]string{
		"sparse": image(t, size, 0, 10<<20, size-4096), "empty": image(t, 0), "a hole": image(t, size),
	} {
		dir := t.TempDir()
		f, err := hostfile.Scratch(path, dir)
		must(t, err)
		defer f.Close()
		want, err := os.ReadFile(path)
		must(t, err)
		got, err := io.ReadAll(io.NewSectionReader(f, 0, size+1))
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the copy is another", name)
		}
		var st syscall.Stat_t
		must(t, syscall.Fstat(int(f.Fd()), &st))
		if st.Blocks*512 > 1<<20 {
			t.Errorf("%s: the copy takes %d KiB of the disk", name, st.Blocks/2)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: %d names in the directory, %v", name, len(left), err)
		}
	}
	if _, err := hostfile.Scratch(filepath.Join(t.TempDir(), "none"), t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of no image: %v", err)
	}
}

func TestWriteOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write := func(f *os.File) error { _, err := f.WriteString("x"); return err }
	must(t, hostfile.WriteOnce(path, write))
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode().Perm() != 0o444 || info.Size() != 1 {
		t.Errorf("%v, %d bytes", info.Mode(), info.Size())
	}
	if err := hostfile.WriteOnce(path, write); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second time: %v", err)
	}
	strike := errors.New("disk full")
	if err := hostfile.WriteOnce(path+"2", func(*os.File) error { return strike }); !errors.Is(err, strike) {
		t.Errorf("got %v", err)
	}
	must(t, hostfile.RemoveIfExists(path))
	must(t, hostfile.RemoveIfExists(path))
	must(t, hostfile.SyncDir(filepath.Dir(path)))
}

func TestCopyGivenUp(t *testing.T) {
	src, err := os.Open(image(t, 64<<20, 0, 40<<20))
	must(t, err)
	defer src.Close()
	fd, err := unix.MemfdCreate("copy", 0) // no file system shares blocks with it
	must(t, err)
	dst := os.NewFile(uintptr(fd), "copy")
	defer dst.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	if err := hostfile.CopySparseUntil(ctx, dst, src); !errors.Is(err, enough) {
		t.Errorf("err = %v", err)
	}
	must(t, hostfile.CopySparseUntil(t.Context(), dst, src))
	want, err := os.ReadFile(src.Name())
	must(t, err)
	got, err := io.ReadAll(io.NewSectionReader(dst, 0, 65<<20))
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Error("the copy is another")
	}
}
