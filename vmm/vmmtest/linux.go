package vmmtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/paddockvm/paddock/vmm"
)

// modules that a machine of ours needs, in the order in which they can be loaded.
var modules = []string{
	"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk", "virtio_console",
	"virtio-rng", "pvpanic", "pvpanic-pci",
}

// Linux gives a machine to boot: Debian's cloud kernel, Command testguest as its /init, a root disk of RootBytes and a scratch disk
// of ScratchBytes. The kernel is downloaded once and kept in ${XDG_CACHE_HOME:-~/.cache}/paddock-test.
func Linux(t testing.TB) vmm.Boot {
	t.Helper()
	dir := t.TempDir()
	kernel, moduleDir := debianKernel(t)
	boot := vmm.Boot{
		Kernel: kernel, Initrd: filepath.Join(dir, "initrd"), Root: filepath.Join(dir, "root"), Scratch: filepath.Join(dir, "scratch"),
		Cmdline: "console=ttyS0 quiet panic=-1", VCPUs: 1, MemoryMiB: 256,
	}
	must(t, os.WriteFile(boot.Initrd, initrd(t, moduleDir, buildTestGuest(t, dir)), 0o444))
	must(t, os.WriteFile(boot.Root, bytes.Repeat([]byte("root disk. "), RootBytes/11+1)[:RootBytes], 0o444))
	scratch, err := os.OpenFile(boot.Scratch, os.O_RDWR|os.O_CREATE, 0o444)
	must(t, err)
	defer scratch.Close()
	must(t, scratch.Truncate(ScratchBytes))
	for _, offset := range []int64{0, 1 << 20, ScratchBytes / 2} {
		_, err := scratch.WriteAt(bytes.Repeat([]byte("scratch "), 1024), offset)
		must(t, err)
	}
	return boot
}

// Sizes of the disks.
const (
	RootBytes    = 1 << 20
	ScratchBytes = 64 << 20
)

func buildTestGuest(t testing.TB, dir string) string {
	t.Helper()
	out := filepath.Join(dir, "testguest")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "github.com/paddockvm/paddock/vmm/vmmtest/testguest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the test guest: %v\n%s", err, b)
	}
	return out
}

// debianKernel gives a kernel image and the directory of its modules.
func debianKernel(t testing.TB) (kernel, moduleDir string) {
	t.Helper()
	cache, err := os.UserCacheDir()
	must(t, err)
	cache = filepath.Join(cache, "paddock-test")
	must(t, os.MkdirAll(cache, 0o755))
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	defer lock.Close()
	must(t, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)) // packages are tested at the same time
	tree := filepath.Join(cache, "kernel")
	if _, err := os.Stat(tree); err != nil {
		must(t, fetchKernel(t.Context(), cache, tree))
	}
	kernels, err := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	must(t, err)
	if len(kernels) == 0 {
		t.Fatalf("no kernel in %s: remove it and try again", tree)
	}
	kernel = kernels[len(kernels)-1]
	version := strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-")
	return kernel, filepath.Join(tree, "lib", "modules", version)
}

func fetchKernel(ctx context.Context, cache, tree string) error {
	tmp, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", "linux-image-cloud-amd64").Output()
	if err != nil {
		return fmt.Errorf("find the kernel's package: %w", err)
	}
	_, pkg, ok := strings.Cut(string(out), "Depends: ")
	if !ok {
		return fmt.Errorf("linux-image-cloud-amd64 names no package: %q", out)
	}
	pkg, _, _ = strings.Cut(pkg, "\n")
	download := exec.CommandContext(ctx, "apt-get", "download", pkg)
	download.Dir = tmp
	if out, err := download.CombinedOutput(); err != nil {
		return fmt.Errorf("download %s: %w: %s", pkg, err, out)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil {
		return err
	}
	if len(debs) != 1 {
		return fmt.Errorf("download %s: got %q", pkg, debs)
	}
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", debs[0], filepath.Join(tmp, "tree")).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack %s: %w: %s", debs[0], err, out)
	}
	return os.Rename(filepath.Join(tmp, "tree"), tree)
}

// initrd packs init, the modules and their order into a cpio archive of the "newc" kind (the kernel's buffer-format.rst).
func initrd(t testing.TB, moduleDir, init string) []byte {
	t.Helper()
	var out bytes.Buffer
	inode := 0
	add := func(name string, mode uint32, data []byte) {
		inode++
		fmt.Fprintf(&out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		out.WriteString(name + "\x00")
		out.Write(make([]byte, -out.Len()&3))
		out.Write(data)
		out.Write(make([]byte, -out.Len()&3))
	}
	const dir, file = 0o40755, 0o100755
	for _, d := range []string{"dev", "proc", "sys"} {
		add(d, dir, nil)
	}
	b, err := os.ReadFile(init)
	must(t, err)
	add("init", file, b)
	var order strings.Builder
	for _, name := range modules {
		path, b := module(t, moduleDir, name)
		if path != "" {
			add(path, file, b)
			order.WriteString("/" + path + "\n")
		}
	}
	add("modules.order", file, []byte(order.String()))
	inode = -1
	add("TRAILER!!!", 0, nil)
	return out.Bytes()
}

// module finds a module's file, if it is not built into the kernel, and unpacks it.
func module(t testing.TB, dir, name string) (path string, b []byte) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if base := filepath.Base(p); base == name+".ko" || base == name+".ko.xz" {
			path = p
			return filepath.SkipAll
		}
		return err
	})
	must(t, err)
	switch {
	case path == "":
	case strings.HasSuffix(path, ".xz"):
		b, err = exec.CommandContext(t.Context(), "xz", "-dc", path).Output()
	default:
		b, err = os.ReadFile(path)
	}
	must(t, err)
	if path == "" {
		return "", nil
	}
	return strings.TrimSuffix(filepath.Base(path), ".xz"), b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
