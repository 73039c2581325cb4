package stub

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// bind is one thing from outside that is seen inside.
type bind struct {
	path     string
	fd       int // of the thing, opened before anything is covered
	link     string
	dir      bool
	readOnly bool
	device   bool
}

// newTree is where the new root is built: a directory that every system has. It is covered in this mount namespace only. The root is a
// directory in it and not its top: who is chrooted cannot make user namespaces (user_namespaces(7), EPERM), in which it would have
// all capabilities again.
const (
	newTree = "/tmp"
	newRoot = newTree + "/root"
)

// root makes an empty root, puts into it what the VMM may see, and leaves the old one.
func (s *Setup) root() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	binds, err := s.binds()
	if err != nil {
		return err
	}
	if err := build(binds); err != nil {
		return err
	}
	return enter()
}

// binds opens what the VMM may see.
func (s *Setup) binds() (all []bind, _ error) {
	for _, group := range []struct {
		paths []string
		as    bind
		may   bool // be missing
	}{
		{s.System, bind{readOnly: true}, true},
		{s.ReadOnly, bind{readOnly: true}, false},
		{s.Writable, bind{}, false},
		{s.Devices, bind{device: true}, false},
	} {
		for _, p := range group.paths {
			b, err := group.as.open(p)
			if os.IsNotExist(err) && group.may {
				continue
			}
			if err != nil {
				return nil, err
			}
			all = append(all, b)
		}
	}
	return all, nil
}

// build makes the new root, of a size for its directories and nothing else.
func build(binds []bind) error {
	if err := unix.Mount("tmpfs", newTree, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m,nr_inodes=1k"); err != nil {
		return fmt.Errorf("mount the new root: %w", err)
	}
	if err := os.Mkdir(newRoot, 0o755); err != nil {
		return err
	}
	for _, b := range binds {
		if err := b.mount(); err != nil {
			return fmt.Errorf("%s: %w", b.path, err)
		}
	}
	proc := filepath.Join(newRoot, "proc")
	if err := os.Mkdir(proc, 0o555); err != nil {
		return err
	}
	// Of /proc a VMM needs itself; the rest tells of the host (proc(5), "subset").
	if err := unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, "subset=pid"); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	return nil
}

// enter leaves the old root for the new one, which can be written from then on by nobody.
func enter() error {
	if err := unix.Chdir(newTree); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil { // the old root lies over the new one (pivot_root(2))
		return fmt.Errorf("leave the old root: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	if err := unix.Chroot("/" + filepath.Base(newRoot)); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	return unix.Chdir("/")
}

// open holds on to a path, as what b says.
func (b bind) open(p string) (bind, error) {
	st, err := os.Lstat(p)
	if err != nil {
		return b, err
	}
	b.path, b.dir = p, st.IsDir()
	switch {
	case b.device && st.Mode()&os.ModeCharDevice == 0:
		return b, fmt.Errorf("%s is no character device", p)
	case st.Mode()&os.ModeSymlink != 0:
		b.link, err = os.Readlink(p)
	default:
		b.fd, err = unix.Open(p, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	}
	return b, err
}

func (b *bind) mount() error {
	to := filepath.Join(newRoot, b.path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	switch {
	case b.link != "":
		return os.Symlink(b.link, to)
	case b.dir:
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
	default:
		f, err := os.OpenFile(to, os.O_CREATE, 0o444)
		if err != nil {
			return err
		}
		_ = f.Close()
	}
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(b.fd), to, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	// What the host's mount does not allow stays so: in a user namespace it has to (mount_namespaces(7), "locked").
	var host unix.Statfs_t
	if err := unix.Statfs(to, &host); err != nil {
		return err
	}
	flags := uintptr(unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOSUID) | uintptr(host.Flags)&(unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY)
	if b.readOnly {
		flags |= unix.MS_RDONLY
	}
	if !b.device {
		flags |= unix.MS_NODEV
	}
	return unix.Mount("", to, "", flags, "")
}
