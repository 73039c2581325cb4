package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Snapshots is the part of a store that keeps snapshots, shared by processes. Its methods may be called concurrently.
//
//	snapshots/kept/ID      a snapshot's files and manifest
//	snapshots/parts/SHA    what several need, linked where the file system can
//	snapshots/flat/ID      a template made of a snapshot and its ancestors: a cache
//
// The lock "snapshots" is shared by who makes, opens and verifies, and taken alone by who removes. A snapshot is in use while somebody
// has its directory locked (flock(2)); the kernel gives such a lock back when a process dies. What is removed is first renamed, so that
// a crash leaves nothing that is half there.
type Snapshots struct {
	store *Store
	dir   string
	made  chan struct{} // filled when this process has made one

	mu       sync.Mutex
	verified map[string]os.FileInfo // files whose content this process has seen to be right, as they were then
	listed   []Snapshot             // what was read when the directory was last changed at listedAt
	listErr  error
	listedAt time.Time
}

const (
	snapshotsLock = "snapshots"
	namesLock     = "snapshot-names"
	// tmpSuffix ends what is being made, goneSuffix what is being removed.
	tmpSuffix  = ".tmp"
	goneSuffix = ".rm"
)

// Snapshots opens the store's snapshots.
func (s *Store) Snapshots() (*Snapshots, error) {
	n := &Snapshots{store: s, dir: filepath.Join(s.dir, "snapshots"), made: make(chan struct{}, 1), verified: map[string]os.FileInfo{}}
	for _, sub := range []string{"kept", "parts", "flat"} {
		if err := os.MkdirAll(filepath.Join(n.dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("open snapshots: %w", err)
		}
	}
	return n, nil
}

func (n *Snapshots) kept(id string) string { return filepath.Join(n.dir, "kept", id) }
func (n *Snapshots) flat(id string) string { return filepath.Join(n.dir, "flat", id) }

// part is the file of a part.
func (n *Snapshots) part(p Part) string { return filepath.Join(n.dir, "parts", p.SHA256) }

func (n *Snapshots) shared(ctx context.Context) (release func(), err error) {
	return n.store.flock(ctx, snapshotsLock, syscall.LOCK_SH)
}

func (n *Snapshots) alone(ctx context.Context) (release func(), err error) {
	return n.store.flock(ctx, snapshotsLock, syscall.LOCK_EX)
}

// settled is how long after its last change a directory's time tells of every change: file systems count in ticks.
const settled = 100 * time.Millisecond

// List gives all snapshots, the oldest first. Its error names those that cannot be read; the others are given all the same.
func (n *Snapshots) List() ([]Snapshot, error) {
	info, err := os.Stat(filepath.Join(n.dir, "kept"))
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	list, listErr, at := n.listed, n.listErr, n.listedAt
	n.mu.Unlock()
	if at.Equal(info.ModTime()) && listErr == nil {
		return list, nil
	}
	list, listErr = n.read()
	if time.Since(info.ModTime()) > settled {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.listed, n.listErr, n.listedAt = list, listErr, info.ModTime()
		if listErr == nil {
			n.forgetGone(list)
		}
	}
	return list, listErr
}

// forgetGone forgets what has been seen of the files of snapshots that are not there any more, whoever has removed them; n.mu is held.
func (n *Snapshots) forgetGone(list []Snapshot) {
	there := map[string]bool{}
	for _, s := range list {
		there[s.dir], there[n.flat(s.ID)] = true, true
		for _, p := range s.parts() {
			there[n.part(p)] = true
		}
	}
	maps.DeleteFunc(n.verified, func(file string, _ os.FileInfo) bool { return !there[file] && !there[filepath.Dir(file)] })
}

func (n *Snapshots) read() (list []Snapshot, err error) {
	entries, err := os.ReadDir(filepath.Join(n.dir, "kept"))
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || strings.HasSuffix(e.Name(), tmpSuffix) || strings.HasSuffix(e.Name(), goneSuffix) {
			continue
		}
		s, err := readSnapshot(n.kept(e.Name()))
		if errors.Is(err, ErrNoSnapshot) {
			continue // just removed
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b Snapshot) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return list, errors.Join(errs...)
}

// Get gives a snapshot by its id.
func (n *Snapshots) Get(id string) (Snapshot, error) {
	if _, err := jobs.ParseID(id); err != nil {
		return Snapshot{}, fmt.Errorf("%w: %q is no id", ErrNoSnapshot, id)
	}
	return readSnapshot(n.kept(id))
}

// Find gives a snapshot by what people say: its image ("snapshot:TENANT/NAME", "TENANT/NAME"), its name where no other tenant has one of
// that name, its id, or as much of that as is one snapshot's alone.
func (n *Snapshots) Find(ref string) (Snapshot, error) {
	if _, err := jobs.ParseID(ref); err == nil {
		return n.Get(ref)
	}
	list, listErr := n.List()
	var found []Snapshot
	for _, match := range []func(s Snapshot) bool{
		func(s Snapshot) bool { return s.Image == ref || s.Image == jobs.SnapshotPrefix+ref },
		func(s Snapshot) bool { return s.Name == ref },
		func(s Snapshot) bool { return len(ref) >= 4 && strings.HasPrefix(s.ID, ref) },
	} {
		for _, s := range list {
			if match(s) {
				found = append(found, s)
			}
		}
		if len(found) > 0 {
			break
		}
	}
	switch len(found) {
	case 0:
		return Snapshot{}, errors.Join(fmt.Errorf("%w: %s", ErrNoSnapshot, ref), listErr)
	case 1:
		return found[0], nil
	}
	return Snapshot{}, fmt.Errorf("%q is %d snapshots: say which by its id: %s, %s", ref, len(found), found[0].ID, found[1].ID)
}

// named gives a tenant's snapshot by its image.
func (n *Snapshots) named(image string) (Snapshot, error) {
	list, listErr := n.List()
	for _, s := range list {
		if s.Image == image {
			return s, nil
		}
	}
	return Snapshot{}, errors.Join(fmt.Errorf("%w: %s", ErrNoSnapshot, image), listErr)
}

// maxLine is how many ancestors a snapshot may have: each is read when it is opened.
const maxLine = 64

// Line gives a snapshot and its ancestors, parents first.
func (n *Snapshots) Line(s Snapshot) ([]Snapshot, error) {
	line := []Snapshot{s}
	for s.Parent != "" {
		if len(line) > maxLine {
			return nil, fmt.Errorf("snapshot %s: it has more than %d ancestors", line[0].ID, maxLine)
		}
		p, err := readSnapshot(n.kept(s.Parent))
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: ancestor %s: %w", line[0].ID, s.Parent, err)
		}
		line, s = append(line, p), p
	}
	slices.Reverse(line)
	return line, nil
}

// inUse tells whether somebody has a snapshot open.
func (n *Snapshots) inUse(id string) (bool, error) {
	release, err := flockDir(n.kept(id), syscall.LOCK_EX)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	release()
	return false, nil
}

// flockDir locks a directory. Who shares it waits for a moment in which somebody asks whether it is in use; who wants it alone does not wait.
func flockDir(dir string, how int) (release func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if how == syscall.LOCK_EX {
		how |= syscall.LOCK_NB
	}
	for {
		if err = syscall.Flock(int(d.Fd()), how); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		_ = d.Close()
		return nil, err
	}
	return func() { _ = d.Close() }, nil
}
