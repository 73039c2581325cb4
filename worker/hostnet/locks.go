package hostnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// locks are how the workers of one host agree: by locks on the bytes of files in the state directory, which the kernel gives back when
// who held them dies. They belong to the open file, so that two Hosts of one process are two (fcntl(2), F_OFD_SETLK).
type locks struct {
	slots *os.File // a byte for each slot
	hosts *os.File // byte 0: who changes what all have in common; byte 1, shared: who lives. Its text is what all have in common

	mu   sync.Mutex
	used map[int]bool // by this Host: its own locks do not keep it off
	next int
	most int
}

const (
	byteChange = 0
	byteAlive  = 1
)

func openLocks(dir string, most int) (*locks, error) {
	slots, err := os.OpenFile(filepath.Join(dir, "slots"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	hosts, err := os.OpenFile(filepath.Join(dir, "hosts"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errors.Join(err, slots.Close())
	}
	return &locks{slots: slots, hosts: hosts, used: map[int]bool{}, most: most}, nil
}

// lock asks for a byte's lock, of a kind (F_WRLCK, F_RDLCK) or none (F_UNLCK), and tells whether it could be had at once.
func lock(f *os.File, at int, kind int16) (bool, error) {
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: int64(at), Len: 1})
	if err == unix.EAGAIN || err == unix.EACCES {
		return false, nil
	}
	return err == nil, err
}

// takeIndex gives the index, of a slot that nobody has, that was given back longest ago: its addresses are not used again at once.
func (l *locks) takeIndex() (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range l.most {
		i := l.next % l.most
		l.next++
		if l.used[i] {
			continue
		}
		free, err := lock(l.slots, i, unix.F_WRLCK)
		if err != nil {
			return 0, fmt.Errorf("lock slot %d: %w", i, err)
		}
		if free {
			l.used[i] = true
			return i, nil
		}
	}
	return 0, errAllUsed
}

var errAllUsed = errors.New("all slots of this host are in use")

// giveIndex takes back a slot's index of which nothing is left.
func (l *locks) giveIndex(i int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.used, i)
	_, _ = lock(l.slots, i, unix.F_UNLCK) // it fails for a closed file only, and that has no locks
}

// change runs f while no other Host of this machine changes what all have in common. alone is whether no other lives. Afterwards this one
// does.
func (l *locks) change(ctx context.Context, f func(alone bool) error) error {
	alone, err := l.begin(ctx)
	if err != nil {
		return err
	}
	err = f(alone)
	_, shared := lock(l.hosts, byteAlive, unix.F_RDLCK)
	_, unlocked := lock(l.hosts, byteChange, unix.F_UNLCK)
	return errors.Join(err, shared, unlocked)
}

// leave is a last change: with its end this Host is gone, and all that it had locked is free.
func (l *locks) leave(ctx context.Context, f func(alone bool) error) error {
	alone, err := l.begin(ctx)
	if err == nil {
		err = f(alone)
	}
	return errors.Join(err, l.slots.Close(), l.hosts.Close())
}

func (l *locks) begin(ctx context.Context) (alone bool, err error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		got, err := lock(l.hosts, byteChange, unix.F_WRLCK)
		if err != nil {
			return false, err
		}
		if got {
			if alone, err = lock(l.hosts, byteAlive, unix.F_WRLCK); err != nil { // then nobody changes anything
				_, unlocked := lock(l.hosts, byteChange, unix.F_UNLCK)
				err = errors.Join(err, unlocked)
			}
			return alone, err
		}
		select { // another process's lock: nothing tells us
		case <-time.After(wait):
		case <-ctx.Done():
			return false, fmt.Errorf("wait for another worker's change: %w", context.Cause(ctx))
		}
	}
}

// common checks that this Host says the same of what all have in common, as text; the first says it for all.
func (l *locks) common(alone bool, text string) error {
	if alone {
		if err := l.hosts.Truncate(0); err != nil {
			return err
		}
		_, err := l.hosts.WriteAt([]byte(text), 0)
		return err
	}
	had, err := io.ReadAll(io.NewSectionReader(l.hosts, 0, 1<<16))
	if err == nil && string(had) != text {
		err = fmt.Errorf("another worker of this host has %s, this one %s", had, text)
	}
	return err
}
