package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/paddockvm/paddock/vmm"
)

// This file keeps the store's template directories: each is named for its key, and its files are never changed. When its manifest was
// touched last is when it was used last.

// templateManifest stands beside a template's files.
type templateManifest struct {
	Key      string          `json:"key"`
	Image    string          `json:"image"` // the image manifest's digest
	Name     string          `json:"name"`
	Template vmm.Template    `json:"template"`
	Files    map[string]Part `json:"files"`
	BuiltAt  time.Time       `json:"built_at"`
}

func (s *Store) templateDir(key string) string { return filepath.Join(s.dir, "templates", key) }

// templateLock is held by who opens or builds a template.
func templateLock(key string) string { return "template-" + key }

const (
	templateManifestName = "paddock-template.json"
	// templateTmp ends the directory of a template that is being built.
	templateTmp = ".tmp"
)

// errNotWhole is a template that cannot be used any more. It is no loss: it is built again.
var errNotWhole = errors.New("template is not whole")

func readTemplate(dir string) (templateManifest, error) {
	var m templateManifest
	b, err := readRegular(filepath.Join(dir, templateManifestName))
	if _, corrupt := errors.AsType[*CorruptError](err); corrupt {
		return m, fmt.Errorf("%w: %w", errNotWhole, err)
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("%w: %s: %w", errNotWhole, filepath.Join(dir, templateManifestName), err)
	}
	return m, nil
}

// publishTemplate hashes a finished template and gives it its place.
func (s *Store) publishTemplate(tmp, dir string, m templateManifest) error {
	entries, err := os.ReadDir(tmp)
	if err != nil {
		return err
	}
	m.Files = map[string]Part{}
	for _, e := range entries {
		if m.Files[e.Name()], err = SparsePartOf(filepath.Join(tmp, e.Name())); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	// Not by way of the store's tmp: that of a snapshot is made without holding the store, and is swept by builds.
	if err := writeSynced(filepath.Join(tmp, templateManifestName), append(b, '\n'), 0o644); err != nil {
		return err
	}
	if err := errors.Join(touchTemplate(tmp), removeDir(dir), os.Rename(tmp, dir)); err != nil {
		return err
	}
	return syncFile(filepath.Dir(dir))
}

// touchTemplate notes that a template is used now.
func touchTemplate(dir string) error {
	now := time.Now()
	return os.Chtimes(filepath.Join(dir, templateManifestName), now, now)
}

// storedTemplate is a template in its place.
type storedTemplate struct {
	templateManifest
	dir  string
	used time.Time
}

// templates lists those that can be read.
func (s *Store) templates() ([]storedTemplate, error) {
	dirs, err := filesOf(filepath.Join(s.dir, "templates"), "")
	if err != nil {
		return nil, err
	}
	var list []storedTemplate
	for _, d := range dirs {
		info, err := os.Stat(filepath.Join(d, templateManifestName))
		if err != nil || strings.HasSuffix(d, templateTmp) || strings.HasSuffix(d, goneSuffix) {
			continue
		}
		if m, err := readTemplate(d); err == nil {
			list = append(list, storedTemplate{m, d, info.ModTime()})
		}
	}
	return list, nil
}

// removeTemplates removes those that are not wanted. A machine that still runs from one keeps what it has open.
func (s *Store) removeTemplates(unwanted func(storedTemplate) bool) error {
	list, err := s.templates()
	errs := []error{err}
	for _, t := range list {
		if unwanted(t) {
			errs = append(errs, removeDir(t.dir))
		}
	}
	return errors.Join(errs...)
}

// removeStale removes the templates of other builds of an image.
func (s *Store) removeStale(name, digest string) error {
	return s.removeTemplates(func(t storedTemplate) bool { return t.Name == name && t.Image != digest })
}

// sizesKept is how many templates an image has beside that of its own size: jobs may ask for machines of any size, and each costs a disk
// what the guest's memory held.
const sizesKept = 16

// removeLeastUsed removes the templates of an image that were used longest ago, but for its own size's and those that somebody opens or
// builds just now.
func (s *Store) removeLeastUsed(ctx context.Context, digest, own string) error {
	list, err := s.templates()
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(t storedTemplate) bool { return t.Image != digest || t.Key == own })
	slices.SortFunc(list, func(a, b storedTemplate) int { return b.used.Compare(a.used) })
	var errs []error
	for _, t := range list[min(len(list), sizesKept):] {
		release, err := s.flock(ctx, templateLock(t.Key), syscall.LOCK_EX|syscall.LOCK_NB)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, removeDir(t.dir))
		release()
	}
	return errors.Join(errs...)
}
