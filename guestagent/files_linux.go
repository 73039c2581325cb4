package guestagent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// refuse says what is wrong with a path.
func refuse(name, why string) error {
	return &wire.Error{Kind: wire.ErrPath, Message: name + ": " + why}
}

// pathError names the path that the kernel refused; what is not the kernel's word passes.
func pathError(name string, err error) error {
	errno, ok := errors.AsType[unix.Errno](err)
	switch {
	case !ok:
		return err
	case errno == unix.ENOSPC, errno == unix.EDQUOT:
		return &wire.Error{Kind: wire.ErrNoSpace, Message: name + ": " + errno.Error()}
	case errno == unix.ELOOP:
		return refuse(name, "there is a symbolic link on the way")
	}
	return refuse(name, errno.Error())
}

// abs gives the place of a path from the host.
func (m *machine) abs(name string) (string, error) {
	switch {
	case path.IsAbs(name):
		return path.Clean(name), nil
	case filepath.IsLocal(name):
		return path.Join(m.work, name), nil
	}
	return "", refuse(name, "leads out of the working directory")
}

// put writes one file under a name of its own and gives it its place when it is whole: what was there before is replaced, and never
// written to, neither through a link nor through another name of the same file.
func (m *machine) put(p *wire.Put, data io.Reader) error {
	name, err := m.abs(p.Path)
	if err != nil {
		return err
	}
	uid := -1
	if p.User != "root" && m.sandboxUID > 0 {
		uid = m.sandboxUID
	}
	dir, err := makeDirs(path.Dir(name), uid)
	if err != nil {
		return pathError(p.Path, err)
	}
	defer unix.Close(dir) //nolint:errcheck // opened with O_PATH: there is nothing to write
	var there unix.Stat_t
	err = unix.Fstatat(dir, path.Base(name), &there, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil && there.Mode&unix.S_IFMT != unix.S_IFREG:
		return refuse(p.Path, "not a regular file")
	case err != nil && !errors.Is(err, unix.ENOENT):
		return pathError(p.Path, err)
	}
	tmp := ".paddock-" + rand.Text()
	if err = writeFile(dir, tmp, fs.FileMode(p.Mode&0o777), uid, data); err == nil {
		err = unix.Renameat(dir, tmp, dir, path.Base(name))
	}
	if err != nil {
		_ = unix.Unlinkat(dir, tmp, 0) // the failure is told, not what it left
		return pathError(p.Path, err)
	}
	return nil
}

// writeFile makes a new file in dir.
func writeFile(dir int, name string, mode fs.FileMode, uid int, data io.Reader) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = io.Copy(f, data)
	if err == nil && uid >= 0 {
		err = f.Chown(uid, uid)
	}
	if err == nil {
		err = f.Chmod(mode) // after the chown, which clears bits
	}
	return errors.Join(err, f.Close())
}

// openDir opens a directory as a place; links on the way are refused, and nothing there can block. The descriptor is the caller's.
func openDir(at int, name string) (int, error) {
	return unix.Openat2(at, name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
}

// makeDirs opens a directory like openDir, and makes those that are missing, owned by uid.
func makeDirs(name string, uid int) (int, error) {
	dir, err := openDir(unix.AT_FDCWD, name)
	if !errors.Is(err, unix.ENOENT) {
		return dir, err
	}
	parent, err := makeDirs(path.Dir(name), uid)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent) //nolint:errcheck // opened with O_PATH
	base := path.Base(name)
	err = unix.Mkdirat(parent, base, 0o755)
	if err == nil && uid >= 0 {
		err = unix.Fchownat(parent, base, uid, uid, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	return openDir(parent, base)
}

// get sends the regular files that match, in lexical order.
func (m *machine) get(g *wire.Get, send func(wire.FileHeader, io.Reader) error) error {
	pattern, err := m.abs(g.Pattern)
	if err != nil {
		return err
	}
	found, err := glob(pattern)
	if err != nil {
		return err
	}
	if len(found) > g.MaxFiles {
		return &wire.Error{Kind: wire.ErrTooLarge, Message: fmt.Sprintf("%s: %d files match, at most %d are taken", g.Pattern, len(found), g.MaxFiles)}
	}
	left := g.MaxBytes
	for _, name := range found {
		shown := name
		if !path.IsAbs(g.Pattern) {
			shown = strings.TrimPrefix(name, m.work+"/")
		}
		if err := getOne(name, shown, &left, send); err != nil {
			return err
		}
	}
	return nil
}

// getOne sends one file; links on its way, and anything that is not a regular file, are refused. Nothing here can block.
func getOne(name, shown string, left *int64, send func(wire.FileHeader, io.Reader) error) error {
	if !utf8.ValidString(shown) {
		return refuse(fmt.Sprintf("%q", shown), "the name is not UTF-8")
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, name, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return pathError(shown, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return pathError(shown, err)
	}
	switch {
	case !st.Mode().IsRegular():
		return refuse(shown, "not a regular file")
	case st.Size() > *left:
		return &wire.Error{Kind: wire.ErrTooLarge, Message: fmt.Sprintf("%s: %d bytes, and only %d are left of the limit", shown, st.Size(), *left)}
	}
	*left -= st.Size()
	return send(wire.FileHeader{Path: shown, Mode: uint32(st.Mode().Perm()), Size: st.Size()}, f)
}
