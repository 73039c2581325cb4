// Package build makes images from recipes: a Debian root file system packed into erofs, a kernel, an initramfs with the agent and
// the modules that a machine needs, and a formatted scratch disk. Stages that are done stay done: a changed agent costs an
// initramfs, not a root file system.
//
// It runs mmdebstrap, mkfs.erofs, mkfs.ext4, dpkg-deb and depmod, and needs root for the first.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/paddockvm/paddock/images"
)

// Options are what a build needs besides the recipe.
type Options struct {
	// Agent is the path of the paddock-agent binary, which must be static.
	Agent string
	// Progress is told what is being done; nil for nobody.
	Progress func(stage, detail string)
}

// format changes when what a stage makes changes though its inputs do not.
const format = "4"

// Cmdline is the kernel's: quiet, because a serial line is slow; panic=-1 so that a panic ends the machine at once.
const Cmdline = "console=ttyS0 quiet loglevel=1 panic=-1 random.trust_cpu=on no_timer_check cryptomgr.notests"

// rootStage is what the slow part of a build leaves: it does not depend on the agent.
type rootStage struct {
	Root    images.Part `json:"root"`
	Kernel  images.Part `json:"kernel"`
	Modules images.Part `json:"modules"` // a cpio archive
}

// Image builds an image, or gives the one that is there when nothing has changed. Of several builds of one image, in whatever
// processes, one does the work and the others wait for it.
func Image(ctx context.Context, s *images.Store, r images.Recipe, o Options) (images.Image, error) {
	if o.Progress == nil {
		o.Progress = func(string, string) {}
	}
	agent, err := os.ReadFile(o.Agent)
	if err != nil {
		return images.Image{}, fmt.Errorf("build %s: the agent: %w", r.Name, err)
	}
	release, err := s.LockTold(ctx, images.ImageLock(r.Name), func() { o.Progress("wait", "for another build of it") })
	if err != nil {
		return images.Image{}, err
	}
	defer release()
	done, err := s.Hold(ctx)
	if err != nil {
		return images.Image{}, err
	}
	defer done()
	img, err := image(ctx, s, r, agent, o)
	if err != nil {
		return img, fmt.Errorf("build %s: %w", r.Name, err)
	}
	return img, nil
}

func image(ctx context.Context, s *images.Store, r images.Recipe, agent []byte, o Options) (images.Image, error) {
	m := images.Manifest{Recipe: r, Cmdline: Cmdline, Agent: sum(agent)}
	root, err := rootOf(ctx, s, r, o)
	if err != nil {
		return images.Image{}, err
	}
	m.Root, m.Kernel = root.Root, root.Kernel
	if m.Scratch, err = scratchOf(ctx, s, r.Resources.ScratchMiB); err != nil {
		return images.Image{}, err
	}
	if m.Initrd, err = initrdOf(s, root.Modules, agent); err != nil {
		return images.Image{}, err
	}
	if old, err := s.Get(r.Name); err == nil && same(old.Manifest, m) {
		return old, nil
	}
	o.Progress("publish", "")
	return s.Publish(m)
}

// same tells whether two manifests describe the same image.
func same(a, b images.Manifest) bool {
	a.Format, b.Format = 0, 0
	x, errA := json.Marshal(a)
	y, errB := json.Marshal(b)
	return errA == nil && errB == nil && string(x) == string(y)
}

func sum(b ...[]byte) string {
	h := sha256.New()
	for _, x := range b {
		_, _ = h.Write(x) // a hash takes everything
	}
	return hex.EncodeToString(h.Sum(nil))
}

// rootKey is all that the root file system depends on; what a package's newest version is, the day of the build decides.
func rootKey(r images.Recipe) (string, error) {
	r.Description, r.Warm, r.Resources, r.AllowRoot, r.Env = "", nil, images.Resources{}, nil, nil
	b, err := json.Marshal(r)
	return sum([]byte(format), b), err
}

// rootOf gives the root file system, the kernel and its modules, from an earlier build where there is one.
func rootOf(ctx context.Context, s *images.Store, r images.Recipe, o Options) (rootStage, error) {
	key, err := rootKey(r)
	if err != nil {
		return rootStage{}, err
	}
	var st rootStage
	if s.Stage(key, &st) && s.Has(ctx, st.Root) && s.Has(ctx, st.Kernel) && s.Has(ctx, st.Modules) {
		return st, nil
	}
	if err := needTools("mmdebstrap", "dpkg-deb", "depmod", "xz", "mkfs.erofs", "mkfs.ext4"); err != nil { // of this stage and the next
		return st, err
	}
	if os.Geteuid() != 0 {
		return st, errors.New("building a root file system needs root: run it with sudo, or copy an image store from elsewhere")
	}
	work, err := s.Temp("build-" + r.Name + "-")
	if err != nil {
		return st, err
	}
	defer os.RemoveAll(work)
	b := &rootBuild{recipe: r, dir: work, progress: o.Progress}
	if err := b.run(ctx); err != nil {
		return st, err
	}
	for file, part := range map[string]*images.Part{b.rootFile(): &st.Root, b.kernelFile(): &st.Kernel, b.modulesFile(): &st.Modules} {
		if *part, err = s.Adopt(file); err != nil {
			return st, err
		}
	}
	return st, s.PutStage(key, st)
}

// scratchOf gives the formatted scratch disk of a size.
func scratchOf(ctx context.Context, s *images.Store, mib int) (images.Part, error) {
	key := sum(fmt.Appendf(nil, "scratch %s %d", format, mib))
	var st map[string]images.Part
	if s.Stage(key, &st) && s.Has(ctx, st["root"]) {
		return st["root"], nil
	}
	if err := needTools("mkfs.ext4"); err != nil {
		return images.Part{}, err
	}
	dir, err := s.Temp("scratch-")
	if err != nil {
		return images.Part{}, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "scratch")
	f, err := os.Create(file)
	if err != nil {
		return images.Part{}, err
	}
	if err := errors.Join(f.Truncate(int64(mib)<<20), f.Close()); err != nil {
		return images.Part{}, err
	}
	// No journal: a machine's disk dies with it. No reserve for root: the size is what a job may have.
	err = command(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "nodiscard,lazy_itable_init=1,hash_seed="+fixedUUID,
		"-U", fixedUUID, "-N", fmt.Sprint(max(mib*64, 4096)), "-L", "scratch", file)
	if err != nil {
		return images.Part{}, err
	}
	p, err := s.AdoptSparse(file)
	if err != nil {
		return p, err
	}
	return p, s.PutStage(key, map[string]images.Part{"root": p})
}

// fixedUUID names file systems that are the same whenever they are made.
const fixedUUID = "70616464-6f63-4b00-8000-000000000001"
