package images

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
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

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/checkpoint"
)

// ErrOtherHost is a snapshot that cannot be restored by this driver, on this host.
var ErrOtherHost = errors.New("the snapshot was taken elsewhere")

// Verify reads all that a snapshot depends on again: its own files, its ancestors', and the parts. The error names each corrupt file.
func (n *Snapshots) Verify(ctx context.Context, id string) error {
	release, err := n.shared(ctx)
	if err != nil {
		return err
	}
	defer release()
	s, err := n.Get(id)
	if err != nil {
		return err
	}
	line, err := n.Line(s)
	if err != nil {
		return err
	}
	n.forget(line)
	return n.whole(ctx, line)
}

// forget makes whole read all files of a line again.
func (n *Snapshots) forget(line []Snapshot) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range line {
		for _, name := range n.filesOf(s) {
			delete(n.verified, name.path)
		}
	}
}

// stored is a file and what it has to be.
type stored struct {
	path string
	Part
}

// filesOf are all files that a snapshot needs, but its manifest and its ancestors'.
func (n *Snapshots) filesOf(s Snapshot) (list []stored) {
	for _, name := range slices.Sorted(maps.Keys(s.Files)) {
		list = append(list, stored{filepath.Join(s.dir, name), s.Files[name]})
	}
	for _, p := range s.parts() {
		list = append(list, stored{n.part(p), p})
	}
	return list
}

// whole checks all files of a line; each is read once by a process, and again when it has been touched.
func (n *Snapshots) whole(ctx context.Context, line []Snapshot) error {
	var errs []error
	for _, s := range line {
		for _, f := range n.filesOf(s) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := n.check(f); err != nil {
				errs = append(errs, fmt.Errorf("snapshot %s: %w", s.ID, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (n *Snapshots) check(f stored) error {
	now, err := os.Stat(f.path)
	if err != nil {
		return err
	}
	n.mu.Lock()
	then := n.verified[f.path]
	n.mu.Unlock()
	if then != nil && unchanged(then, now) {
		return nil
	}
	if err := f.Check(f.path); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.verified[f.path] = now
	return nil
}

// here is what a snapshot has to have been taken on to be restored: a driver, what it says of itself, and this host.
type here struct{ driver, platform, host string }

// hereWith is costly: a host's processors are read.
func hereWith(driver string, caps vmm.Caps) here { return here{driver, caps.Key(), hostKey(caps)} }

// fits tells whether a snapshot can be restored.
func (s *Snapshot) fits(h here) error {
	for _, is := range []struct{ what, then, now string }{
		{"driver", s.Driver, h.driver}, {"hypervisor, machine type and processor", s.Platform, h.platform}, {"host's kernel and processor", s.Host, h.host},
	} {
		if is.then != is.now {
			return fmt.Errorf("%w: its %s: %s, and here %s", ErrOtherHost, is.what, is.then, is.now)
		}
	}
	return nil
}

// hostKey is what of a host its guests see: with KVM the processor, and what its kernel lets guests have of it. An emulated processor is
// the same everywhere.
func hostKey(caps vmm.Caps) string {
	if caps.Accel != "kvm" {
		return ""
	}
	var u unix.Utsname
	_ = unix.Uname(&u) // cannot fail
	cpu := sha256.New()
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		switch k = strings.TrimSpace(k); k {
		case "vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags":
			fmt.Fprintf(cpu, "%s=%s\n", k, v)
		case "": // the first processor's end
			return fmt.Sprintf("linux %s cpu %.16s", unix.ByteSliceToString(u.Release[:]), hex.EncodeToString(cpu.Sum(nil)))
		}
	}
	return fmt.Sprintf("linux %s", unix.ByteSliceToString(u.Release[:]))
}

// Open gives a template of which machines are clones of the snapshot, after all that it depends on has been checked: ancestors and parts are
// there and whole, and this is the driver and the host that it was taken on. The snapshot stays in use until release, and its template
// with it.
func (n *Snapshots) Open(ctx context.Context, id, driver string, caps vmm.Caps) (t vmm.Template, release func(), err error) {
	unlock, err := n.shared(ctx)
	if err != nil {
		return t, nil, err
	}
	defer unlock()
	s, err := n.Get(id)
	if err != nil {
		return t, nil, err
	}
	if err := s.fits(hereWith(driver, caps)); err != nil {
		return t, nil, fmt.Errorf("snapshot %s: %w", s.ID, err)
	}
	line, err := n.Line(s)
	if err != nil {
		return t, nil, err
	}
	release, err = flockDir(s.dir, syscall.LOCK_SH)
	if err != nil {
		return t, nil, fmt.Errorf("snapshot %s: %w", s.ID, err)
	}
	if t, err = n.template(ctx, line); err != nil {
		release()
		return t, nil, err
	}
	return t, sync.OnceFunc(release), nil
}

// template gives the flattened template of a line; the store is locked for sharing.
func (n *Snapshots) template(ctx context.Context, line []Snapshot) (t vmm.Template, err error) {
	s := line[len(line)-1]
	if err := n.whole(ctx, line); err != nil {
		return t, err
	}
	release, err := n.store.Lock(ctx, flatLock(s.ID))
	if err != nil {
		return t, err
	}
	defer release()
	dir := n.flat(s.ID)
	t = vmm.Template{Dir: dir, Driver: s.Driver, Boot: s.Boot}
	t.Boot.Root = n.part(s.Root)
	if _, ok := s.Files[checkpoint.ScratchFile]; ok {
		t.Boot.Scratch = filepath.Join(dir, checkpoint.ScratchFile)
	}
	err = n.flatWhole(s)
	hit := err == nil
	if !hit {
		if err := n.flatten(line, t); err != nil {
			return t, fmt.Errorf("snapshot %s: %w", s.ID, err)
		}
	}
	n.store.count(ctx, s.Of, hit)
	return t, errors.Join(touchTemplate(dir), n.removeFlats(ctx, flatsKept, s.ID))
}

// flatWhole tells whether the cached template is there and what it was.
func (n *Snapshots) flatWhole(s Snapshot) error {
	dir := n.flat(s.ID)
	m, err := readTemplate(dir)
	if err != nil {
		return err
	}
	if m.Key != s.ID || len(m.Files) == 0 {
		return fmt.Errorf("%w: %s", errNotWhole, dir)
	}
	for name, p := range m.Files {
		if err := n.check(stored{filepath.Join(dir, name), p}); err != nil {
			return err
		}
	}
	return nil
}

// flatten makes the template of a line.
func (n *Snapshots) flatten(line []Snapshot, t vmm.Template) error {
	s := line[len(line)-1]
	tmp := t.Dir + tmpSuffix
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		return err
	}
	if err := n.flattenInto(tmp, line); err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	return n.store.publishTemplate(tmp, t.Dir, templateManifest{
		Key: s.ID, Image: s.ImageDigest, Name: s.Image, Template: vmm.Template{Driver: s.Driver, Boot: s.Boot}, BuiltAt: time.Now().UTC(),
	})
}

func (n *Snapshots) flattenInto(dir string, line []Snapshot) error {
	var layers []checkpoint.Layer
	for _, s := range line {
		layers = append(layers, checkpoint.Layer{Dir: s.dir, Files: wholeNames(s.Files)})
	}
	return checkpoint.Flatten(dir, n.baseFile(line[0]), layers)
}

// baseFile gives the files of which a line's first snapshot is the difference.
func (n *Snapshots) baseFile(first Snapshot) func(name string) string {
	return func(name string) string {
		switch {
		case first.Base == nil:
			return filepath.Join(first.dir, name) // it is not there, and its name is told
		case name == checkpoint.ScratchFile:
			return n.part(first.Base.Scratch)
		}
		return n.part(first.Base.Memory)
	}
}

// wholeNames are the files without their indexes.
func wholeNames(files map[string]Part) (names []string) {
	for name := range files {
		if !strings.HasSuffix(name, checkpoint.IndexSuffix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// flatsKept is how many flattened templates stay that nobody uses: each costs a disk what the guest's memory held.
const flatsKept = 4

// removeFlats removes the flattened templates that nobody uses, but for one and for those that were used last.
func (n *Snapshots) removeFlats(ctx context.Context, keep int, but string) error {
	entries, err := os.ReadDir(filepath.Join(n.dir, "flat"))
	if err != nil {
		return err
	}
	type idle struct {
		id   string
		used time.Time
	}
	var list []idle
	for _, e := range entries {
		if e.Name() == but || strings.HasSuffix(e.Name(), tmpSuffix) {
			continue
		}
		used, err := n.inUse(e.Name())
		if used || err != nil && !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if info, err := os.Stat(filepath.Join(n.flat(e.Name()), templateManifestName)); err == nil {
			list = append(list, idle{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(list, func(a, b idle) int { return cmp.Or(b.used.Compare(a.used), cmp.Compare(a.id, b.id)) })
	var errs []error
	for _, f := range list[min(len(list), keep):] {
		errs = append(errs, n.removeFlat(ctx, f.id))
	}
	return errors.Join(errs...)
}

// removeFlat removes a flattened template, unless somebody makes or opens it just now.
func (n *Snapshots) removeFlat(ctx context.Context, id string) error {
	release, err := n.store.flock(ctx, flatLock(id), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	if used, err := n.inUse(id); used || err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return removeDir(n.flat(id))
}

// removeDir removes a directory that is never seen half.
func removeDir(dir string) error {
	gone := dir + goneSuffix
	if err := os.RemoveAll(gone); err != nil {
		return err
	}
	err := os.Rename(dir, gone)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return errors.Join(err, syncFile(filepath.Dir(dir)), os.RemoveAll(gone))
}

// fixed tells why a shape is not the snapshot's; its machines have no other.
func (s *Snapshot) fixed(shape jobs.Shape) error {
	own := s.shape()
	if shape.VCPUs != 0 && shape.VCPUs != own.VCPUs || shape.MemoryMiB != 0 && shape.MemoryMiB != own.MemoryMiB {
		return fmt.Errorf("a snapshot's machines have its own size, %d vCPUs and %d MiB; the job asks for %d and %d", own.VCPUs, own.MemoryMiB, shape.VCPUs, shape.MemoryMiB)
	}
	if shape.Headroom.VCPUs > max(own.VCPUs, own.Headroom.VCPUs) || shape.Headroom.MemoryMiB > max(own.MemoryMiB, own.Headroom.MemoryMiB) {
		return errors.New("the snapshot's machine cannot grow as far as the job's headroom")
	}
	if shape.NIC != own.NIC {
		if own.NIC {
			return errors.New("the snapshot's machine has a network card; the job asks for no network")
		}
		return errors.New("the snapshot's machine has no network card; the job asks for a network")
	}
	return nil
}

func (s *Snapshot) shape() jobs.Shape {
	return jobs.Shape{
		Resources: jobs.Resources{VCPUs: s.Boot.VCPUs, MemoryMiB: s.Boot.MemoryMiB},
		Headroom:  jobs.Resources{VCPUs: s.Boot.MaxVCPUs, MemoryMiB: s.Boot.MaxMemoryMiB}, NIC: s.Boot.NIC,
	}
}
