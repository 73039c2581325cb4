package build_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/images/build"
)

const dirMode, fileMode, nodeMode = 0o040755, 0o100000, 0o020600

// readCPIO reads archives that stand one behind the other, as the kernel does: each begins on a multiple of four bytes.
func readCPIO(t *testing.T, b []byte) (entries []build.Entry) {
	t.Helper()
	at := 0
	take := func(n int) []byte {
		if n < 0 || at+n > len(b) {
			t.Fatalf("the archive ends at %d, within something of %d bytes from %d", len(b), n, at)
		}
		at += n
		return b[at-n : at]
	}
	align := func() {
		for at&3 != 0 {
			take(1)
		}
	}
	for at < len(b) {
		if b[at] == 0 { // between archives
			take(1)
			continue
		}
		align()
		var f [13]int
		head := string(take(110))
		if !strings.HasPrefix(head, "070701") {
			t.Fatalf("no header at %d: %q", at-110, head)
		}
		for i := range f {
			if _, err := fmt.Sscanf(head[6+8*i:14+8*i], "%08x", &f[i]); err != nil {
				t.Fatal(err)
			}
		}
		name := take(f[11])
		align()
		e := build.Entry{Name: string(bytes.TrimSuffix(name, []byte{0})), Mode: f[1], Major: f[9], Minor: f[10]}
		e.Data = append(e.Data, take(f[6])...)
		align()
		if e.Name != "TRAILER!!!" {
			entries = append(entries, e)
		}
	}
	return entries
}

func TestCPIO(t *testing.T) {
	want := []build.Entry{{Name: "dev", Mode: dirMode}, {Name: "dev/console", Mode: nodeMode, Major: 5, Minor: 1}}
	for size := range 9 { // whatever has to be filled up
		want = append(want, build.Entry{Name: "dev/" + strings.Repeat("n", size+1), Mode: fileMode | 0o644, Data: bytes.Repeat([]byte{0xff, 0}, 5)[:size]})
	}
	want = append(want, build.Entry{Name: "big", Mode: fileMode | 0o555, Data: bytes.Repeat([]byte("070701"), 20_000)})
	want[2].Data = nil
	var b bytes.Buffer
	must(t, build.WriteCPIO(&b, want))
	if b.Len()%512 != 0 {
		t.Errorf("%d bytes: the next archive would not begin where one can", b.Len())
	}
	if diff := cmp.Diff(want, readCPIO(t, b.Bytes())); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	var names []string
	for _, e := range want {
		names = append(names, e.Name)
	}
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Logf("SKIPPED: %v: the archive is not held against the real cpio", err)
	} else {
		cmd := exec.CommandContext(t.Context(), "cpio", "-t", "--quiet")
		cmd.Stdin = bytes.NewReader(b.Bytes())
		out, err := cmd.Output()
		if err != nil || string(out) != strings.Join(names, "\n")+"\n" {
			t.Errorf("cpio -t: %v: %s", err, out)
		}
	}
	again := new(bytes.Buffer)
	must(t, build.WriteCPIO(io.MultiWriter(again), want))
	if !bytes.Equal(again.Bytes(), b.Bytes()) {
		t.Error("the same content gives another archive")
	}
}

// full takes some bytes and no more.
type full struct{ room int }

func (f *full) Write(b []byte) (int, error) {
	if f.room -= len(b); f.room < 0 {
		return 0, errFull
	}
	return len(b), nil
}

var errFull = errors.New("full")

func TestCPIOTellsWhatWasNotWritten(t *testing.T) {
	entries := []build.Entry{{Name: "a", Mode: fileMode, Data: make([]byte, 300)}, {Name: "b", Mode: dirMode}}
	var whole bytes.Buffer
	must(t, build.WriteCPIO(&whole, entries))
	for room := range whole.Len() {
		if err := build.WriteCPIO(&full{room}, entries); !errors.Is(err, errFull) {
			t.Fatalf("with room for %d of %d bytes: %v", room, whole.Len(), err)
		}
	}
}

// tree is a directory of modules: a file's name and what it needs.
func tree(t *testing.T, deps map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	var list strings.Builder
	for file, needs := range deps {
		must(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(file)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, file), []byte("module "+file), 0o644))
		fmt.Fprintf(&list, "%s: %s\n", file, needs)
	}
	must(t, os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(list.String()), 0o644))
	return dir
}

func TestModules(t *testing.T) {
	for _, c := range []struct {
		name string
		deps map[string]string
		want string // the order
	}{
		{"none", nil, ""},
		{"not ours", map[string]string{"fs/xfs.ko": "lib/crc.ko", "lib/crc.ko": ""}, ""},
		{"each after what it needs, and once", map[string]string{
			"v/virtio.ko": "", "v/virtio_ring.ko": "v/virtio.ko", "v/virtio_pci.ko": "v/virtio_ring.ko v/virtio.ko", "v/virtio_blk.ko": "v/virtio_ring.ko v/virtio.ko",
		}, "virtio.ko virtio_ring.ko virtio_pci.ko virtio_blk.ko"},
		{"names with dashes", map[string]string{"v/virtio-rng.ko": "v/hw-random.ko", "v/hw-random.ko": ""}, "hw_random.ko virtio_rng.ko"},
		{"a circle", map[string]string{"a/erofs.ko": "a/b.ko", "a/b.ko": "a/erofs.ko"}, "b.ko erofs.ko"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "modules")
			must(t, build.PackModules(t.Context(), tree(t, c.deps), file))
			b, err := os.ReadFile(file)
			must(t, err)
			var order string
			packed := map[string]string{}
			for _, e := range readCPIO(t, b) {
				switch {
				case e.Name == "modules.order":
					order = strings.Join(strings.Fields(string(e.Data)), " ")
				case e.Name != "modules":
					packed[strings.TrimPrefix(e.Name, "modules/")] = string(e.Data)
				}
			}
			if order != c.want {
				t.Errorf("order %q, want %q", order, c.want)
			}
			for _, name := range strings.Fields(c.want) {
				if !strings.HasPrefix(packed[name], "module ") {
					t.Errorf("%s holds %q", name, packed[name])
				}
				delete(packed, name)
			}
			if len(packed) > 0 {
				t.Errorf("packed without need: %v", packed)
			}
		})
	}
	for name, dir := range map[string]string{
		"no modules.dep":             t.TempDir(),
		"a module that is not there": lost(t, tree(t, map[string]string{"erofs.ko": ""}), "erofs.ko"),
		"xz that is none":            tree(t, map[string]string{"erofs.ko.xz": ""}),
		"packed otherwise":           tree(t, map[string]string{"erofs.ko.zst": ""}),
	} {
		if err := build.PackModules(t.Context(), dir, filepath.Join(t.TempDir(), "modules")); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v, want the file's name", name, err)
		}
	}
}

func lost(t *testing.T, dir, name string) string {
	t.Helper()
	must(t, os.Remove(filepath.Join(dir, name)))
	return dir
}

// The kernel unpacks the modules' archive and then the agent's, which stand one behind the other.
func TestInitrd(t *testing.T) {
	b := newBench(t)
	img, err := b.build(t.Context())
	must(t, err)
	initrd, err := os.ReadFile(img.Initrd)
	must(t, err)
	got := map[string]build.Entry{}
	for _, e := range readCPIO(t, initrd) {
		got[e.Name] = e
	}
	for _, want := range []build.Entry{
		{Name: "init", Mode: fileMode | 0o555, Data: []byte("agent 1")}, {Name: "dev/console", Mode: nodeMode, Major: 5, Minor: 1}, {Name: "proc", Mode: dirMode},
		{Name: "modules.order", Mode: fileMode | 0o444, Data: []byte("virtio.ko\nvirtio_ring.ko\nvirtio_pci.ko\ncrc.ko\nerofs.ko\n")},
		{Name: "modules/erofs.ko", Mode: fileMode | 0o444, Data: []byte("module erofs\n")},
	} {
		if diff := cmp.Diff(want, got[want.Name]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", want.Name, diff)
		}
	}
	if _, err := exec.LookPath("cpio"); err == nil {
		cmd := exec.CommandContext(t.Context(), "cpio", "-t", "--quiet")
		cmd.Stdin = bytes.NewReader(initrd)
		if out, err := cmd.Output(); err != nil || !strings.Contains(string(out), "modules/virtio_pci.ko\n") {
			t.Errorf("cpio -t: %v: %s", err, out)
		}
	}
}
