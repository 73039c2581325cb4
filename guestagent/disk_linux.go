package guestagent

import (
	"os"

	"golang.org/x/sys/unix"
)

// disk is the machine's scratch disk. Its size is every clone's; a job's smaller limit is what a ballast file leaves of it.
type disk struct {
	root   *os.File // the disk's top directory, above the overlay's
	limit0 int64
}

// fullBelow is how little room counts as none: less than what file systems keep back for their own.
const fullBelow = 128 << 10

// limit leaves so many bytes free; 0, or more than the disk has, means all of it. Changing it is for before the first program: what is
// written then counts. It takes 20 ms where the processor is emulated, so that a machine is given the usual limit before a job comes.
func (d *disk) limit(bytes int64) error {
	if d == nil || bytes == 0 || d.limit0 == bytes {
		return nil
	}
	fd, err := unix.Openat(int(d.root.Fd()), "ballast", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	free, err := d.free()
	if err != nil {
		return err
	}
	if ballast := free - bytes; ballast > 0 {
		if err := unix.Fallocate(fd, 0, 0, ballast); err != nil {
			return err
		}
	}
	d.limit0 = bytes
	return nil
}

// newLife forgets the limit of an earlier life: what was written in it does not count against the next one's.
func (d *disk) newLife() {
	if d != nil {
		d.limit0 = 0
	}
}

func (d *disk) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.root.Fd()), &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// full tells whether the disk is full now.
func (d *disk) full() bool {
	if d == nil {
		return false
	}
	free, err := d.free()
	return err == nil && free < fullBelow
}
