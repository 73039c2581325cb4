package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Remove takes an image's name away, and with it the blobs and templates that nothing else names. It waits for builds to end. A machine
// that runs keeps what it has open; no new one can be made.
func (s *Store) Remove(ctx context.Context, name string) error {
	if !nameRE.MatchString(name) {
		return fmt.Errorf("%w: %q is no image's name", ErrNoImage, name)
	}
	release, err := s.Lock(ctx, ImageLock(name))
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
	list, err := s.all()
	if err != nil {
		return fmt.Errorf("what the removed image was made of stays, since it may be another's: %w", err)
	}
	images := map[string]bool{}
	for _, img := range list {
		images[img.Digest] = true
	}
	return errors.Join(s.sweep(), s.removeTemplates(func(t storedTemplate) bool { return !images[t.Image] }), s.removeUnused(list, 0))
}

// stageKept is how long a stage is kept that no image is made of: a build that died goes on from what it had finished.
const stageKept = 24 * time.Hour

// tidy removes what an image was made of before it was built anew, as soon as no template is of that any more, and what builds have left that
// died. Nothing goes that might be an image's which this version cannot read. The store is locked: nobody builds.
func (s *Store) tidy() error {
	err := s.sweep()
	list, unreadable := s.all()
	if unreadable != nil { // `image ls` says which
		return err
	}
	return errors.Join(err, s.removeUnused(list, stageKept))
}

// all is List, but an image of another version is one that cannot be read.
func (s *Store) all() ([]Image, error) {
	files, err := filesOf(filepath.Join(s.dir, "images"), ".json")
	if err != nil {
		return nil, err
	}
	var list []Image
	var errs []error
	for _, f := range files {
		img, err := s.Get(strings.TrimSuffix(filepath.Base(f), ".json"))
		errs = append(errs, err)
		list = append(list, img)
	}
	return list, errors.Join(errs...)
}

// removeUnused removes the blobs that no image of the list, no template and no stage is of, and before that the stages that no image is of and
// that are older than is said. A crash in between leaves what the next goes on with: a blob goes after all that names it.
func (s *Store) removeUnused(list []Image, kept time.Duration) error {
	used := map[string]bool{}
	for _, img := range list {
		for _, p := range img.parts() {
			used[p.SHA256] = true
		}
	}
	errs := []error{s.removeStages(used, kept)}
	templates, err := s.templates()
	if err != nil {
		return err
	}
	for _, t := range templates { // of an image that was built anew, too: machines are cloned from it until there is another
		for _, file := range []string{t.Template.Boot.Kernel, t.Template.Boot.Initrd, t.Template.Boot.Root, t.Template.Boot.Scratch} {
			used[filepath.Base(file)] = true
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

// removeStages removes those whose root is not used, but for young ones, and adds the parts of the others to what is used.
func (s *Store) removeStages(used map[string]bool, kept time.Duration) error {
	stages, err := filesOf(filepath.Join(s.dir, "stages"), ".json")
	errs := []error{err}
	for _, f := range stages {
		var parts map[string]Part
		b, err := os.ReadFile(f)
		unreadable := err != nil || json.Unmarshal(b, &parts) != nil
		if unreadable || !used[parts["root"].SHA256] && !youngerThan(f, kept) {
			errs = append(errs, os.Remove(f))
			continue
		}
		for _, p := range parts {
			used[p.SHA256] = true
		}
	}
	return errors.Join(errs...)
}

func youngerThan(file string, age time.Duration) bool {
	info, err := os.Stat(file)
	return err == nil && time.Since(info.ModTime()) < age
}
