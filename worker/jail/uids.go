package jail

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// uids gives each machine of this host a uid of its own. Processes agree by locks on the bytes of one file, a byte for a uid; what a
// process holds the kernel gives back when it dies, and its machines die with it.
type uids struct {
	base, count int
	file        *os.File

	mu   sync.Mutex
	used map[int]bool // by this launcher: its own locks do not keep it off
	next int
}

func openUIDs(cfg Config) (*uids, error) {
	f, err := os.OpenFile(cfg.UIDLock, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return &uids{base: cfg.UIDBase, count: cfg.UIDCount, file: f, used: map[int]bool{}}, nil
}

// take gives the uid that was given back longest ago.
func (u *uids) take() (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for range u.count {
		uid := u.base + u.next%u.count
		u.next++
		if u.used[uid] {
			continue
		}
		free, err := lockByte(u.file, uid)
		if err != nil {
			return 0, fmt.Errorf("jail: lock uid %d in %s: %w", uid, u.file.Name(), err)
		}
		if free {
			u.used[uid] = true
			return uid, nil
		}
	}
	return 0, fmt.Errorf("jail: all %d uids are in use", u.count)
}

// give takes a uid back whose processes are all gone.
func (u *uids) give(uid int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.used, uid)
	unlockByte(u.file, uid)
}

func (u *uids) close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.file.Close()
}

// lockByte locks a byte of f for this open file (fcntl(2), "Open file description locks"); false where another has it.
func lockByte(f *os.File, n int) (bool, error) {
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: int64(n), Len: 1})
	if err == unix.EAGAIN || err == unix.EACCES {
		return false, nil
	}
	return err == nil, err
}

func unlockByte(f *os.File, n int) {
	_ = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Start: int64(n), Len: 1}) // a lock of ours is there
}
