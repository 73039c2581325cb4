package kvmhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/paddockvm/paddock/test/harness"
	"github.com/paddockvm/paddock/test/kvmhost/steps"
)

const (
	module = "github.com/paddockvm/paddock/"
	// inside is where the payload is mounted in the host; command inside knows it too.
	inside = "/paddock"
)

// payload is what a run needs besides the host: a directory that becomes a disk, or is used where it is when the tests run on this machine.
type payload struct {
	dir  string // of the payload, here
	root string // of the repository, here
}

func (p payload) test(s Set) string { return filepath.Join(p.dir, "tests", s.file()+".test") }

// compile builds the test programs.
func (p payload) compile(ctx context.Context, all []Set) error {
	for _, s := range all {
		if s.Package == "" {
			continue // a line of shell
		}
		if err := p.goTool(ctx, "test", "-c", "-ldflags=-s -w", "-o", p.test(s), module+s.Package); err != nil {
			return err
		}
		if _, err := os.Stat(p.test(s)); err != nil {
			return fmt.Errorf("%s has no tests: %w", s.Package, err)
		}
	}
	return nil
}

func (p payload) goTool(ctx context.Context, args ...string) error {
	cmd := command(ctx, "go", args...)
	cmd.Dir = p.root
	cmd.Env = append(cmd.Env, "CGO_ENABLED=0")
	return finish(ctx, cmd)
}

// fill adds what only the host needs: it has no Go, no images, and nothing of the repository.
func (p payload) fill(ctx context.Context, all []Set) error {
	for _, d := range []string{"bin", "built", "tmp", "out", "cache"} {
		if err := os.MkdirAll(filepath.Join(p.dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(p.dir, "tmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	if err := p.programs(ctx); err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(s Set) bool { return s.Paddock }) {
		if err := p.paddock(ctx, "base", "python"); err != nil {
			return err
		}
	}
	if err := p.sources(ctx); err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(s Set) bool { return s.Paddock || s.Package != "" }) {
		if err := p.images("base", "python"); err != nil {
			return err
		}
	}
	if name := os.Getenv(CloudHypervisor); name != "" {
		return copyFile(name, filepath.Join(p.dir, "bin", "cloud-hypervisor"))
	}
	return nil
}

// programs builds what is run inside.
func (p payload) programs(ctx context.Context) error {
	for _, pkg := range programs {
		if err := p.build(ctx, "built/"+filepath.Base(pkg), pkg); err != nil {
			return err
		}
	}
	if err := p.build(ctx, "bin/inside", "test/kvmhost/inside"); err != nil {
		return err
	}
	return os.Symlink("inside", filepath.Join(p.dir, "bin", "go"))
}

func (p payload) build(ctx context.Context, to, pkg string) error {
	return p.goTool(ctx, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", filepath.Join(p.dir, to), module+pkg)
}

// paddock builds bin/paddock and, in this machine's store, images with its agent.
func (p payload) paddock(ctx context.Context, images ...string) error {
	bin := filepath.Join(p.dir, "src", "bin", "paddock")
	if err := p.build(ctx, "src/bin/paddock", "cmd/paddock"); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(p.dir, "built", "paddock-agent"), bin+"-agent"); err != nil {
		return err
	}
	cache, err := harness.Cache()
	if err != nil {
		return err
	}
	return run(ctx, p.root, bin, append([]string{"image", "build", "--image-dir", filepath.Join(cache, "images")}, images...)...)
}

// sources copies the repository's files, those that are not committed yet among them, and the data beside it.
func (p payload) sources(ctx context.Context) error {
	cmd := command(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = p.root
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("list the repository's files: %w", err)
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		err := copyFile(filepath.Join(p.root, name), filepath.Join(p.dir, "src", name))
		if err != nil && !errors.Is(err, os.ErrNotExist) { // removed, and git does not know yet
			return err
		}
	}
	data, err := filepath.Glob(filepath.Join(p.root, "..", "shared", "data", "*.yaml"))
	if err != nil {
		return err
	}
	for _, name := range data {
		if err := copyFile(name, filepath.Join(p.dir, "shared", "data", filepath.Base(name))); err != nil {
			return err
		}
	}
	return nil
}

// digest is how an image's manifest and a build stage name a file.
var digest = regexp.MustCompile(`[0-9a-f]{64}`)

// images copies images with their files, and the build stages that these are of: with them a changed agent costs an initramfs inside.
func (p payload) images(names ...string) error {
	cache, err := harness.Cache()
	if err != nil {
		return err
	}
	from, to := filepath.Join(cache, "images"), filepath.Join(p.dir, "cache", "images")
	stages, err := filepath.Glob(filepath.Join(from, "stages", "*.json"))
	if err != nil {
		return err
	}
	var files []string
	for _, name := range names {
		files = append(files, filepath.Join(from, "images", name+".json"))
	}
	blobs := map[string]bool{}
	for i, file := range append(files, stages...) {
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("%w: make test-kvm builds the images", err)
		}
		named := digest.FindAllString(string(b), -1)
		if i >= len(files) && !slices.ContainsFunc(named, func(d string) bool { return blobs[d] }) {
			continue // of another image
		}
		for _, d := range named {
			blobs[d] = true
		}
		if err := copyFile(file, filepath.Join(to, filepath.Base(filepath.Dir(file)), filepath.Base(file))); err != nil {
			return err
		}
	}
	for blob := range blobs {
		err := copyFile(filepath.Join(from, "blobs", blob), filepath.Join(to, "blobs", blob))
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a digest of something else, or of what is not kept
			return err
		}
	}
	return nil
}

// plan is for the host: paths as they are inside.
func (p payload) plan(all []Set) steps.Plan {
	env := []string{
		"REQUIRE_KVM=1", "REQUIRE_ROOT=1", "REQUIRE_QEMU=1", "PADDOCK_CACHE=" + inside + "/cache", "TMPDIR=/tmp",
	}
	if os.Getenv(CloudHypervisor) != "" {
		env = append(env, CloudHypervisor+"="+inside+"/bin/cloud-hypervisor")
	}
	in := payload{dir: inside, root: inside + "/src"}
	plan := steps.Plan{Env: env, Out: inside + "/out"}
	for _, s := range all {
		plan.Steps = append(plan.Steps, in.step(s))
	}
	return plan
}

// planHere is for this machine.
func (p payload) planHere(all []Set) steps.Plan {
	plan := steps.Plan{Env: []string{"REQUIRE_KVM=1", "REQUIRE_ROOT=1", "REQUIRE_QEMU=1"}, Out: filepath.Join(p.dir, "out")}
	for _, s := range all {
		plan.Steps = append(plan.Steps, p.step(s))
	}
	return plan
}

func (p payload) step(s Set) steps.Step {
	st := steps.Step{Name: s.Name, Dir: filepath.Join(p.root, s.Package), Env: s.Env, Timeout: s.Timeout}
	st.Argv = append([]string{p.test(s)}, s.args()...)
	if s.Package == "" {
		st.Argv = []string{"/bin/sh", "-c", s.Shell}
	}
	return st
}

// disk makes a payload's disk of the directory and a plan, with room for what the tests write. The file keeps no name.
func (p payload) disk(ctx context.Context, plan steps.Plan, name string) (*os.File, error) {
	b, err := json.Marshal(plan)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(p.dir, "plan.json"), b, 0o644); err != nil {
		return nil, err
	}
	if err := run(ctx, "", "truncate", "-s", "16G", name); err != nil {
		return nil, err
	}
	err = run(ctx, "", "mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1", "-N", "65536", "-d", p.dir, name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(name); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// initrd makes the initramfs: the image's modules, and command inside as the init.
func (p payload) initrd(ctx context.Context, img Image, to string) error {
	dir := to + ".d"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(p.dir, "bin", "inside"), filepath.Join(dir, "init")); err != nil {
		return err
	}
	return run(ctx, dir, "bash", "-c", `{ cat "$1"; echo init | cpio -o -H newc --quiet; } >"$2"`, "initrd", img.Modules(), to)
}
