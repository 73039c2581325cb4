package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/jobs"
)

// Errors of Remove.
var (
	ErrInUse       = errors.New("the snapshot is in use")
	ErrHasChildren = errors.New("other snapshots are the difference to it")
)

// Remove removes a snapshot that nobody uses and no other is the difference to. It waits for snapshots that are being made or opened.
func (n *Snapshots) Remove(ctx context.Context, id string) error {
	release, err := n.alone(ctx)
	if err != nil {
		return err
	}
	defer release()
	children, err := n.children(id)
	if err != nil {
		return err
	}
	if len(children) > 0 {
		return fmt.Errorf("snapshot %s: %w: %s", id, ErrHasChildren, strings.Join(ids(children), ", "))
	}
	if err := n.remove(id); err != nil {
		return err
	}
	return n.sweep()
}

// RemoveRebased is Remove, but first makes the snapshot's children hold all of their machines: they need no parent then.
func (n *Snapshots) RemoveRebased(ctx context.Context, id string) error {
	release, err := n.alone(ctx)
	if err != nil {
		return err
	}
	defer release()
	children, err := n.children(id)
	if err != nil {
		return err
	}
	if used, err := n.inUse(id); err != nil || used {
		return errors.Join(err, usedError(id, used))
	}
	for _, c := range children {
		if err := n.rebase(ctx, c); err != nil {
			return fmt.Errorf("rebase %s: %w", c.ID, err)
		}
	}
	if err := n.remove(id); err != nil {
		return err
	}
	return n.sweep()
}

func usedError(id string, used bool) error {
	if !used {
		return nil
	}
	return fmt.Errorf("snapshot %s: %w", id, ErrInUse)
}

func ids(list []Snapshot) (l []string) {
	for _, s := range list {
		l = append(l, s.ID)
	}
	return l
}

// children gives the snapshots that are the difference to one. While one cannot be read it may be among them, but for the one itself.
func (n *Snapshots) children(id string) (list []Snapshot, err error) {
	all, err := n.read()
	if err != nil {
		if _, own := readSnapshot(n.kept(id)); own == nil || len(all)+1 < n.count() {
			return nil, fmt.Errorf("one that cannot be read may be the difference to %s; remove it first: %w", id, err)
		}
	}
	for _, s := range all {
		if s.Parent == id {
			list = append(list, s)
		}
	}
	return list, nil
}

// count is how many snapshots there are, readable or not.
func (n *Snapshots) count() (count int) {
	entries, _ := os.ReadDir(filepath.Join(n.dir, "kept")) // it was read a moment ago
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), tmpSuffix) && !strings.HasSuffix(e.Name(), goneSuffix) {
			count++
		}
	}
	return count
}

// remove removes a snapshot and its template, unless somebody uses it; the store is locked.
func (n *Snapshots) remove(id string) error {
	release, err := flockDir(n.kept(id), syscall.LOCK_EX)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return usedError(id, true)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: %s", ErrNoSnapshot, id)
	case err != nil:
		return err
	}
	defer release()
	return errors.Join(removeDir(n.kept(id)), removeDir(n.flat(id)))
}

// rebase makes a snapshot whole, at one stroke: it keeps its id and what it is, and its children remain the difference to it.
func (n *Snapshots) rebase(ctx context.Context, s Snapshot) (err error) {
	release, err := flockDir(s.dir, syscall.LOCK_EX)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return usedError(s.ID, true)
	}
	if err != nil {
		return err
	}
	defer release()
	line, err := n.Line(s)
	if err != nil {
		return err
	}
	if err := n.whole(ctx, line); err != nil {
		return err
	}
	tmp := s.dir + tmpSuffix
	if err := errors.Join(os.RemoveAll(tmp), os.Mkdir(tmp, 0o755)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := n.flattenInto(tmp, line); err != nil {
		return err
	}
	s.Parent, s.Base, s.Full = "", nil, true
	if s.Files, err = hashFiles(tmp); err != nil {
		return err
	}
	if s.StoredBytes, err = realSize(tmp); err != nil {
		return err
	}
	if err := s.write(tmp); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, s.dir, unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("exchange its directories: %w", err)
	}
	return syncFile(filepath.Dir(s.dir))
}

// sweepIfAlone removes what those have left behind that died, where nobody else is at work.
func (n *Snapshots) sweepIfAlone(ctx context.Context) error {
	release, err := n.store.flock(ctx, snapshotsLock, syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	return n.sweep()
}

// sweep removes work in progress, of which there is none, what was being removed, and parts that no snapshot needs; the store is locked.
func (n *Snapshots) sweep() error {
	var errs []error
	for _, of := range []struct{ sub, suffix string }{{"kept", tmpSuffix}, {"kept", goneSuffix}, {"flat", tmpSuffix}, {"flat", goneSuffix}, {"parts", tmpSuffix}} {
		left, err := filesOf(filepath.Join(n.dir, of.sub), of.suffix)
		errs = append(errs, err)
		for _, f := range left {
			errs = append(errs, os.RemoveAll(f))
		}
	}
	list, err := n.read()
	if err != nil {
		return errors.Join(errs...) // parts may be those of one that cannot be read, which others have told of
	}
	used, there := map[string]bool{}, map[string]bool{}
	for _, s := range list {
		there[s.ID] = true
		for _, p := range s.parts() {
			used[p.SHA256] = true
		}
	}
	for sub, keep := range map[string]map[string]bool{"parts": used, "flat": there} {
		entries, err := os.ReadDir(filepath.Join(n.dir, sub))
		errs = append(errs, err)
		for _, e := range entries {
			if !keep[e.Name()] {
				errs = append(errs, os.RemoveAll(filepath.Join(n.dir, sub, e.Name())))
			}
		}
	}
	return errors.Join(append(errs, n.store.sweepLocks(there))...)
}

// flatLock is held by who makes a snapshot's template or removes it, within the lock "snapshots".
func flatLock(id string) string { return flatLockPrefix + id }

const flatLockPrefix = "snapshot-"

// sweepLocks removes the files of the locks of snapshots that are not there. Nobody has one, or waits for it: the lock "snapshots" is held alone.
func (s *Store) sweepLocks(there map[string]bool) error {
	files, err := os.ReadDir(filepath.Join(s.dir, "locks"))
	errs := []error{err}
	for _, f := range files {
		id, is := strings.CutPrefix(f.Name(), flatLockPrefix)
		if _, err := jobs.ParseID(id); is && err == nil && !there[id] {
			errs = append(errs, os.Remove(s.lockFile(f.Name())))
		}
	}
	return errors.Join(errs...)
}
