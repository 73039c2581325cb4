package kvmhost

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/paddockvm/paddock/test/harness"
)

// Image is the host's image: a directory with these files.
type Image struct{ dir string }

// Kernel is a standard kernel of Debian's, Modules a cpio archive of those that the host's own root disk needs, Disk an ext4 file system with
// everything else. All are read only: runs write to layers of their own.
func (i Image) Kernel() string  { return filepath.Join(i.dir, "kernel") }
func (i Image) Modules() string { return filepath.Join(i.dir, "modules.cpio") }
func (i Image) Disk() string    { return filepath.Join(i.dir, "disk") }

// Emulator is the QEMU that emulates the host, as the beginning of a command line. It has its libraries with it: its system is newer than
// this machine's may be. Before 8.1 QEMU with several threads could go on executing what another processor had just written over
// (its commit deba78709ae8), which is what a kernel does to its own code whenever a first machine is made.
func (i Image) Emulator() []string {
	in := func(name string) string { return filepath.Join(i.dir, "emulator", name) }
	return []string{in("lib/ld-linux-x86-64.so.2"), "--library-path", in("lib"), in("qemu-system-x86_64"), "-L", in("share")}
}

// packages are what the host has beyond Debian's smallest system.
var packages = []string{
	"qemu-system-x86", "iproute2", "nftables", "kmod", "python3", "e2fsprogs", "erofs-utils", "procps", "xz-utils", "iputils-ping", "ca-certificates",
	"docker.io", "firewalld", "dbus", // whose rules the network of machines is tested beside
}

// suites are where the host's kernel may be from, by the names of Options.
var suites = map[string]string{"": "bookworm", backports: "bookworm-backports"}

const backports = "backports"

// buildScript makes the files of an image in the directory that it is started in.
//
//go:embed image.sh
var buildScript []byte

// recipe is what an image is made of, beside packages: the script, and the suite of Debian that its kernel is from.
type recipe struct {
	script []byte
	suite  string
}

func (r recipe) key() string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s", strings.Join(packages, ","), r.suite, r.script)
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// cacheDir is where images of the host are, by key, and the locks.
func cacheDir() (string, error) {
	cache, err := harness.Cache()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "kvmhost")
	return dir, os.MkdirAll(dir, 0o755)
}

// HostImage gives the image of a host with that kernel (Options), which is built where it is not there yet: by one process, for which others
// wait. say is told of what takes long.
func HostImage(ctx context.Context, kernel string, say func(string)) (Image, error) {
	suite, ok := suites[kernel]
	if !ok {
		return Image{}, fmt.Errorf("there is no kernel %q: one that is named is %s", kernel, backports)
	}
	cache, err := cacheDir()
	if err != nil {
		return Image{}, err
	}
	return recipe{buildScript, suite}.image(ctx, cache, say)
}

func (r recipe) image(ctx context.Context, cache string, say func(string)) (Image, error) {
	key := r.key()
	img := Image{dir: filepath.Join(cache, key)}
	if _, err := os.Stat(img.dir); err == nil {
		return img, nil
	}
	release, err := lock(ctx, filepath.Join(cache, key+".lock"), func(who string) {
		say("waiting for process " + who + ", which builds the host's image")
	})
	if err != nil {
		return Image{}, err
	}
	defer release()
	if _, err := os.Stat(img.dir); err == nil {
		return img, nil
	}
	say("building the host's image, once: Debian with a kernel of " + r.suite + " and " + strings.Join(packages, ", "))
	work := filepath.Join(cache, "building-"+key) // one at a time: what is there was left by a build that was killed
	if err := r.build(ctx, work, img.dir); err != nil {
		return Image{}, fmt.Errorf("build the host's image: %w", errors.Join(err, os.RemoveAll(work)))
	}
	return img, nil
}

// build makes an image in the directory work, and gives it its name when it is whole.
func (r recipe) build(ctx context.Context, work, to string) error {
	if os.Geteuid() != 0 {
		return errors.New("it needs root")
	}
	if err := errors.Join(os.RemoveAll(work), os.Mkdir(work, 0o755)); err != nil { // 0755: apt reads it as another user
		return err
	}
	cmd := command(ctx, "bash", "-s", "--", strings.Join(packages, ","), r.suite)
	cmd.Dir = work
	cmd.Stdin = bytes.NewReader(r.script)
	// With namespaces of its own, all of the build ends and is unmounted with its first process.
	apart(cmd)
	if err := finish(ctx, cmd); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(work, "work")); err != nil {
		return err
	}
	return os.Rename(work, to)
}

// copyFile links a file, or copies it to another file system: nobody writes to the copy.
func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if os.Link(from, to) == nil {
		return nil
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
