package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// storeLock keeps builds and collections apart: many builds, or one collection.
const storeLock = "store"

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
	return s.tidy()
}

// sweep removes work in progress, of which there is none, and templates that were being removed: the store is locked.
func (s *Store) sweep() error {
	var errs []error
	for _, pattern := range []string{"tmp/*", "templates/*" + templateTmp, "templates/*" + goneSuffix} {
		left, err := filepath.Glob(filepath.Join(s.dir, pattern))
		errs = append(errs, err)
		for _, f := range left {
			errs = append(errs, os.RemoveAll(f))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) flock(ctx context.Context, name string, how int) (release func(), err error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "locks", name), os.O_RDWR|os.O_CREATE, 0o644)
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
		return func() { _ = f.Close() }, nil
	case <-ctx.Done():
		go func() { // the lock cannot be waited for less; it is given back as soon as it comes
			<-locked //nolint:errcheck // nobody waits for it any more
			_ = f.Close()
		}()
		return nil, context.Cause(ctx)
	}
}
