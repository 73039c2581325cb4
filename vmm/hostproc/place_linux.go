package hostproc

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// place is a machine's directory. It is locked for as long as the machine is there, and the kernel gives the lock back when this process dies.
type place struct {
	dir  string
	lock *os.File
}

// newPlace makes one below a directory, of a name that no other has.
func newPlace(below string) (place, error) {
	for {
		b := make([]byte, 8)
		_, _ = rand.Read(b) // never fails (crypto/rand)
		dir := filepath.Join(below, prefix+hex.EncodeToString(b))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return place{}, err
		}
		p, err := lockPlace(dir)
		if errors.Is(err, errTaken) || errors.Is(err, os.ErrNotExist) {
			continue // somebody who is starting took it for a dead one's before it was locked
		}
		return p, err
	}
}

const prefix = "m-"

// errTaken is a directory that somebody has locked.
var errTaken = errors.New("another has it")

func lockPlace(dir string) (place, error) {
	f, err := os.Open(dir)
	if err != nil {
		return place{}, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errTaken
	}
	if err == nil {
		_, err = os.Lstat(dir) // removed by who had it locked before
	}
	if err != nil {
		_ = f.Close()
		return place{}, err
	}
	return place{dir, f}, nil
}

// remove removes it with all that is in it.
func (p place) remove() error { return errors.Join(os.RemoveAll(p.dir), p.lock.Close()) }

// removeDead removes the directories of machines whose process has died: one that lives has its own locked. What cannot be removed, because
// something in it has outlived that process and writes there still, is left to who starts next.
func removeDead(below string) error {
	names, err := fs.Glob(os.DirFS(below), prefix+"*") // whatever characters below has
	for _, name := range names {
		if p, err := lockPlace(filepath.Join(below, name)); err == nil {
			_ = p.remove()
		}
	}
	return err
}
