package guestagent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
)

func put(t *testing.T, c *client.Client, name, content string) error {
	t.Helper()
	return c.Put(t.Context(), wire.Put{Path: name, Mode: 0o640, Size: int64(len(content)), User: "sandbox"}, strings.NewReader(content))
}

// must is for what a test needs and does not test.
func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// traps lays what a program may lay in the way of files that go in and out, around a secret that lies outside. It gives the secret's place.
func traps(t *testing.T, dir string) (outside string) {
	t.Helper()
	outside = t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t,
		os.Mkdir(filepath.Join(outside, "sub"), 0o755),
		os.WriteFile(filepath.Join(outside, "sub/secret"), []byte("secret"), 0o600),
		os.Symlink(filepath.Join(outside, "sub/secret"), at("link")),
		os.Symlink(filepath.Join(outside, "new"), at("dangling")),
		os.Symlink(outside, at("linkdir")),
		os.Symlink("real", at("inner")),
		os.Symlink("loop", at("loop")),
		os.Symlink(".", at("self")),
		os.Mkdir(at("real"), 0o755),
		os.WriteFile(at("real/file"), []byte("content of real/file"), 0o644),
		os.Link(filepath.Join(outside, "sub/secret"), at("hard")),
		syscall.Mkfifo(at("fifo"), 0o666),
		syscall.Mknod(at("socket"), syscall.S_IFSOCK|0o666, 0),
	)
	return outside
}

func TestPutIsSafe(t *testing.T) {
	c, dir := inDir(t)
	outside := traps(t, dir)
	for _, tt := range []struct{ name, path, kind string }{
		{"new", "new", ""},
		{"in new directories", "a/b/c", ""},
		{"again", "a/b/c", ""},
		{"not clean", "./real//x/../file", ""},
		{"absolute", filepath.Join(dir, "absolute"), ""},
		{"a hard link", "hard", ""},

		{"a link", "link", wire.ErrPath},
		{"a link to nothing", "dangling", wire.ErrPath},
		{"a link on the way", "linkdir/new", wire.ErrPath},
		{"a link on the way to new directories", "linkdir/x/y", wire.ErrPath},
		{"a link far up", "linkdir/sub/new", wire.ErrPath},
		{"a link within", "inner/file", wire.ErrPath},
		{"a link within, far up", "self/real/new", wire.ErrPath},
		{"a link to itself", "loop/file", wire.ErrPath},
		{"a process's own links", "/proc/self/cwd/new", wire.ErrPath},
		{"a process's own files", "/proc/self/comm", wire.ErrPath},
		{"the kernel's settings", "/proc/sys/kernel/hostname", wire.ErrPath},
		{"a device", "/dev/null", wire.ErrPath},
		{"a pipe", "fifo", wire.ErrPath},
		{"a socket", "socket", wire.ErrPath},
		{"a directory", "real", wire.ErrPath},
		{"below a file", "real/file/x", wire.ErrPath},
		{"above", "../new", wire.ErrPath},
		{"above, by a way round", "real/../../new", wire.ErrPath},
		{"the working directory", ".", wire.ErrPath},
		{"the root", "/", wire.ErrPath},
		{"nothing", "", wire.ErrPath},
		{"a zero", "a\x00b", wire.ErrPath},
		{"too long", strings.Repeat("x", 300), wire.ErrPath},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := put(t, c, tt.path, "put")
			if kind(err) != tt.kind || (err == nil) != (tt.kind == "") {
				t.Fatalf("error %v", err)
			}
			if tt.kind != "" {
				return
			}
			name := tt.path
			if !filepath.IsAbs(name) {
				name = filepath.Join(dir, name)
			}
			if b, err := os.ReadFile(name); string(b) != "put" {
				t.Errorf("holds %q, %v", b, err)
			}
		})
	}
	if b, _ := os.ReadFile(filepath.Join(outside, "sub/secret")); string(b) != "secret" {
		t.Errorf("the file outside holds %q", b)
	}
	for _, d := range []string{outside, filepath.Join(outside, "sub")} {
		if entries, _ := os.ReadDir(d); len(entries) != 1 {
			t.Errorf("outside lies %v", entries)
		}
	}
	_ = filepath.WalkDir(dir, func(name string, _ os.DirEntry, _ error) error {
		if strings.HasPrefix(filepath.Base(name), ".paddock") {
			t.Errorf("%s is left", name)
		}
		return nil
	})
}

// TestPutWhole shows that a file is put whole or not at all, with its mode less what would give rights.
func TestPutWhole(t *testing.T) {
	dir := t.TempDir()
	conn, _ := listening(t, dir)
	c, err := wire.Host(t.Context(), conn)
	must(t, err)
	var reading sync.WaitGroup
	reading.Go(func() { _ = c.Run() })
	defer func() {
		c.Close()
		_ = conn.Close()
		reading.Wait()
	}()
	name := filepath.Join(dir, "f")
	must(t, os.WriteFile(name, []byte("before"), 0o600))
	for _, tt := range []struct {
		size       int64
		data, kind string
		holds      string
	}{
		{5, "four", wire.ErrRequest, "before"},
		{3, "four", wire.ErrRequest, "before"},
		{0, "four", wire.ErrRequest, "before"},
		{-1, "", wire.ErrRequest, "before"},
		{1 << 62, "four", wire.ErrRequest, "before"},
		{4, "four", "", "four"},
		{0, "", "", ""},
	} {
		s, err := c.Open(wire.Request{Op: wire.OpPut, Put: &wire.Put{Path: "f", Mode: 0o4755, Size: tt.size}})
		must(t, err, s.Send(t.Context(), wire.ChanData, []byte(tt.data)), s.End())
		_, _, reply, err := s.Recv(t.Context())
		if reply == nil {
			t.Fatalf("%d bytes of %d: %v", len(tt.data), tt.size, err)
		}
		got := ""
		if reply.Error != nil {
			got = reply.Error.Kind
		}
		if b, _ := os.ReadFile(name); got != tt.kind || string(b) != tt.holds {
			t.Errorf("%d bytes of %d: %v, and the file holds %q", len(tt.data), tt.size, reply.Error, b)
		}
		s.Close()
	}
	if st, err := os.Stat(name); err != nil || st.Mode() != 0o755 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

// get gives what came, by path.
func get(t *testing.T, c *client.Client, g wire.Get) (map[string]string, error) {
	t.Helper()
	got := map[string]string{}
	err := c.Get(t.Context(), g, func(h wire.FileHeader, r io.Reader) error {
		b, err := io.ReadAll(r)
		got[h.Path] = string(b)
		return err
	})
	return got, err
}

func TestGetIsSafe(t *testing.T) {
	c, dir := inDir(t)
	traps(t, dir)
	must(t, os.Mkdir(filepath.Join(dir, "bad"), 0o755), os.WriteFile(filepath.Join(dir, "bad/\xff"), nil, 0o644),
		os.Mkdir(filepath.Join(dir, "big"), 0o755), os.WriteFile(filepath.Join(dir, "big/a"), make([]byte, 600), 0o644),
		os.WriteFile(filepath.Join(dir, "big/b"), make([]byte, 401), 0o644), os.WriteFile(filepath.Join(dir, "big/sparse"), nil, 0o644),
		os.Truncate(filepath.Join(dir, "big/sparse"), 1<<40))
	for _, tt := range []struct{ name, pattern, files, kind string }{
		{"a file", "real/file", "real/file", ""},
		{"absolute", filepath.Join(dir, "real/*"), filepath.Join(dir, "real/file"), ""},
		{"all of them", "*", "hard", ""},
		{"below, and not through links", "**/file", "real/file", ""},
		{"below twice", "**/**/file", "real/file", ""},
		{"what is not there", "none", "", ""},
		{"below what is not there", "none/**", "", ""},

		{"a link", "link", "", wire.ErrPath},
		{"a link to nothing", "dangling", "", wire.ErrPath},
		{"a link to itself", "loop", "", wire.ErrPath},
		{"a pipe", "fifo", "", wire.ErrPath},
		{"a socket", "socket", "", wire.ErrPath},
		{"a directory", "real", "", wire.ErrPath},
		{"a device", "/dev/zero", "", wire.ErrPath},
		{"through a link", "linkdir/sub/secret", "", ""},
		{"through a link with a pattern", "linkdir/sub/*", "", ""},
		{"through a link within", "inner/file", "", ""},
		{"a process's own links", "/proc/self/cwd/*", "", ""},
		{"a process's state", fmt.Sprintf("/proc/%d/status", os.Getpid()), fmt.Sprintf("/proc/%d/status", os.Getpid()), ""}, // of no bytes, it says
		{"above", "../*", "", wire.ErrPath},
		{"above, by a way round", "real/../../*", "", wire.ErrPath},
		{"nothing", "", "", wire.ErrPath},
		{"the root", "/", "", wire.ErrPath},
		{"no pattern", "[", "", wire.ErrPath},
		{"no pattern, below", "none/[", "", wire.ErrPath},
		{"a name that is no text", "bad/*", "", wire.ErrPath},
		{"larger than asked for", "big/sparse", "", wire.ErrTooLarge},
		{"larger together", "big/[ab]", "big/a", wire.ErrTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := get(t, c, wire.Get{Pattern: tt.pattern, MaxBytes: 1000, MaxFiles: 3})
			var names []string
			for name := range got {
				names = append(names, name)
			}
			if kind(err) != tt.kind || (err == nil) != (tt.kind == "") || strings.Join(names, " ") != tt.files {
				t.Errorf("%q, %v", names, err)
			}
		})
	}
}

func TestGetLimits(t *testing.T) {
	c, dir := inDir(t)
	for i := range 20 {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), make([]byte, 50), 0o644))
	}
	for _, tt := range []struct {
		bytes int64
		files int
		want  int
		kind  string
	}{{1000, 20, 20, ""}, {999, 20, 19, wire.ErrTooLarge}, {1000, 19, 0, wire.ErrTooLarge}, {0, 20, 0, wire.ErrTooLarge}, {1000, 0, 0, wire.ErrTooLarge}} {
		if got, err := get(t, c, wire.Get{Pattern: "*", MaxBytes: tt.bytes, MaxFiles: tt.files}); len(got) != tt.want || kind(err) != tt.kind {
			t.Errorf("%+v: %d files, %v", tt, len(got), err)
		}
	}
	sparse := filepath.Join(dir, "sparse")
	must(t, os.WriteFile(sparse, nil, 0o644), os.Truncate(sparse, 3<<20))
	if got, err := get(t, c, wire.Get{Pattern: "sparse", MaxBytes: 3 << 20, MaxFiles: 1}); err != nil || got["sparse"] != string(make([]byte, 3<<20)) {
		t.Errorf("%d bytes of a sparse file, %v", len(got["sparse"]), err)
	}
	deep := dir
	for range 100 {
		deep = filepath.Join(deep, "d")
	}
	must(t, os.MkdirAll(deep, 0o755))
	if _, err := get(t, c, wire.Get{Pattern: strings.Repeat("**/x/", 200) + "**", MaxBytes: 1, MaxFiles: 1}); err != nil {
		t.Error(err)
	}
	if _, err := get(t, c, wire.Get{Pattern: strings.Repeat("**/d/", 10) + "**", MaxBytes: 1, MaxFiles: 1}); kind(err) != wire.ErrTooLarge {
		t.Errorf("a pattern that looks without end: %v", err)
	}
}

// TestManyFiles carries more files than fit a window, to a host that is slower than the guest.
func TestManyFiles(t *testing.T) {
	c, dir := inDir(t)
	const files = 1500
	for i := range files {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%04d", i)), make([]byte, i%500), 0o644))
	}
	n := 0
	err := c.Get(t.Context(), wire.Get{Pattern: "*", MaxBytes: 1 << 30, MaxFiles: files}, func(h wire.FileHeader, r io.Reader) error {
		b, err := io.ReadAll(r)
		if h.Path != fmt.Sprintf("%04d", n) || len(b) != n%500 {
			t.Errorf("file %d is %s with %d bytes", n, h.Path, len(b))
		}
		n++
		return err
	})
	if err != nil || n != files {
		t.Errorf("%d files, %v", n, err)
	}
}

// TestSwappedPaths changes what a path leads to while files go in and out under it: the secret never comes out and is never written to,
// and nothing waits for a pipe.
func TestSwappedPaths(t *testing.T) {
	c, dir := inDir(t)
	outside := traps(t, dir)
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(at("d/sub"), 0o755), os.WriteFile(at("d/sub/secret"), []byte("mine"), 0o644), os.Remove(at("hard")))
	ctx, stop := context.WithCancel(t.Context())
	var swapping sync.WaitGroup
	swapping.Go(func() {
		for ctx.Err() == nil {
			_ = os.Rename(at("d"), at("d0"))
			_ = os.Symlink(outside, at("d"))
			_ = os.Remove(at("d"))
			_ = syscall.Mkfifo(at("d"), 0o666)
			_ = os.Remove(at("d"))
			_ = os.Rename(at("d0"), at("d"))
			_ = os.Rename(at("d/sub/secret"), at("d/sub/s0"))
			_ = os.Symlink(filepath.Join(outside, "sub/secret"), at("d/sub/secret"))
			_ = os.Rename(at("d/sub/s0"), at("d/sub/secret"))
		}
	})
	for i := range 200 {
		for _, pattern := range []string{"d/sub/secret", "d/sub/*", "d/**"} {
			got, err := get(t, c, wire.Get{Pattern: pattern, MaxBytes: 1 << 20, MaxFiles: 100})
			for name, content := range got {
				if content == "secret" {
					t.Fatalf("%s holds the secret", name)
				}
			}
			if errors.Is(err, client.ErrLost) {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"d/sub/secret", fmt.Sprintf("d/sub/x%d/y", i%3)} {
			if err := put(t, c, name, "put"); errors.Is(err, client.ErrLost) {
				t.Fatal(err)
			}
		}
	}
	stop()
	swapping.Wait()
	if b, _ := os.ReadFile(filepath.Join(outside, "sub/secret")); string(b) != "secret" {
		t.Errorf("the file outside holds %q", b)
	}
	for _, d := range []string{outside, filepath.Join(outside, "sub")} {
		if entries, _ := os.ReadDir(d); len(entries) != 1 {
			t.Errorf("outside lies %v", entries)
		}
	}
}
