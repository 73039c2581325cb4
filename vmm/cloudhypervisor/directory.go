package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// directory is a directory that is mounted nowhere: whoever has its descriptor reaches what is in it, by /proc/self/fd (proc(5)), and
// nobody else does. Its ".." is itself, so it leads nowhere, unlike a descriptor of a directory of the host's. It is gone with the last
// descriptor (fsmount(2), open_tree(2)).
type directory struct {
	f *os.File
	// mu is held for reading while the descriptor's number is in use: once closed, it may be another file's.
	mu     sync.RWMutex
	closed bool
}

// use calls f with the descriptor, which stays open until f returns.
func (d *directory) use(f func(fd int) error) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return os.ErrClosed
	}
	return f(int(d.f.Fd()))
}

func (d *directory) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	_ = d.f.Close()
}

// newDirectory makes an empty one in memory, of so many bytes at most, in which any uid may write: a VMM's is not known before it runs.
// What is in it may be the work of a VMM that a guest has taken over: links are not followed.
func newDirectory(size int64) (_ *directory, err error) {
	defer func() {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w: Cloud Hypervisor's machines need root", err)
		}
	}()
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("machine's directory: %w", err)
	}
	defer unix.Close(fs) //nolint:errcheck // nothing to lose
	for _, o := range [][2]string{{"mode", "0777"}, {"size", strconv.FormatInt(size, 10)}, {"nr_inodes", "64"}} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return nil, fmt.Errorf("machine's directory: %s: %w", o[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("machine's directory: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSYMFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("machine's directory: %w", err)
	}
	return &directory{f: os.NewFile(uintptr(fd), "machine")}, nil
}

// readOnly gives a view of a directory of the host's, through which nothing in it can be changed.
func readOnly(path string) (*directory, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	const attr = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSYMFOLLOW
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attr}); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open %s: read-only: %w", path, err)
	}
	return &directory{f: f}, nil
}

// fdPath is a path to an open file, or to what is in a directory that is open.
func fdPath(fd int, name ...string) string {
	p := "/proc/self/fd/" + strconv.Itoa(fd)
	for _, n := range name {
		p += "/" + n
	}
	return p
}

// listener makes a listening socket and gives its descriptor.
func (d *directory) listener(name string) (f *os.File, err error) {
	err = d.use(func(fd int) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fdPath(fd, name), Net: "unix"})
		if err != nil {
			return err
		}
		l.SetUnlinkOnClose(false) // the name is how it is dialled
		f, err = l.File()
		return errors.Join(err, l.Close())
	})
	return f, err
}

// dial connects to a socket. That does not wait: a socket that is behind with accepting says EAGAIN.
func (d *directory) dial(ctx context.Context, name string) (conn *net.UnixConn, err error) {
	err = d.use(func(fd int) error {
		var n net.Dialer
		c, err := n.DialContext(ctx, "unix", fdPath(fd, name))
		if err == nil {
			conn = c.(*net.UnixConn)
		}
		return err
	})
	return conn, err
}

// open opens what has a name in it.
func (d *directory) open(name string, flag int, mode os.FileMode) (f *os.File, err error) {
	err = d.use(func(fd int) error {
		f, err = os.OpenFile(fdPath(fd, name), flag, mode)
		return err
	})
	return f, err
}

// pipe makes a named one and opens both its ends. Who opens the name to write need not wait for a reader.
func (d *directory) pipe(name string) (r, w *os.File, err error) {
	if err := d.use(func(fd int) error {
		if err := unix.Mkfifoat(fd, name, 0o600); err != nil {
			return err
		}
		return unix.Fchmodat(fd, name, 0o666, 0)
	}); err != nil {
		return nil, nil, fmt.Errorf("%s pipe: %w", name, err)
	}
	if r, err = d.open(name, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return nil, nil, fmt.Errorf("%s pipe: %w", name, err)
	}
	if w, err = d.open(name, os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
		_ = r.Close()
		return nil, nil, fmt.Errorf("%s pipe: %w", name, err)
	}
	return r, w, nil
}

// create makes a file that any uid may write, and opens it.
func (d *directory) create(name string) (*os.File, error) {
	f, err := d.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(0o666); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// write makes a file of these bytes.
func (d *directory) write(name string, b []byte) error {
	f, err := d.create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// read gives what the VMM has written to a file, if it is one, and of maxState bytes at most.
func (d *directory) read(name string) ([]byte, error) {
	f, err := d.open(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxState {
		return nil, fmt.Errorf("%s: %s of %d bytes", name, info.Mode(), info.Size())
	}
	return io.ReadAll(io.LimitReader(f, maxState))
}

func (d *directory) exists(name string) bool {
	return d.use(func(fd int) error {
		_, err := os.Lstat(fdPath(fd, name))
		return err
	}) == nil
}

func (d *directory) remove(name string) {
	_ = d.use(func(fd int) error { return os.Remove(fdPath(fd, name)) })
}
