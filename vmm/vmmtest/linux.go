package vmmtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/paddockvm/paddock/vmm"
)

// Linux gives a machine to boot: the kernel and initramfs of one of Paddock's images, with Command testguest in the agent's place, a root
// disk of RootBytes and a scratch disk of ScratchBytes.
func Linux(t testing.TB, kernel, initrd string) vmm.Boot {
	t.Helper()
	dir := t.TempDir()
	boot := vmm.Boot{
		Kernel: kernel, Initrd: filepath.Join(dir, "initrd"), Root: filepath.Join(dir, "root"), Scratch: filepath.Join(dir, "scratch"),
		// On a loaded host the kernel's check of its timer sees no tick in time, and panics.
		Cmdline: "console=ttyS0 quiet panic=-1 no_timer_check", VCPUs: 1, MemoryMiB: 256,
	}
	modules, err := os.ReadFile(initrd)
	must(t, err)
	must(t, os.WriteFile(boot.Initrd, append(modules, initOf(t, buildProgram(t, dir, "vmm/vmmtest/testguest"))...), 0o444))
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

// Agent gives a machine of one of Paddock's images to boot, with the agent as this source has it.
func Agent(t testing.TB, kernel, initrd, root, scratch string) vmm.Boot {
	t.Helper()
	dir := t.TempDir()
	own := filepath.Join(dir, "initrd")
	of, err := os.ReadFile(initrd)
	must(t, err)
	must(t, os.WriteFile(own, append(of, initOf(t, buildProgram(t, dir, "cmd/paddock-agent"))...), 0o444))
	return vmm.Boot{
		Kernel: kernel, Initrd: own, Root: root, Scratch: scratch,
		Cmdline: "console=ttyS0 quiet loglevel=1 panic=-1 random.trust_cpu=on no_timer_check cryptomgr.notests", VCPUs: 1, MemoryMiB: 256,
	}
}

// buildProgram builds one of this module's, for a guest.
func buildProgram(t testing.TB, dir, pkg string) string {
	t.Helper()
	out := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "github.com/paddockvm/paddock/"+pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, b)
	}
	return out
}

// initOf is a cpio archive of the "newc" kind (the kernel's buffer-format.rst) with a program as /init. The kernel unpacks archives one
// after the other, so that the last file of a name is the one that stays.
func initOf(t testing.TB, program string) []byte {
	t.Helper()
	b, err := os.ReadFile(program)
	must(t, err)
	var out bytes.Buffer
	for i, f := range []struct {
		name string
		mode uint32
		data []byte
	}{{"init", 0o100755, b}, {"TRAILER!!!", 0, nil}} {
		fmt.Fprintf(&out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", i, f.mode, 0, 0, 1, 0, len(f.data), 0, 0, 0, 0, len(f.name)+1, 0, f.name)
		out.Write(make([]byte, -out.Len()&3))
		out.Write(f.data)
		out.Write(make([]byte, -out.Len()&3))
	}
	return out.Bytes()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
