// Package hostfile makes the files of VMM drivers: sparse ones, ones without names, ones that nobody changes once they are written. It may
// import the standard library and golang.org/x/sys.
package hostfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// CopySparse makes dst, an empty file, equal to src: by sharing the blocks where the file system can, else by copying what is not a hole.
func CopySparse(dst, src *os.File) error {
	return copySparse(dst, src, func() error { return nil })
}

// CopySparseUntil is CopySparse that gives up when ctx is done.
func CopySparseUntil(ctx context.Context, dst, src *os.File) error {
	return copySparse(dst, src, func() error { return context.Cause(ctx) })
}

// copySparse asks now and then whether to stop.
func copySparse(dst, src *os.File, stop func() error) error {
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(info.Size()); err != nil {
		return err
	}
	for end := int64(0); ; {
		start, err := src.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // nothing but a hole follows
		}
		if err != nil {
			return err
		}
		if end, err = src.Seek(start, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := src.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := dst.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if err := copyPart(dst, src, end-start, stop); err != nil {
			return fmt.Errorf("copy %s: %w", src.Name(), err)
		}
	}
}

// piece is how much is copied between two questions whether to stop.
const piece = 16 << 20

func copyPart(dst, src *os.File, n int64, stop func() error) error {
	for ; n > 0; n -= piece {
		if err := stop(); err != nil {
			return err
		}
		if _, err := io.CopyN(dst, src, min(n, piece)); err != nil {
			return err
		}
	}
	return nil
}

// Scratch gives a private copy of a disk image, without a name in dir's file system: it is gone with the last process that has it open.
func Scratch(image, dir string) (*os.File, error) {
	f, err := scratch(image, dir)
	if err != nil {
		return nil, fmt.Errorf("copy scratch disk: %w", err)
	}
	return f, nil
}

func scratch(image, dir string) (*os.File, error) {
	src, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	dst, err := Unnamed(dir)
	if err != nil {
		return nil, err
	}
	if err := CopySparse(dst, src); err != nil {
		_ = dst.Close()
		return nil, err
	}
	return dst, nil
}

// Unnamed opens a new file without a name in dir's file system.
func Unnamed(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err == nil || !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return f, err
	}
	// Some file systems (overlayfs before Linux 6.1, NFS) cannot.
	f, err = os.CreateTemp(dir, ".scratch-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// WriteOnce makes a new file that nobody changes afterwards, and that is on the disk when it returns.
func WriteOnce(path string, write func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = errors.Join(f.Chmod(0o444), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}

// Duplicate is dup(2).
func Duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// SyncDir has the names in a directory be on the disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Replaced tells whether a file is another than it was: one was put in its place, it was written to, or it is gone.
func Replaced(path string, was os.FileInfo) bool {
	now, err := os.Stat(path)
	return err != nil || !os.SameFile(was, now) || !was.ModTime().Equal(now.ModTime()) || was.Size() != now.Size()
}

// RemoveIfExists removes a file that may not be there.
func RemoveIfExists(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
