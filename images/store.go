package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/paddockvm/paddock/jobs"
)

// Store is a directory of images, shared by processes: blobs by their content, manifests by their image's name, finished build stages,
// and the templates of hosts.
type Store struct {
	dir string

	mu       sync.Mutex
	verified map[string]os.FileInfo  // blobs whose content this process has seen to be right, as they were then
	read     map[string]readManifest // images by name
}

// Manifest is what an image is made of. Its digest is the sha256 of its JSON.
type Manifest struct {
	Format int    `json:"format"`
	Recipe Recipe `json:"recipe"`
	Kernel Part   `json:"kernel"`
	Initrd Part   `json:"initrd"`
	Root   Part   `json:"root"`
	// Scratch is the formatted disk of which every machine gets a copy.
	Scratch Part   `json:"scratch"`
	Cmdline string `json:"cmdline"`
	// Agent is the agent binary's sha256.
	Agent string `json:"agent"`
}

// ManifestFormat changes when older manifests cannot be used any more.
const ManifestFormat = 1

// Image is an image in a store.
type Image struct {
	Name     string
	Digest   string
	Manifest Manifest
	// The parts' files.
	Kernel, Initrd, Root, Scratch string
}

// ErrNoImage is returned for a name that is not in the store.
var ErrNoImage = errors.New("no such image")

// Open gives the store in dir, which is made if need be.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for _, sub := range []string{"blobs", "images", "stages", "templates", "locks", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	return &Store{dir: dir, verified: map[string]os.FileInfo{}, read: map[string]readManifest{}}, nil
}

// Dir is the store's directory.
func (s *Store) Dir() string { return s.dir }

func (s *Store) manifestFile(name string) string {
	return filepath.Join(s.dir, "images", name+".json")
}

// Blob is the file of a part.
func (s *Store) Blob(p Part) string { return filepath.Join(s.dir, "blobs", p.SHA256) }

// Get gives an image without looking at its parts' content. It is asked for with every job: a manifest is read when its file is new.
func (s *Store) Get(name string) (Image, error) {
	if !nameRE.MatchString(name) {
		return Image{}, fmt.Errorf("%w: %q is no image's name", ErrNoImage, name)
	}
	now, err := os.Stat(s.manifestFile(name))
	if errors.Is(err, fs.ErrNotExist) {
		s.mu.Lock()
		delete(s.read, name)
		s.mu.Unlock()
		return Image{}, fmt.Errorf("%w: %s", ErrNoImage, name)
	}
	if err != nil {
		return Image{}, err
	}
	s.mu.Lock()
	r := s.read[name]
	s.mu.Unlock()
	if r.file != nil && unchanged(r.file, now) {
		return r.image, nil
	}
	img, err := s.readImage(name)
	if err != nil {
		return img, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read[name] = readManifest{now, img}
	return img, nil
}

// readManifest is what a process has read of an image, and which file it was.
type readManifest struct {
	file  os.FileInfo
	image Image
}

// unchanged tells whether a file is the one that it was: one is replaced, never written to.
func unchanged(then, now os.FileInfo) bool {
	return os.SameFile(then, now) && then.ModTime().Equal(now.ModTime()) && then.Size() == now.Size()
}

func (s *Store) readImage(name string) (Image, error) {
	b, err := readRegular(s.manifestFile(name))
	if errors.Is(err, fs.ErrNotExist) {
		return Image{}, fmt.Errorf("%w: %s", ErrNoImage, name)
	}
	if err != nil {
		return Image{}, err
	}
	m, err := parseManifest(name, b)
	if err != nil {
		return Image{}, err
	}
	sum := sha256.Sum256(b)
	return Image{
		Name: name, Digest: hex.EncodeToString(sum[:]), Manifest: m,
		Kernel: s.Blob(m.Kernel), Initrd: s.Blob(m.Initrd), Root: s.Blob(m.Root), Scratch: s.Blob(m.Scratch),
	}, nil
}

var sha256RE = regexp.MustCompile(`^[0-9a-f]{64}$`)

// parseManifest reads the manifest that stands under a name. What it says is used in paths.
func parseManifest(name string, b []byte) (Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("manifest of %s: %w: build it anew", name, err)
	}
	if m.Format != ManifestFormat {
		return m, fmt.Errorf("%w: %s has the format %d of another version: build it anew", ErrNoImage, name, m.Format)
	}
	if m.Recipe.Name != name {
		return m, fmt.Errorf("manifest of %s: it is that of %q: build it anew", name, m.Recipe.Name)
	}
	for _, p := range []struct {
		name string
		Part
	}{{"kernel", m.Kernel}, {"initrd", m.Initrd}, {"root", m.Root}, {"scratch", m.Scratch}} {
		if !sha256RE.MatchString(p.SHA256) {
			return m, fmt.Errorf("manifest of %s: %s: %q is no sha256: build it anew", name, p.name, p.SHA256)
		}
	}
	return m, nil
}

// filesOf gives the paths of what is in a directory and ends so. It is not filepath.Glob: that takes the directory's own name for a pattern, and an
// error for a directory in which nothing is. What is not listed is taken for unused, and removed.
func filesOf(dir, suffix string) (paths []string, _ error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}

// List gives all images, by name. Its error names those that cannot be read; the others are given all the same.
func (s *Store) List() ([]Image, error) {
	files, err := filesOf(filepath.Join(s.dir, "images"), ".json")
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var list []Image
	var errs []error
	for _, f := range files {
		img, err := s.Get(strings.TrimSuffix(filepath.Base(f), ".json"))
		if errors.Is(err, ErrNoImage) {
			continue // of another version, or just removed
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, img)
	}
	return list, errors.Join(errs...)
}

// OpenImage gives an image whose parts are all what its manifest says. A process reads each blob once, and again when it has been touched.
func (s *Store) OpenImage(ctx context.Context, name string) (Image, error) {
	for {
		img, err := s.Get(name)
		if err != nil {
			return img, err
		}
		err = s.wholeImage(ctx, img)
		if err == nil {
			return img, nil
		}
		if now, gone := s.Get(name); gone == nil && now.Digest != img.Digest {
			continue // it was built anew, and what it was made of has been removed
		}
		return img, fmt.Errorf("image %s: %w; building it anew mends it", name, err)
	}
}

func (s *Store) wholeImage(ctx context.Context, img Image) error {
	for _, p := range img.parts() {
		if err := s.whole(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// Verify reads all parts of an image again; the error names each corrupt file.
func (s *Store) Verify(ctx context.Context, name string) error {
	img, err := s.Get(name)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range img.parts() {
		errs = append(errs, s.check(ctx, p))
	}
	return errors.Join(errs...)
}

// whole is check, but for a file that has been seen to be right and is as it was then.
func (s *Store) whole(ctx context.Context, p Part) error {
	now, err := os.Stat(s.Blob(p))
	if err != nil {
		return err
	}
	s.mu.Lock()
	then := s.verified[p.SHA256]
	s.mu.Unlock()
	if then != nil && unchanged(then, now) {
		return nil
	}
	return s.check(ctx, p)
}

func (s *Store) check(ctx context.Context, p Part) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	before, err := os.Stat(s.Blob(p))
	if err == nil {
		err = p.Check(s.Blob(p))
	}
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.verified, p.SHA256)
		return err
	}
	return s.note(p, before)
}

// note remembers a blob that is right, as it was then, and forgets those that are not there any more, whoever has removed them.
func (s *Store) note(p Part, then os.FileInfo) error {
	there, err := os.ReadDir(filepath.Join(s.dir, "blobs"))
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.verified
	s.verified = map[string]os.FileInfo{p.SHA256: then}
	for _, e := range there {
		if info := was[e.Name()]; info != nil && e.Name() != p.SHA256 {
			s.verified[e.Name()] = info
		}
	}
	return nil
}

func (i *Image) parts() []Part {
	m := &i.Manifest
	return []Part{m.Kernel, m.Initrd, m.Root, m.Scratch}
}

// Size is what the image takes on disk, in bytes, holes not counted.
func (i *Image) Size() (n int64) {
	for _, f := range []string{i.Kernel, i.Initrd, i.Root, i.Scratch} {
		var st syscall.Stat_t
		if syscall.Stat(f, &st) == nil {
			n += st.Blocks * 512
		}
	}
	return n
}

// Resources are the machine's size where a job names none.
func (i *Image) Resources() jobs.Resources {
	r := i.Manifest.Recipe.Resources
	return jobs.Resources{VCPUs: r.VCPUs, MemoryMiB: r.MemoryMiB}
}

// AllowsRoot tells whether a job's steps may run as root.
func (i *Image) AllowsRoot() bool {
	allow := i.Manifest.Recipe.AllowRoot
	return allow == nil || *allow
}

// Env is the environment of every program in the image.
func (i *Image) Env() []string {
	vars := map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	maps.Copy(vars, i.Manifest.Recipe.Env)
	var env []string
	for k, v := range vars {
		env = append(env, k+"="+v)
	}
	slices.Sort(env)
	return env
}

// Publish gives a manifest its name, atomically and durably. Its parts are in the store already. It, Temp, Adopt and PutStage are for
// whoever holds the store (Hold).
func (s *Store) Publish(m Manifest) (Image, error) {
	m.Format = ManifestFormat
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return Image{}, err
	}
	if err := s.writeFile(s.manifestFile(m.Recipe.Name), append(b, '\n')); err != nil {
		return Image{}, fmt.Errorf("publish %s: %w", m.Recipe.Name, err)
	}
	return s.Get(m.Recipe.Name)
}

// Adopt moves a finished file into the store under its content's name. The file must be in the store's Temp.
func (s *Store) Adopt(file string) (Part, error) {
	p, err := PartOf(file)
	if err != nil {
		return p, err
	}
	return p, s.adopt(file, p)
}

// AdoptSparse is Adopt for a disk that is mostly holes.
func (s *Store) AdoptSparse(file string) (Part, error) {
	p, err := SparsePartOf(file)
	if err != nil {
		return p, err
	}
	return p, s.adopt(file, p)
}

func (s *Store) adopt(file string, p Part) error {
	if err := os.Chmod(file, 0o444); err != nil {
		return err
	}
	if err := syncFile(file); err != nil {
		return err
	}
	if err := os.Rename(file, s.Blob(p)); err != nil {
		return err
	}
	return syncFile(filepath.Join(s.dir, "blobs"))
}

// Has tells whether the part's file is there, and whole: a build does not go on from a corrupt one.
func (s *Store) Has(ctx context.Context, p Part) bool {
	return sha256RE.MatchString(p.SHA256) && s.whole(ctx, p) == nil
}

// Temp makes a directory for work in progress.
func (s *Store) Temp(pattern string) (string, error) {
	return os.MkdirTemp(filepath.Join(s.dir, "tmp"), pattern)
}

// Stage gives what a finished build stage left under its key; false if there is none.
func (s *Store) Stage(key string, into any) bool {
	b, err := readRegular(filepath.Join(s.dir, "stages", key+".json"))
	return err == nil && json.Unmarshal(b, into) == nil
}

// PutStage notes a finished build stage.
func (s *Store) PutStage(key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.writeFile(filepath.Join(s.dir, "stages", key+".json"), b)
}

// writeFile replaces a file atomically and durably.
func (s *Store) writeFile(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "file-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncFile(filepath.Dir(name))
}

// syncFile makes a file, or a directory's entries, durable.
func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
