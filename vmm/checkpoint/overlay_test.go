package checkpoint_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm/checkpoint"
)

// Of a file on overlayfs a process's mappings tell another device than stat(2) does; on btrfs too.
func TestPrivateOnOverlay(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("needs root")
		}
		t.Skip("SKIPPED: needs root to mount an overlay")
	}
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	for _, sub := range []string{"lower", "upper", "work", "merged"} {
		must(t, os.Mkdir(filepath.Join(dir, sub), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(dir, "lower", "memory"), make([]byte, 4*checkpoint.Block), 0o444))
	merged := filepath.Join(dir, "merged")
	must(t, unix.Mount("overlay", merged, "overlay", 0, "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,workdir="+dir+"/work"))
	t.Cleanup(func() { must(t, unix.Unmount(merged, 0)) })
	f, err := os.Open(filepath.Join(merged, "memory"))
	must(t, err)
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), 0, 4*checkpoint.Block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	must(t, err)
	defer unix.Munmap(mapped)
	mapped[2*checkpoint.Block] = 1
	m, err := checkpoint.OpenMemory(os.Getpid(), f, 4*checkpoint.Block)
	must(t, err)
	defer m.Close()
	p, err := m.Read()
	must(t, err)
	if len(p.Extents) != 1 || p.Extents[0] != (checkpoint.Extent{First: 2, Count: 1}) {
		t.Errorf("private pages: %v", p.Extents)
	}
}
