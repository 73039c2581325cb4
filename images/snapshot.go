package images

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
)

// A Snapshot is a machine's state that is kept, by its manifest. It never changes; only what it is compared with may, when a parent is to go.
//
// Its files are in a directory named by its id: the devices' state and the driver's manifest whole, memory and scratch disk as deltas
// (package vmm/checkpoint) unless it is full. What it needs besides is in the store's parts, named by content: the image's root disk, and
// the template's memory and the image's scratch disk, of which the first of a line is the difference.
type Snapshot struct {
	Format int `json:"format"`
	jobs.Snapshot

	// ImageDigest is the image's, as it was.
	ImageDigest string `json:"image_digest"`
	Root        Part   `json:"root"`
	// Base is what the first of a line was compared with; nil for others, and for those that are full.
	Base *SnapshotBase `json:"base,omitempty"`
	// Env and NoRoot are the image's.
	Env    []string `json:"env,omitempty"`
	NoRoot bool     `json:"no_root,omitempty"`
	// Driver, Platform and Host are where it can be restored: the driver, what it says of itself (vmm.Caps.Key), and this host's kernel and
	// processor where guests see them.
	Driver   string `json:"driver"`
	Platform string `json:"platform"`
	Host     string `json:"host,omitempty"`
	// Boot is the machine's, without paths.
	Boot vmm.Boot `json:"boot"`
	// Files are the directory's, by name.
	Files map[string]Part `json:"files"`

	dir string
}

// SnapshotBase is the template of a line's first snapshot.
type SnapshotBase struct {
	Template string `json:"template"`
	Memory   Part   `json:"memory"`
	Scratch  Part   `json:"scratch"`
}

const (
	// snapshotFormat changes when older snapshots cannot be read any more.
	snapshotFormat = 1

	snapshotManifest = "paddock-snapshot.json"
	// snapshotSum holds the manifest's sha256, in the form of sha256sum(1): a flipped bit there has to be found too.
	snapshotSum = snapshotManifest + ".sha256"
)

// ErrNoSnapshot is returned for a reference that names none.
var ErrNoSnapshot = errors.New("no such snapshot")

// parts are those of the store that the snapshot needs itself.
func (s *Snapshot) parts() []Part {
	list := []Part{s.Root}
	if s.Base != nil {
		list = append(list, s.Base.Memory, s.Base.Scratch)
	}
	return list
}

// readSnapshot reads the manifest in dir, which has to be what its sum says.
func readSnapshot(dir string) (Snapshot, error) {
	s := Snapshot{dir: dir}
	name := filepath.Join(dir, snapshotManifest)
	b, err := readRegular(name)
	if errors.Is(err, os.ErrNotExist) {
		if _, gone := os.Stat(dir); errors.Is(gone, os.ErrNotExist) {
			return s, fmt.Errorf("%w: %s", ErrNoSnapshot, filepath.Base(dir))
		}
	}
	if err != nil {
		return s, err
	}
	sum, err := readRegular(filepath.Join(dir, snapshotSum))
	if err != nil {
		return s, err
	}
	if want := sumOf(b); !bytes.Equal(sum, want) {
		return s, fmt.Errorf("%s is corrupt, or its sum in %s is", name, snapshotSum)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s: %w", name, err)
	}
	if s.Format != snapshotFormat {
		return s, fmt.Errorf("%s has the format %d of another version", name, s.Format)
	}
	return s, s.plausible()
}

// plausible checks what of a manifest is used in paths.
func (s *Snapshot) plausible() error {
	if s.ID != filepath.Base(s.dir) {
		return fmt.Errorf("%s is the manifest of %q", filepath.Join(s.dir, snapshotManifest), s.ID)
	}
	for _, p := range s.parts() {
		if !sha256RE.MatchString(p.SHA256) {
			return fmt.Errorf("snapshot %s: %q is no sha256", s.ID, p.SHA256)
		}
	}
	for name := range s.Files {
		if name != filepath.Base(name) || name == "." || name == ".." {
			return fmt.Errorf("snapshot %s: %q is no file's name", s.ID, name)
		}
	}
	if s.Parent != "" {
		if _, err := jobs.ParseID(s.Parent); err != nil {
			return fmt.Errorf("snapshot %s: parent: %w", s.ID, err)
		}
	}
	return nil
}

// write puts the manifest, and its sum, beside the files in dir.
func (s *Snapshot) write(dir string) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	b = append(b, '\n')
	for name, content := range map[string][]byte{snapshotManifest: b, snapshotSum: sumOf(b)} {
		if err := writeSynced(filepath.Join(dir, name), content, 0o444); err != nil {
			return err
		}
	}
	return syncFile(dir)
}

func sumOf(b []byte) []byte {
	sum := sha256.Sum256(b)
	return fmt.Appendf(nil, "%s  %s\n", hex.EncodeToString(sum[:]), snapshotManifest)
}

func writeSynced(name string, b []byte, mode os.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// hashFiles gives the parts of all files in dir.
func hashFiles(dir string) (map[string]Part, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	files := map[string]Part{}
	for _, e := range entries {
		if files[e.Name()], err = SparsePartOf(filepath.Join(dir, e.Name())); err != nil {
			return nil, err
		}
	}
	return files, nil
}
