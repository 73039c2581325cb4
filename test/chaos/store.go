package chaos

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// fill leaves a process no room on its disk. A NATS server, which gives up JetStream then until it is started anew, is started anew.
func fill(f *fleet, r *rand.Rand) *fault {
	p := member(f, r)
	if !p.mounted {
		return nil // without root, and of the database's processes, which keep their files elsewhere
	}
	file := filepath.Join(p.dir, "filler")
	node := false
	for _, n := range f.nodes {
		node = node || n == p
	}
	return &fault{
		on: []*process{p}, what: "no room on the disk of " + p.name, last: between(r, 2*time.Second, 8*time.Second),
		hurt: func(context.Context) error { return fillWith(file) },
		heal: func(ctx context.Context) error {
			if err := os.Remove(file); err != nil {
				return err
			}
			if node || !p.alive() {
				p.kill()
				return again(p)(ctx)
			}
			return nil
		},
	}
}

// fillWith writes a file until nothing fits any more.
func fillWith(name string) error {
	o, err := os.Create(name)
	if err != nil {
		return err
	}
	defer o.Close()
	for size := 1 << 20; size > 0; {
		if _, err := o.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			return err
		}
	}
	return nil
}

// rollback starts a NATS server, or all of them, from a copy of its store that is some seconds old: what it had acknowledged since is gone.
func rollback(f *fleet, r *rand.Rand) *fault {
	p := pick(r, f.nodes)
	list, what := []*process{p}, p.name
	if r.IntN(2) == 0 {
		list, what = f.nodes, "all NATS servers"
	}
	return &fault{
		on: list, what: "an older store for " + what, last: between(r, 2*time.Second, 5*time.Second),
		hurt: func(context.Context) error {
			var errs []error
			for _, n := range list { // all of them at one moment, as the snapshot of a disk is
				n.signal(syscall.SIGSTOP)
			}
			for _, n := range list {
				errs = append(errs, n.stopped(), copyTree(n.dir, n.dir+".old"))
			}
			for _, n := range list {
				n.signal(syscall.SIGCONT)
			}
			return errors.Join(errs...)
		},
		heal: func(ctx context.Context) error {
			for _, n := range list {
				n.kill()
			}
			for _, n := range list {
				if err := replaceTree(n.dir, n.dir+".old"); err != nil {
					return err
				}
				if err := n.start(); err != nil {
					return err
				}
			}
			for _, n := range list {
				if err := n.await(ctx); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// copyTree copies a directory that nobody writes to.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o644)
	})
}

// replaceTree puts the contents of old in the place of dir's, and removes old. dir itself, which may be a mount, stays.
func replaceTree(dir, old string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return errors.Join(copyTree(old, dir), os.RemoveAll(old))
}
