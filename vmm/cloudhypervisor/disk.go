package cloudhypervisor

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// scratchCopy gives a private copy of a disk image that has no name: it is gone with the last process that has it open. Whoever has its
// descriptor may open it anew, as any uid.
func scratchCopy(image, dir string) (_ *os.File, err error) {
	src, err := os.Open(image)
	if err != nil {
		return nil, fmt.Errorf("copy scratch disk: %w", err)
	}
	defer src.Close()
	dst, err := unnamed(dir)
	if err != nil {
		return nil, fmt.Errorf("copy scratch disk: %w", err)
	}
	if err := errors.Join(dst.Chmod(0o666), copySparse(dst, src)); err != nil {
		_ = dst.Close()
		return nil, fmt.Errorf("copy scratch disk: %w", err)
	}
	return dst, nil
}

// unnamed opens a new file without a name in dir's file system.
func unnamed(dir string) (*os.File, error) {
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

// copySparse makes dst, an empty file, equal to src: by sharing the blocks where the file system can, else by copying what is not a hole.
func copySparse(dst, src *os.File) error {
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
		if _, err := io.CopyN(dst, src, end-start); err != nil {
			return fmt.Errorf("copy %s: %w", src.Name(), err)
		}
	}
}

// openOr opens a file to read; where there is none to open, /dev/null stands in its place.
func openOr(path string) (*os.File, error) {
	if path == "" {
		path = os.DevNull
	}
	return os.Open(path)
}
