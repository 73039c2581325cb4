package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// storeLock keeps builds and collections apart: many builds, or one collection.
const storeLock = "store"

// ImageLock is the lock of who builds or removes an image.
func ImageLock(name string) string { return "image-" + name }

// Lock waits for the lock of that name, which processes on this host share, and gives its release. A process that dies gives it back.
// Who wants the store too (Hold) takes that last.
func (s *Store) Lock(ctx context.Context, name string) (release func(), err error) {
	return s.flock(ctx, name, syscall.LOCK_EX)
}

// LockTold is Lock, and calls told first where it has to wait for somebody.
func (s *Store) LockTold(ctx context.Context, name string, told func()) (release func(), err error) {
	if release, err = s.flock(ctx, name, syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
		return release, err
	}
	told()
	return s.Lock(ctx, name)
}

// Hold keeps what is in the store, named by an image or not yet, until its release: Remove waits for that. What builds have left behind
// that died, and what nothing needs any more (tidy), is removed before and after, where nobody else builds: the last of several does it.
func (s *Store) Hold(ctx context.Context) (release func(), err error) {
	if err := s.tidyIfAlone(ctx); err != nil {
		return nil, err
	}
	done, err := s.flock(ctx, storeLock, syscall.LOCK_SH)
	if err != nil {
		return nil, err
	}
	return func() {
		done()
		_ = s.tidyIfAlone(context.WithoutCancel(ctx)) // whoever builds next does it, and tells
	}, nil
}

func (s *Store) tidyIfAlone(ctx context.Context) error {
	release, err := s.flock(ctx, storeLock, syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	return errors.Join(s.tidy(), s.removeLocks(ctx))
}

// sweep removes work in progress, of which there is none, and templates that were being removed: the store is locked.
func (s *Store) sweep() error {
	var errs []error
	for _, of := range []struct{ sub, suffix string }{{"tmp", ""}, {"templates", templateTmp}, {"templates", goneSuffix}} {
		left, err := filesOf(filepath.Join(s.dir, of.sub), of.suffix)
		errs = append(errs, err)
		for _, f := range left {
			errs = append(errs, os.RemoveAll(f))
		}
	}
	return errors.Join(errs...)
}

// flock locks the file of that name, which may have been removed by whoever had it locked before (removeLock): then it is no lock any more.
func (s *Store) flock(ctx context.Context, name string, how int) (release func(), err error) {
	for {
		f, err := s.flockFile(ctx, name, how)
		if err != nil {
			return nil, err
		}
		is, err := f.Stat()
		now, gone := os.Stat(f.Name())
		if err == nil && gone == nil && os.SameFile(is, now) {
			return func() { _ = f.Close() }, nil
		}
		_ = f.Close()
		if err == nil && !errors.Is(gone, os.ErrNotExist) {
			err = gone
		}
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
	}
}

func (s *Store) flockFile(ctx context.Context, name string, how int) (*os.File, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	f, err := os.OpenFile(s.lockFile(name), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() {
		var err error
		for {
			if err = syscall.Flock(int(f.Fd()), how); !errors.Is(err, syscall.EINTR) {
				break
			}
		}
		locked <- err
	}()
	select {
	case err := <-locked:
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		return f, nil
	case <-ctx.Done():
		go func() { // the lock cannot be waited for less; it is given back as soon as it comes
			<-locked //nolint:errcheck // nobody waits for it any more
			_ = f.Close()
		}()
		return nil, context.Cause(ctx)
	}
}

func (s *Store) lockFile(name string) string { return filepath.Join(s.dir, "locks", name) }

// removeLocks removes the locks of templates and images that are not there and that nobody is at.
func (s *Store) removeLocks(ctx context.Context) error {
	files, err := os.ReadDir(filepath.Join(s.dir, "locks"))
	errs := []error{err}
	for _, f := range files {
		of := ""
		if key, is := strings.CutPrefix(f.Name(), templateLock("")); is {
			of = s.templateDir(key)
		} else if name, is := strings.CutPrefix(f.Name(), ImageLock("")); is {
			of = s.manifestFile(name)
		}
		if of == "" {
			continue
		}
		if _, err := os.Lstat(of); errors.Is(err, os.ErrNotExist) {
			errs = append(errs, s.removeLock(ctx, f.Name()))
		}
	}
	return errors.Join(errs...)
}

// removeLock removes a lock's file unless somebody has it locked. Who has opened it, and waits, locks the next.
func (s *Store) removeLock(ctx context.Context, name string) error {
	release, err := s.flock(ctx, name, syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	return os.Remove(s.lockFile(name))
}
