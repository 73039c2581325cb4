package hostnet

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// within runs f with the thread in a network namespace: what f opens belongs to that. f must not wait for long, nor start goroutines that
// open anything.
func within(ns int, f func() error) error {
	return onThread(func() error { return unix.Setns(ns, unix.CLONE_NEWNET) }, f)
}

// onThread runs f on a thread whose network namespace enter has changed. A thread that cannot come back ends with its goroutine, which
// leaves it locked.
func onThread(enter, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer func() { _ = unix.Close(home) }() // was only entered
		err = enter()
		if err == nil {
			err = f()
		}
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// openNetns opens the network namespace at a path; the caller's own where that is empty.
func openNetns(path string) (*os.File, error) {
	if path == "" {
		path = "/proc/thread-self/ns/net"
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil || fs.Type != unix.NSFS_MAGIC {
		return nil, errors.Join(fmt.Errorf("%s is no namespace", path), err, f.Close())
	}
	return f, nil
}

// newNetns makes a network namespace that lives while something is mounted at path, and runs f in it. What it made is there, or all of it
// is gone.
func newNetns(path string, f func() error) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o400)
	if err != nil {
		return err
	}
	_ = file.Close() // nothing was written
	err = onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() error {
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount a network namespace at %s: %w", path, err)
		}
		return f()
	})
	if err != nil {
		return errors.Join(err, dropNetns(path))
	}
	return nil
}

// dropNetns takes the path's namespace away; it ends with its last user. A path where nothing is will do.
func dropNetns(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL && err != unix.ENOENT { // EINVAL: nothing is mounted there
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// sysctl writes a value below /proc/sys/net, of the thread's network namespace (kernel: Documentation/networking/ip-sysctl.rst).
func sysctl(name, value string) error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) }
