package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Remove takes an image's name away, and with it the blobs and templates that nothing else names. It waits for builds to end. A machine
// that runs keeps what it has open; no new one can be made.
func (s *Store) Remove(ctx context.Context, name string) error {
	if !nameRE.MatchString(name) {
		return fmt.Errorf("%w: %q is no image's name", ErrNoImage, name)
	}
	release, err := s.Lock(ctx, "image-"+name)
	if err != nil {
		return err
	}
	defer release()
	alone, err := s.Lock(ctx, storeLock)
	if err != nil {
		return err
	}
	defer alone()
	err = os.Remove(s.manifestFile(name)) // readable or not
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNoImage, name)
	}
	if err != nil {
		return err
	}
	return errors.Join(syncFile(filepath.Join(s.dir, "images")), s.collect())
}

// collect removes the templates, stages and blobs that no image names. The store is locked: nobody builds.
func (s *Store) collect() error {
	list, err := s.List()
	if err != nil {
		return fmt.Errorf("what the removed image was made of stays, since it may be another's: %w", err)
	}
	images, used := map[string]bool{}, map[string]bool{}
	for _, img := range list {
		images[img.Digest] = true
		for _, p := range img.parts() {
			used[p.SHA256] = true
		}
	}
	errs := []error{s.sweep(), s.removeTemplates(func(t storedTemplate) bool { return !images[t.Image] })}
	stages, _ := filepath.Glob(filepath.Join(s.dir, "stages", "*.json"))
	for _, f := range stages {
		var parts map[string]Part
		b, err := os.ReadFile(f)
		if err != nil || json.Unmarshal(b, &parts) != nil || !used[parts["root"].SHA256] {
			errs = append(errs, os.Remove(f))
			continue
		}
		for _, p := range parts {
			used[p.SHA256] = true
		}
	}
	blobs, err := os.ReadDir(filepath.Join(s.dir, "blobs"))
	if err != nil {
		return err
	}
	for _, b := range blobs {
		if !used[b.Name()] {
			errs = append(errs, os.Remove(filepath.Join(s.dir, "blobs", b.Name())))
		}
	}
	return errors.Join(errs...)
}
