package build

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/paddockvm/paddock/images"
)

// modules that a machine needs, by name; what they need in turn is found in modules.dep. Those that a kernel has built in, or does not
// know, are passed over.
var modules = []string{
	"virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "erofs", "overlay", "ext4", "crc32c_generic", "pvpanic_mmio", "pvpanic_pci",
	"vmw_vsock_virtio_transport", "virtio_net", "virtio_mem",
}

// packModules writes a cpio archive with the modules under /modules and the order to load them in, in /modules.order.
func packModules(ctx context.Context, tree, to string) error {
	deps, err := readDeps(filepath.Join(tree, "modules.dep"))
	if err != nil {
		return err
	}
	byName := map[string]string{}
	for file := range deps {
		byName[moduleName(file)] = file
	}
	var order []string
	seen := map[string]bool{}
	var visit func(file string)
	visit = func(file string) {
		if seen[file] {
			return
		}
		seen[file] = true
		for _, d := range deps[file] {
			visit(d)
		}
		order = append(order, file)
	}
	for _, m := range modules {
		if file := byName[m]; file != "" {
			visit(file)
		}
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close() // closed and checked below
	w := &cpio{w: bufio.NewWriter(f)}
	w.dir("modules")
	var list strings.Builder
	for _, file := range order {
		b, err := readModule(ctx, filepath.Join(tree, file))
		if err != nil {
			return err
		}
		name := moduleName(file) + ".ko"
		w.file("modules/"+name, 0o444, b)
		list.WriteString(name + "\n")
	}
	w.file("modules.order", 0o444, []byte(list.String()))
	if err := w.close(); err != nil {
		return err
	}
	return f.Close()
}

// moduleName is a module's name as the kernel has it: without directory and endings, dashes as underscores.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// readDeps reads modules.dep: a file and those it needs.
func readDeps(file string) (map[string][]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	deps := map[string][]string{}
	for _, line := range strings.Split(string(b), "\n") {
		if name, needs, ok := strings.Cut(line, ":"); ok {
			deps[name] = strings.Fields(needs)
		}
	}
	return deps, nil
}

func readModule(ctx context.Context, file string) ([]byte, error) {
	switch filepath.Ext(file) {
	case ".ko":
		return os.ReadFile(file)
	case ".xz":
	default:
		return nil, fmt.Errorf("unpack %s: neither plain nor xz", file) // the guest could not load it, and would tell at its first boot
	}
	b, err := exec.CommandContext(ctx, "xz", "-dc", file).Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", file, err)
	}
	return b, nil
}

// initrdOf puts the initramfs together: the kernel takes cpio archives one after the other, so the modules' stays as it is.
func initrdOf(s *images.Store, modules images.Part, agent []byte) (images.Part, error) {
	dir, err := s.Temp("initrd-")
	if err != nil {
		return images.Part{}, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "initrd")
	f, err := os.Create(file)
	if err != nil {
		return images.Part{}, err
	}
	defer f.Close() // closed and checked below
	m, err := os.Open(s.Blob(modules))
	if err != nil {
		return images.Part{}, err
	}
	defer m.Close()
	if _, err := io.Copy(f, m); err != nil {
		return images.Part{}, err
	}
	w := &cpio{w: bufio.NewWriter(f)}
	for _, d := range []string{"dev", "proc", "sys", "ro", "warm", "warm-rw", "new", "scratch"} {
		w.dir(d)
	}
	w.node("dev/console", 5, 1)
	w.file("init", 0o555, agent)
	if err := w.close(); err != nil {
		return images.Part{}, err
	}
	if err := f.Close(); err != nil {
		return images.Part{}, err
	}
	return s.Adopt(file)
}
