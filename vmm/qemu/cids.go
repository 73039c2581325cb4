package qemu

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// vhostVsock is the kernel's half of a vhost-vsock device.
const vhostVsock = "/dev/vhost-vsock"

// vhostVsockSetGuestCID is _IOW(VHOST_VIRTIO, 0x60, __u64) (linux/vhost.h).
const vhostVsockSetGuestCID = 0x4008af60

// cids gives each machine of this host an address on vsock of its own. Processes agree by locks on the bytes of one file, a byte for a CID;
// what a process holds the kernel gives back when it dies, and its machines die with it. A lock lasts until the machine is closed, longer
// than its VMM: who still dials a machine that is over never reaches another. What holds CIDs without knowing of the file, the kernel
// tells of.
type cids struct {
	base, count int
	path        string

	mu   sync.Mutex
	file *os.File     // opened by the first that takes one
	used map[int]bool // by this driver: its own locks do not keep it off
	next int
}

// lease is one machine's CID. device is open and has it, for QEMU.
type lease struct {
	from   *cids
	cid    int
	device *os.File
	once   sync.Once
}

// take gives the CID that was given back longest ago.
func (c *cids) take() (*lease, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.open(); err != nil {
		return nil, fmt.Errorf("lease a cid: %w", err)
	}
	for range c.count {
		cid := c.base + c.next%c.count
		c.next++
		if c.used[cid] {
			continue
		}
		free, err := c.lock(cid)
		if err != nil {
			return nil, fmt.Errorf("lease a cid: lock %d in %s: %w", cid, c.path, err)
		}
		if !free {
			continue
		}
		device, err := claim(cid)
		if err == nil {
			c.used[cid] = true
			return &lease{from: c, cid: cid, device: device}, nil
		}
		c.unlock(cid)
		if !errors.Is(err, unix.EADDRINUSE) { // by somebody who knows nothing of the file
			return nil, fmt.Errorf("lease a cid: %w", err)
		}
	}
	return nil, fmt.Errorf("lease a cid: all %d from %d on are in use", c.count, c.base)
}

// claim opens the device and gives it its CID. What the kernel allows is what makes the CID this device's.
func claim(cid int) (*os.File, error) {
	device, err := os.OpenFile(vhostVsock, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := setCID(device, uint64(cid)); err != nil {
		_ = device.Close()
		return nil, fmt.Errorf("set the cid of %s: %w", vhostVsock, err)
	}
	return device, nil
}

func setCID(device *os.File, cid uint64) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), vhostVsockSetGuestCID, uintptr(unsafe.Pointer(&cid)))
	if errno != 0 {
		return errno
	}
	return nil
}

// give takes a CID back whose machine is gone. It is idempotent.
func (l *lease) give() {
	l.once.Do(func() {
		l.from.mu.Lock()
		defer l.from.mu.Unlock()
		delete(l.from.used, l.cid)
		l.from.unlock(l.cid)
	})
}

func (c *cids) open() (err error) {
	if c.file == nil {
		c.file, err = os.OpenFile(c.path, os.O_RDWR|os.O_CREATE, 0o600)
	}
	return err
}

func (c *cids) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file == nil {
		return nil
	}
	err := c.file.Close()
	c.file = nil
	return err
}

// lock is of this open file (fcntl(2), "Open file description locks"); false where another has it.
func (c *cids) lock(cid int) (bool, error) {
	err := unix.FcntlFlock(c.file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: int64(cid), Len: 1})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	return err == nil, err
}

func (c *cids) unlock(cid int) {
	if c.file != nil {
		_ = unix.FcntlFlock(c.file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Start: int64(cid), Len: 1}) // a lock of ours is there
	}
}
