package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/checkpoint"
)

// Create keeps the state of a running machine that was cloned from t, as r says, and gives what it has kept. The machine stands still for milliseconds. Nothing that
// counts is left where it fails, or where this process dies.
func (n *Snapshots) Create(ctx context.Context, m vmm.Machine, t vmm.Template, caps vmm.Caps, o jobs.SnapshotOrigin, r jobs.SnapshotRequest) (s Snapshot, err error) {
	c, ok := m.(vmm.Checkpointer)
	if !ok {
		return Snapshot{}, fmt.Errorf("snapshot of %s: %w", m.ID(), vmm.ErrUnsupported)
	}
	if err := n.sweepIfAlone(ctx); err != nil {
		return Snapshot{}, err
	}
	release, err := n.shared(ctx)
	if err != nil {
		return Snapshot{}, err
	}
	defer release()
	if s, err = n.origin(t); err != nil {
		return s, err
	}
	s.Format, s.ID, s.CreatedAt = snapshotFormat, jobs.NewID(), time.Now().UTC()
	s.Tenant, s.Job, s.Worker, s.Tags = o.Tenant, o.Job, o.Worker, slices.Clone(r.Tags)
	if s.Name = r.Name; s.Name == "" {
		s.Name = s.ID
	}
	s.Image = jobs.SnapshotImage(s.Tenant, s.Name)
	s.Platform, s.Host = caps.Key(), hostKey(caps)
	if err := n.free(s); err != nil { // before the work; and again at its end
		return s, err
	}
	tmp := n.kept(s.ID) + tmpSuffix
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	for _, sub := range []string{"base", "delta"} {
		if err := os.MkdirAll(filepath.Join(tmp, sub), 0o755); err != nil {
			return s, err
		}
	}
	if err := n.take(ctx, c, &s, o.Last, r.Parent, tmp); err != nil {
		return s, err
	}
	if err := n.publish(ctx, &s, filepath.Join(tmp, "files")); err != nil {
		return s, err
	}
	select {
	case n.made <- struct{}{}:
	default: // it is full: who looks next sees this one too
	}
	return s, nil
}

// origin begins a snapshot with what the machine's template says.
func (n *Snapshots) origin(from vmm.Template) (s Snapshot, err error) {
	if filepath.Dir(from.Dir) == filepath.Join(n.dir, "flat") {
		p, err := n.Get(filepath.Base(from.Dir))
		if err != nil {
			return s, fmt.Errorf("what the machine was cloned from: %w", err)
		}
		s.Parent, s.Of, s.ImageDigest, s.Root, s.Env, s.NoRoot = p.ID, p.Of, p.ImageDigest, p.Root, p.Env, p.NoRoot
		return s, nil
	}
	t, err := readTemplate(from.Dir)
	if err != nil {
		return s, fmt.Errorf("the template that the machine was cloned from: %w", err)
	}
	img, err := n.store.Get(t.Name)
	if err == nil && img.Digest != t.Image {
		err = errors.New("it was built anew since")
	}
	if err != nil {
		return s, fmt.Errorf("the image that the machine is of: %w", err)
	}
	s.Of, s.ImageDigest, s.Root, s.Env, s.NoRoot = img.Name, img.Digest, img.Manifest.Root, img.Env(), !img.AllowsRoot()
	s.Base = &SnapshotBase{Template: t.Key, Memory: t.Files[checkpoint.MemoryFile], Scratch: img.Manifest.Scratch}
	if s.Base.Memory.SHA256 == "" {
		return s, fmt.Errorf("the template has no file %s: %w", checkpoint.MemoryFile, vmm.ErrUnsupported)
	}
	return s, errors.Join(n.adopt(img.Root, s.Root), n.adopt(img.Scratch, s.Base.Scratch),
		n.adopt(filepath.Join(from.Dir, checkpoint.MemoryFile), s.Base.Memory))
}

// adopt keeps a file as a part, whatever becomes of it where it is. One that is there and corrupt is put right: an image that was built anew because
// it was has files of the same content.
func (n *Snapshots) adopt(file string, p Part) error {
	to := n.part(p)
	err := os.Link(file, to)
	if err == nil {
		return nil
	}
	if errors.Is(err, os.ErrExist) {
		if sameFile(file, to) || n.check(stored{to, p}) == nil {
			return nil
		}
		if err := p.Check(file); err != nil {
			return fmt.Errorf("keep %s: %w", file, err)
		}
		link := to + "." + jobs.NewID() + tmpSuffix
		if err = os.Link(file, link); err == nil {
			return os.Rename(link, to)
		}
	}
	if !errors.Is(err, syscall.EXDEV) && !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EMLINK) {
		return fmt.Errorf("keep %s: %w", file, err)
	}
	return n.copyPart(file, to)
}

func sameFile(a, b string) bool {
	x, errA := os.Stat(a)
	y, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(x, y)
}

// copyPart puts a copy of a file into a part's place.
func (*Snapshots) copyPart(file, to string) error {
	tmp, err := os.CreateTemp(filepath.Dir(to), "*"+tmpSuffix)
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	src, err := os.Open(file)
	if err == nil {
		_, err = io.Copy(tmp, src)
		_ = src.Close() // only read
	}
	if err = errors.Join(err, tmp.Chmod(0o444), tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("keep %s: %w", file, err)
	}
	return os.Rename(tmp.Name(), to)
}

// take takes the checkpoint, compared with the parent that is wanted, and puts it into tmp/files.
func (n *Snapshots) take(ctx context.Context, c vmm.Checkpointer, s *Snapshot, last, parent, tmp string) error {
	switch parent {
	case "", jobs.ParentAuto, jobs.ParentNone:
		if last != "" && n.usable(ctx, last) { // a policy may not have kept it, and what is corrupt is no reason to lose the machine's state too
			s.Parent = last
		}
	default:
		s.Parent = parent
	}
	against, line, release, err := n.against(ctx, s, parent, tmp)
	if err != nil {
		return err
	}
	defer release()
	files, delta := filepath.Join(tmp, "files"), filepath.Join(tmp, "delta")
	point, err := c.Checkpoint(ctx, delta, against)
	if err != nil {
		return err
	}
	s.Driver, s.Boot = point.Driver, point.Boot
	s.Boot.Kernel, s.Boot.Initrd, s.Boot.Root, s.Boot.Scratch = "", "", "", ""
	s.PausedMS = float64(point.Paused.Microseconds()) / 1000
	s.MemoryBytes, s.ScratchBytes = point.MemoryBytes, point.ScratchBytes
	if s.Full = point.Full || parent == jobs.ParentNone; !s.Full {
		return os.Rename(delta, files)
	}
	if point.Full {
		err = os.Rename(delta, files)
	} else {
		err = n.flattenOnto(files, delta, s, line)
	}
	s.Parent, s.Base = "", nil
	return err
}

// usable tells whether a snapshot, and all that it depends on, is there and whole.
func (n *Snapshots) usable(ctx context.Context, id string) bool {
	s, err := n.Get(id)
	if err != nil {
		return false
	}
	line, err := n.Line(s)
	return err == nil && n.whole(ctx, line) == nil
}

// against gives what the machine is compared with, and the line that it ends. A snapshot that shall have no parent is compared with one too.
func (n *Snapshots) against(ctx context.Context, s *Snapshot, parent, tmp string) (t vmm.Template, line []Snapshot, release func(), err error) {
	if s.Parent == "" {
		dir := filepath.Join(tmp, "base")
		t = vmm.Template{Dir: dir, Boot: vmm.Boot{Scratch: n.part(s.Base.Scratch)}}
		return t, nil, func() {}, os.Link(n.part(s.Base.Memory), filepath.Join(dir, checkpoint.MemoryFile))
	}
	s.Base = nil
	p, err := n.Get(s.Parent)
	if err != nil {
		return t, nil, nil, fmt.Errorf("parent: %w", err)
	}
	if p.Tenant != s.Tenant || p.ImageDigest != s.ImageDigest {
		return t, nil, nil, fmt.Errorf("parent %s: %w", p.ID, errOtherLine)
	}
	if line, err = n.Line(p); err != nil {
		return t, nil, nil, err
	}
	if whole := parent == jobs.ParentNone; !whole && len(line) > maxLine {
		return t, nil, nil, fmt.Errorf("parent %s has %d ancestors, and no line may be longer: make a snapshot without a parent", p.ID, len(line)-1)
	}
	if release, err = flockDir(p.dir, syscall.LOCK_SH); err != nil {
		return t, nil, nil, err
	}
	if t, err = n.template(ctx, line); err != nil {
		release()
		return t, nil, nil, err
	}
	return t, line, release, nil
}

var errOtherLine = errors.New("it is another tenant's, or of another image")

// flattenOnto makes the whole files of a snapshot that was taken as a delta.
func (n *Snapshots) flattenOnto(files, delta string, s *Snapshot, line []Snapshot) error {
	if err := os.Mkdir(files, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(delta)
	if err != nil {
		return err
	}
	var layers []checkpoint.Layer
	for _, l := range line {
		layers = append(layers, checkpoint.Layer{Dir: l.dir, Files: wholeNames(l.Files)})
	}
	own := checkpoint.Layer{Dir: delta}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), checkpoint.IndexSuffix) {
			own.Files = append(own.Files, e.Name())
		}
	}
	first := *s
	if len(line) > 0 {
		first = line[0]
	}
	return checkpoint.Flatten(files, n.baseFile(first), append(layers, own))
}

// publish gives a snapshot whose files are in dir its manifest and its place.
func (n *Snapshots) publish(ctx context.Context, s *Snapshot, dir string) (err error) {
	if s.Files, err = hashFiles(dir); err != nil {
		return err
	}
	if s.StoredBytes, err = realSize(dir); err != nil {
		return err
	}
	if err := s.write(dir); err != nil {
		return err
	}
	if err := syncFile(filepath.Join(n.dir, "parts")); err != nil { // what it names is there before it is
		return err
	}
	release, err := n.store.Lock(ctx, namesLock)
	if err != nil {
		return err
	}
	defer release()
	if err := n.free(*s); err != nil {
		return err
	}
	s.dir = n.kept(s.ID)
	if err := os.Rename(dir, s.dir); err != nil {
		return err
	}
	if err := syncFile(filepath.Dir(s.dir)); err != nil {
		return errors.Join(err, n.remove(s.ID)) // whoever asked for it is told that there is none
	}
	return nil
}

// ErrNameTaken is a name that a tenant has given to another snapshot.
var ErrNameTaken = errors.New("another snapshot has that name")

// free checks that the name is nobody's. One that cannot be read has none: no job runs in it, and it keeps nobody from making others.
func (n *Snapshots) free(s Snapshot) error {
	list, _ := n.read()
	for _, other := range list {
		if other.Image == s.Image {
			return fmt.Errorf("%w: %s is %s", ErrNameTaken, s.Image, other.ID)
		}
	}
	return nil
}

// realSize is what a directory's files take on the disk.
func realSize(dir string) (sum int64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(dir, e.Name()), &st); err != nil {
			return 0, err
		}
		sum += st.Blocks * 512
	}
	return sum, nil
}
