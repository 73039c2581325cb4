package jail

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
)

// device is a whole disk.
type device struct{ major, minor int64 }

// disks are those on which the files are that a VMM is given. Files of file systems that are not on one disk (tmpfs, btrfs, overlayfs,
// the network's) have none that is known.
func disks(c vmm.Command) (all []device) {
	add := func(st *unix.Stat_t, err error) {
		if kind := st.Mode & unix.S_IFMT; err != nil || kind != unix.S_IFREG && kind != unix.S_IFDIR {
			return
		}
		if d, ok := wholeDisk(unix.Major(st.Dev), unix.Minor(st.Dev)); ok && !slices.Contains(all, d) {
			all = append(all, d)
		}
	}
	var st unix.Stat_t
	for _, f := range c.Files {
		add(&st, unix.Fstat(int(f.Fd()), &st))
	}
	for _, p := range slices.Concat(c.ReadOnly, c.Writable) {
		add(&st, unix.Stat(p, &st))
	}
	return all
}

// wholeDisk is the disk of a device: a partition is not bounded by itself (kernel: Documentation/admin-guide/cgroup-v2.rst, "io.max").
func wholeDisk(major, minor uint32) (device, bool) {
	dir, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor))
	if err != nil {
		return device{}, false
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	b, err := os.ReadFile(filepath.Join(dir, "dev"))
	if err != nil {
		return device{}, false
	}
	var d device
	_, err = fmt.Sscanf(strings.TrimSpace(string(b)), "%d:%d", &d.major, &d.minor)
	return d, err == nil
}
