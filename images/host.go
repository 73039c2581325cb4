package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
)

// Host gives the templates that one driver needs on this host, from the images of a store. Its methods may be called concurrently.
type Host struct {
	Store  *Store
	Driver vmm.Driver
	Caps   vmm.Caps
	// BootWithin bounds a machine's boot and warm-up; 0 means 5 minutes: hosts without KVM are slow, nested ones slower.
	BootWithin time.Duration
	// Tap gives a tap interface, as vmm.Attach wants it, to boot machines with a network card; from it nothing can be reached. Nil where
	// no machine has one.
	Tap func(ctx context.Context) (tap *os.File, release func() error, err error)
	// Snapshots are offered as images too; nil: none are.
	Snapshots *Snapshots
	// Progress is told what a template's building does; nil for nobody.
	Progress func(image, stage string)

	host struct { // what its guests see of it: it does not change while a process runs, and takes milliseconds to be read
		once sync.Once
		key  string
	}

	mu     sync.Mutex
	opened map[string]bool     // templates whose files this process has seen to be right
	held   map[string][]func() // snapshots that are in use, by their templates' directories
}

// templateFormat changes when older templates cannot be used any more.
const templateFormat = 3

// Offered lists the images that this host can run; of snapshots no more than a heartbeat may carry.
func (h *Host) Offered() []jobs.OfferedImage {
	list, _ := h.Store.List() // one that cannot be read is not offered; `image ls` says why
	offered := make([]jobs.OfferedImage, 0, len(list))
	for _, img := range list {
		offered = append(offered, offer(img))
	}
	return append(offered, inTurns(h.offeredSnapshots(), maxOffered)...)
}

// Offer is one of them, by its name, a snapshot that Offered leaves out too: its job may be here already. False where it is not there.
func (h *Host) Offer(name string) (jobs.OfferedImage, bool) {
	if jobs.SnapshotTenant(name) != "" {
		list := h.offeredSnapshots()
		if i := slices.IndexFunc(list, func(o jobs.OfferedImage) bool { return o.Name == name }); i >= 0 {
			return list[i], true
		}
		return jobs.OfferedImage{}, false
	}
	img, err := h.Store.Get(name)
	if err != nil {
		return jobs.OfferedImage{}, false
	}
	return offer(img), true
}

// Templates lists the shapes of which the templates are there, by image, as far as they are of the images as they are now and for this
// host's driver: nothing has to be built for those, nor for a snapshot, of which it says nothing. Nil: its machines need none. Whether files are what they were is found out where a
// template is first used; one that is not is removed then.
func (h *Host) Templates() map[string][]jobs.Shape {
	if h.Caps.Accel == "none" {
		return nil
	}
	here := map[string][]jobs.Shape{}
	list, _ := h.Store.templates() // one that cannot be read is built anew
	for _, t := range list {
		b := t.Template.Boot
		img, err := h.Store.Get(t.Name)
		if key := h.key(img, b); err != nil || t.Key != key {
			continue
		}
		here[t.Name] = append(here[t.Name], jobs.Shape{
			Resources: jobs.Resources{VCPUs: b.VCPUs, MemoryMiB: b.MemoryMiB}, Headroom: jobs.Resources{VCPUs: b.MaxVCPUs, MemoryMiB: b.MaxMemoryMiB}, NIC: b.NIC,
		})
	}
	return here
}

func offer(img Image) jobs.OfferedImage {
	return jobs.OfferedImage{Name: img.Name, Digest: img.Digest, Resources: img.Resources(), NoRoot: !img.AllowsRoot()}
}

// Env is the environment of every program in the image; nil for an image that is not there.
func (h *Host) Env(image string) []string {
	if jobs.SnapshotTenant(image) != "" && h.Snapshots != nil {
		s, _ := h.Snapshots.named(image) // one that is not there has none
		return s.Env
	}
	img, err := h.Store.Get(image)
	if err != nil {
		return nil
	}
	return img.Env()
}

// Template gives the template of an image in a shape, with its digest. It is built where it is missing, once among all processes of
// this host, which takes seconds to minutes; its files are read and checked before their first use in this process.
func (h *Host) Template(ctx context.Context, image string, s jobs.Shape) (vmm.Template, string, error) {
	if jobs.SnapshotTenant(image) != "" {
		return h.snapshotTemplate(ctx, image, s)
	}
	img, err := h.Store.OpenImage(ctx, image)
	if err != nil {
		return vmm.Template{}, "", err
	}
	boot := bootOf(img, s)
	key := h.key(img, boot)
	release, err := h.Store.Lock(ctx, templateLock(key))
	if err != nil {
		return vmm.Template{}, "", err
	}
	defer release()
	t, err := h.open(key, boot)
	if errors.Is(err, errNotWhole) {
		zerolog.Ctx(ctx).Warn().Err(err).Str("image", image).Msg("template is built anew")
		if gone := removeDir(h.Store.templateDir(key)); gone != nil { // else it would be told of, however often it cannot be built
			return vmm.Template{}, "", errors.Join(err, gone)
		}
	}
	hit := err == nil
	if errors.Is(err, errNotWhole) || errors.Is(err, os.ErrNotExist) {
		t, err = h.build(ctx, img, boot, key)
	}
	if errors.Is(err, vmm.ErrUnsupported) { // a driver whose machines have no memory to keep
		return vmm.Template{Driver: h.Driver.Name(), Boot: vmm.Boot{VCPUs: boot.VCPUs, MemoryMiB: boot.MemoryMiB, NIC: boot.NIC}}, key, nil
	}
	if err != nil {
		return vmm.Template{}, "", fmt.Errorf("template of %s: %w", image, err)
	}
	h.Store.count(ctx, image, hit)
	return t, key, nil
}

// bootOf is a machine of an image in a shape, its size the image's own where s leaves it out.
func bootOf(img Image, s jobs.Shape) vmm.Boot {
	r := s.Resources
	own := img.Resources()
	if r.VCPUs == 0 {
		r.VCPUs = own.VCPUs
	}
	if r.MemoryMiB == 0 {
		r.MemoryMiB = own.MemoryMiB
	}
	b := vmm.Boot{
		Kernel: img.Kernel, Initrd: img.Initrd, Root: img.Root, Scratch: img.Scratch, Cmdline: img.Manifest.Cmdline,
		VCPUs: max(r.VCPUs, 1), MemoryMiB: r.MemoryMiB, NIC: s.NIC,
	}
	if s.Headroom.VCPUs > b.VCPUs {
		b.MaxVCPUs = s.Headroom.VCPUs
	}
	if s.Headroom.MemoryMiB > b.MemoryMiB {
		b.MaxMemoryMiB = s.Headroom.MemoryMiB
	}
	return b
}

// key is all that a template depends on. With KVM its guest has seen the host's processor, as the host's kernel lets it, and goes on using what
// it found there: a store may have come from another host, and a host may have come back with another kernel or microcode.
func (h *Host) key(img Image, b vmm.Boot) string {
	on := fmt.Sprintf("%d|%s|%s|%s|%d|%d|%t|%d|%d", templateFormat, h.Driver.Name(), h.Caps.Key(), img.Digest, b.VCPUs, b.MemoryMiB, b.NIC, b.MaxVCPUs, b.MaxMemoryMiB)
	h.host.once.Do(func() { h.host.key = hostKey(h.Caps) })
	if h.host.key != "" {
		on += "|" + h.host.key
	}
	sum := sha256.Sum256([]byte(on))
	return hex.EncodeToString(sum[:])
}

// open gives a template that is there and whole: os.ErrNotExist where there is none, errNotWhole with the file that is to blame.
func (h *Host) open(key string, b vmm.Boot) (vmm.Template, error) {
	dir := h.Store.templateDir(key)
	m, err := readTemplate(dir)
	if err != nil {
		return vmm.Template{}, err
	}
	if m.Key != key || m.Template.Driver != h.Driver.Name() || len(m.Files) == 0 {
		return vmm.Template{}, fmt.Errorf("%w: %s is of another", errNotWhole, filepath.Join(dir, templateManifestName))
	}
	h.mu.Lock()
	seen := h.opened[key]
	h.mu.Unlock()
	for name, p := range m.Files {
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); seen && err == nil && info.Size() == p.Size {
			continue
		}
		err := p.Check(file)
		if _, corrupt := errors.AsType[*CorruptError](err); corrupt || errors.Is(err, os.ErrNotExist) { // or another process died that was removing it
			return vmm.Template{}, fmt.Errorf("%w: %w", errNotWhole, err)
		}
		if err != nil {
			return vmm.Template{}, err
		}
	}
	if err := h.note(key); err != nil {
		return vmm.Template{}, err
	}
	if err := touchTemplate(dir); err != nil {
		return vmm.Template{}, err
	}
	// The paths are those of the store as it lies here: it may have been moved since.
	return vmm.Template{Dir: dir, Driver: m.Template.Driver, Boot: b}, nil
}

// note remembers a template whose files are right, and forgets those that are not there any more, whoever has removed them.
func (h *Host) note(key string) error {
	there, err := os.ReadDir(filepath.Dir(h.Store.templateDir(key)))
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.opened
	h.opened = map[string]bool{key: true}
	for _, e := range there {
		if was[e.Name()] {
			h.opened[e.Name()] = true
		}
	}
	return nil
}

// build boots the image, warms it, and snapshots it.
func (h *Host) build(ctx context.Context, img Image, b vmm.Boot, key string) (_ vmm.Template, err error) {
	within := h.BootWithin
	if within == 0 {
		within = 5 * time.Minute
	}
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("not booted and warmed within %s", within))
	defer cancel()
	release, err := h.Store.Hold(ctx)
	if err != nil {
		return vmm.Template{}, err
	}
	defer release()
	if now, err := h.Store.Get(img.Name); err != nil || now.Digest != img.Digest { // else the template would be nobody's, for ever
		return vmm.Template{}, errors.Join(err, fmt.Errorf("the image %.12s… was removed or built anew", img.Digest))
	}
	dir := h.Store.templateDir(key)
	tmp := dir + templateTmp
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil { // what a build that died has left
		return vmm.Template{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	start := time.Now()
	t, err := h.snapshot(ctx, img, b, tmp)
	if err != nil {
		return vmm.Template{}, err
	}
	if err := h.Store.publishTemplate(tmp, dir, templateManifest{Key: key, Image: img.Digest, Name: img.Name, Template: t, BuiltAt: time.Now().UTC()}); err != nil {
		return vmm.Template{}, err
	}
	zerolog.Ctx(ctx).Info().Str("image", img.Name).Dur("took", time.Since(start)).Msg("template built")
	t.Dir = dir
	own := h.key(img, bootOf(img, jobs.Shape{}))
	return t, errors.Join(h.Store.removeStale(img.Name, img.Digest), h.Store.removeLeastUsed(ctx, img.Digest, own), h.note(key))
}

// snapshot boots a machine of the image, warms it, and writes it into dir.
func (h *Host) snapshot(ctx context.Context, img Image, b vmm.Boot, dir string) (vmm.Template, error) {
	attach, detach, err := h.attach(ctx, b)
	if err != nil {
		return vmm.Template{}, err
	}
	defer detach() //nolint:errcheck // whoever gave it has it in its books
	m, err := h.Driver.Boot(ctx, b, attach)
	if err != nil {
		return vmm.Template{}, err
	}
	h.tell(img.Name, "boot")
	defer m.Close() //nolint:errcheck // Snapshot has ended it
	if err := h.warm(ctx, img, m); err != nil {
		return vmm.Template{}, fmt.Errorf("%w; console: %q", err, m.Console())
	}
	h.tell(img.Name, "snapshot")
	settle(ctx)
	return m.Snapshot(ctx, dir)
}

// attach gives what a machine that is booted needs of the host.
func (h *Host) attach(ctx context.Context, b vmm.Boot) (a vmm.Attach, detach func() error, err error) {
	if !b.NIC {
		return a, func() error { return nil }, nil
	}
	if h.Tap == nil {
		return a, nil, errors.New("this host gives machines no network cards")
	}
	a.Tap, detach, err = h.Tap(ctx)
	return a, detach, err
}

func (h *Host) tell(image, stage string) {
	if h.Progress != nil {
		h.Progress(image, stage)
	}
}

// warm runs the recipe's commands in the booted machine and leaves it quiet, with nobody connected.
func (h *Host) warm(ctx context.Context, img Image, m vmm.Machine) error {
	conn, err := m.DialGuest(ctx)
	if err != nil {
		return fmt.Errorf("dial guest: %w", err)
	}
	agent, err := client.Connect(ctx, conn)
	if err != nil {
		_ = conn.Close()
		return fmt.Errorf("reach agent: %w", err)
	}
	defer agent.Close() //nolint:errcheck // never fails
	h.tell(img.Name, "warm up")
	for i, w := range img.Manifest.Recipe.Warm {
		argv := append([]string{w.Cmd}, w.Args...)
		if w.Shell != "" {
			argv = []string{"/bin/sh", "-c", w.Shell}
		}
		said := &head{}
		exit, err := agent.Exec(ctx, wire.Exec{ID: "warm", Argv: argv, Env: append(img.Env(), "HOME=/work"), User: w.User}, client.Streams{Stdout: said, Stderr: said})
		if err != nil {
			return fmt.Errorf("warm[%d]: %w", i, err)
		}
		if exit.Code != 0 {
			return fmt.Errorf("warm[%d]: %q ended with %d %s: %s", i, argv, exit.Code, exit.Signal, said.b)
		}
	}
	return agent.Quiesce(ctx)
}

// head keeps the first of what is written.
type head struct{ b []byte }

func (h *head) Write(b []byte) (int, error) {
	h.b = append(h.b, b[:min(len(b), max(0, 2000-len(h.b)))]...)
	return len(b), nil
}

// settle lets the guest go idle before its snapshot: timers run out and the agent goes back to waiting for a host. Clones of a guest
// that was caught at work answer some 5 ms later under TCG.
func settle(ctx context.Context) {
	t := time.NewTimer(300 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
