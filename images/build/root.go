package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/paddockvm/paddock/images"
)

// rootBuild makes a root file system and fetches its suite's kernel, in a directory of its own.
type rootBuild struct {
	recipe   images.Recipe
	dir      string
	progress func(stage, detail string)
}

func (b *rootBuild) tree() string        { return filepath.Join(b.dir, "root") }
func (b *rootBuild) rootFile() string    { return filepath.Join(b.dir, "root.erofs") }
func (b *rootBuild) kernelFile() string  { return filepath.Join(b.dir, "kernel") }
func (b *rootBuild) modulesFile() string { return filepath.Join(b.dir, "modules.cpio") }

func (b *rootBuild) run(ctx context.Context) error {
	b.progress("packages", fmt.Sprintf("%s %s with %s", b.recipe.Base.Distribution, b.recipe.Base.Suite, strings.Join(b.recipe.Packages, ", ")))
	if err := b.bootstrap(ctx); err != nil {
		return err
	}
	b.progress("kernel", "")
	if err := b.kernel(ctx); err != nil {
		return err
	}
	b.progress("root disk", "")
	return command(ctx, "mkfs.erofs", "-T", "0", "-U", fixedUUID, b.rootFile(), b.tree())
}

// kernelPackage is Debian's kernel for virtual machines: small, everything else in modules.
const kernelPackage = "linux-image-cloud-amd64"

// fetchKernel downloads the package that kernelPackage depends on, into the root's /tmp, with the suite's own apt.
const fetchKernel = `set -e
cd "$1/tmp"
deb=$(chroot "$1" apt-cache depends ` + kernelPackage + ` | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
test -n "$deb" || { echo "no kernel package behind ` + kernelPackage + `" >&2; exit 1; }
chroot "$1" sh -c "cd /tmp && apt-get download -q $deb"
mv "$1"/tmp/linux-image-*.deb "$KERNEL_DIR/kernel.deb"`

// users are what a job's programs find: an unprivileged user with a directory of its own.
const users = `set -e
echo 'sandbox:x:1000:' >> "$1/etc/group"
echo 'sandbox:x:1000:1000::/work:/bin/sh' >> "$1/etc/passwd"
mkdir -p "$1/work" && chown 1000:1000 "$1/work"`

// neutral takes away what belongs to one machine, or to the host that built.
const neutral = `set -e
cd "$1/etc" && rm -f machine-id hostname hosts resolv.conf # a link would lead out of the root
: > "$1/etc/machine-id"
echo paddock > "$1/etc/hostname"
echo '127.0.0.1 localhost' > "$1/etc/hosts"
: > "$1/etc/resolv.conf"
rm -rf "$1"/var/lib/systemd/random-seed "$1"/etc/ssh/ssh_host_* "$1"/var/log/* "$1"/var/cache/* "$1"/tmp/* "$1"/run/*`

func (b *rootBuild) bootstrap(ctx context.Context) error {
	// mmdebstrap gives hooks the root's directory as their first argument.
	hooks := filepath.Join(b.dir, "hooks")
	if err := os.MkdirAll(hooks, 0o755); err != nil {
		return err
	}
	files, err := b.filesScript()
	if err != nil {
		return err
	}
	env := "KERNEL_DIR=" + quote(b.dir) + "\n"
	var args []string
	for i, script := range []string{fetchKernel, users, files, b.runScript(), neutral} {
		file := filepath.Join(hooks, strconv.Itoa(i))
		if err := os.WriteFile(file, []byte("#!/bin/sh\n"+env+script+"\n"), 0o755); err != nil {
			return err
		}
		args = append(args, "--customize-hook="+file)
	}
	args = append(args,
		"--mode=root", "--variant=minbase", "--format=directory", "--quiet",
		"--aptopt=APT::Install-Recommends \"false\"",
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
		"--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/info/*",
	)
	if len(b.recipe.Packages) > 0 {
		args = append(args, "--include="+strings.Join(b.recipe.Packages, ","))
	}
	err = command(ctx, "mmdebstrap", append(args, b.recipe.Base.Suite, b.tree())...)
	if err != nil && strings.Contains(err.Error(), "nable to fetch") {
		return fmt.Errorf("%w\n(the Debian mirror could not be reached: is there a network?)", err)
	}
	return err
}

// writeFile writes its input in the root. It runs there: the root's links, like /var/run, lead elsewhere in the host.
const writeFile = `mkdir -p "$(dirname "$1")"; cat > "$1"; chmod "$2" "$1"`

// filesScript copies the recipe's files in; runScript runs its lines in the root.
func (b *rootBuild) filesScript() (string, error) {
	var s strings.Builder
	s.WriteString("set -e\n")
	for i, f := range b.recipe.Files {
		content := filepath.Join(b.dir, "file-"+strconv.Itoa(i))
		if err := os.WriteFile(content, []byte(f.Content), 0o600); err != nil {
			return "", err
		}
		mode := f.Mode
		if mode == "" {
			mode = "0644"
		}
		fmt.Fprintf(&s, "chroot \"$1\" /bin/sh -ec %s sh %s %s < %s\n", quote(writeFile), quote(f.Path), mode, quote(content))
	}
	return s.String(), nil
}

func (b *rootBuild) runScript() string {
	var s strings.Builder
	s.WriteString("set -e\n")
	for _, line := range b.recipe.Run {
		fmt.Fprintf(&s, "chroot \"$1\" /bin/sh -ec %s\n", quote(line))
	}
	return s.String()
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// glob is filepath.Glob below a directory whose own name is no pattern.
func glob(dir, pattern string) ([]string, error) {
	paths, err := fs.Glob(os.DirFS(dir), pattern)
	for i, p := range paths {
		paths[i] = filepath.Join(dir, p)
	}
	return paths, err
}

// kernel unpacks the kernel package and packs the modules that a machine needs.
func (b *rootBuild) kernel(ctx context.Context) error {
	deb := filepath.Join(b.dir, "deb")
	if err := command(ctx, "dpkg-deb", "-x", filepath.Join(b.dir, "kernel.deb"), deb); err != nil {
		return err
	}
	kernels, err := glob(deb, "boot/vmlinuz-*")
	if err != nil || len(kernels) != 1 {
		return fmt.Errorf("%d kernels in the kernel package: %w", len(kernels), errors.Join(err, fs.ErrNotExist))
	}
	if err := os.Rename(kernels[0], b.kernelFile()); err != nil {
		return err
	}
	base := deb
	if _, err := os.Stat(filepath.Join(deb, "lib", "modules")); err != nil {
		base = filepath.Join(deb, "usr") // Debian 13 has merged them in the package too
	}
	versions, err := glob(base, "lib/modules/*")
	if err != nil || len(versions) != 1 {
		return fmt.Errorf("%d module trees in the kernel package: %w", len(versions), errors.Join(err, fs.ErrNotExist))
	}
	if err := command(ctx, "depmod", "-b", base, filepath.Base(versions[0])); err != nil {
		return err
	}
	return packModules(ctx, versions[0], b.modulesFile())
}
