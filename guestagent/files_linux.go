package guestagent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/guestagent/wire"
)

func pathError(name string, err error) error {
	kind := wire.ErrPath
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		kind = wire.ErrNoSpace
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	return &wire.Error{Kind: kind, Message: name + ": " + err.Error()}
}

func (m *machine) abs(name string) string {
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join(m.work, name)
}

// put writes one file. It replaces a file of that name, never what a link of that name points to.
func (m *machine) put(p *wire.Put, data io.Reader) error {
	name := m.abs(p.Path)
	uid := -1
	if p.User != "root" && m.sandboxUID > 0 {
		uid = m.sandboxUID
	}
	if err := mkdirs(path.Dir(name), uid); err != nil {
		return pathError(p.Path, err)
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, name, &unix.OpenHow{
		Flags: unix.O_WRONLY | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC, Mode: 0o600, Resolve: unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return pathError(p.Path, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close() // closed and checked below
	st, err := f.Stat()
	if err != nil {
		return pathError(p.Path, err)
	}
	if !st.Mode().IsRegular() {
		return &wire.Error{Kind: wire.ErrPath, Message: p.Path + ": not a regular file"}
	}
	if err := f.Truncate(0); err != nil {
		return pathError(p.Path, err)
	}
	n, err := io.Copy(f, data)
	if err == nil && n != p.Size {
		return fmt.Errorf("%s: %d of %d bytes came", p.Path, n, p.Size)
	}
	if err == nil && uid >= 0 {
		err = f.Chown(uid, uid)
	}
	if err == nil {
		err = f.Chmod(fs.FileMode(p.Mode & 0o777)) // after the chown, which clears bits
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(name)
		return pathError(p.Path, err)
	}
	return nil
}

// mkdirs makes the directories that are missing, owned by uid.
func mkdirs(dir string, uid int) error {
	st, err := os.Stat(dir)
	if err == nil {
		if !st.IsDir() {
			return unix.ENOTDIR
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := mkdirs(path.Dir(dir), uid); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if uid >= 0 {
		return os.Lchown(dir, uid, uid)
	}
	return nil
}

// maxVisited is how many directory entries a pattern may make the agent look at.
const maxVisited = 100_000

// get sends the regular files that match, in lexical order.
func (m *machine) get(g *wire.Get, send func(wire.FileHeader, io.Reader) error) error {
	w := walk{pattern: strings.Split(strings.TrimPrefix(m.abs(g.Pattern), "/"), "/")}
	if err := w.from("/", w.pattern); err != nil {
		return pathError(g.Pattern, err)
	}
	slices.Sort(w.found)
	w.found = slices.Compact(w.found)
	if len(w.found) > g.MaxFiles {
		return &wire.Error{Kind: wire.ErrTooLarge, Message: fmt.Sprintf("%s: %d files match, at most %d are taken", g.Pattern, len(w.found), g.MaxFiles)}
	}
	left := g.MaxBytes
	for _, name := range w.found {
		shown := name
		if !path.IsAbs(g.Pattern) {
			shown, _ = filepath.Rel(m.work, name)
		}
		if err := getOne(name, shown, &left, send); err != nil {
			return err
		}
	}
	return nil
}

// getOne sends one file; links on its way, and anything that is not a regular file, are refused. Nothing here can block.
func getOne(name, shown string, left *int64, send func(wire.FileHeader, io.Reader) error) error {
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
		return &wire.Error{Kind: wire.ErrPath, Message: shown + ": not a regular file"}
	case st.Size() > *left:
		return &wire.Error{Kind: wire.ErrTooLarge, Message: fmt.Sprintf("%s: %d bytes, and only %d are left of the limit", shown, st.Size(), *left)}
	}
	*left -= st.Size()
	return send(wire.FileHeader{Path: shown, Mode: uint32(st.Mode().Perm()), Size: st.Size()}, f)
}

// walk finds what a pattern matches; it never goes through a link.
type walk struct {
	pattern []string
	found   []string
	visited int
}

func (w *walk) from(dir string, pattern []string) error {
	head, rest := pattern[0], pattern[1:]
	if head == "**" {
		return w.deep(dir, rest)
	}
	if !strings.ContainsAny(head, `*?[\`) {
		return w.at(path.Join(dir, head), rest, true)
	}
	return w.each(dir, func(name string) error {
		if ok, err := path.Match(head, name); !ok || err != nil {
			return err
		}
		return w.at(path.Join(dir, name), rest, false)
	})
}

// deep matches ** : no directory, or any number of them.
func (w *walk) deep(dir string, rest []string) error {
	if len(rest) == 0 {
		rest = []string{"*"}
	}
	if err := w.from(dir, rest); err != nil {
		return err
	}
	return w.each(dir, func(name string) error {
		sub := path.Join(dir, name)
		if st, err := os.Lstat(sub); err != nil || !st.IsDir() || strings.Count(sub, "/") > 64 {
			return nil //nolint:nilerr // vanished while it was looked for
		}
		return w.deep(sub, rest)
	})
}

// at goes on below name, or notes it. Only a name that the pattern spells out is an error where it is missing or no regular file.
func (w *walk) at(name string, rest []string, literal bool) error {
	st, err := os.Lstat(name)
	switch {
	case err != nil:
		return nil //nolint:nilerr // what is not there does not match
	case len(rest) > 0 && st.IsDir():
		return w.from(name, rest)
	case len(rest) > 0:
		return nil
	case st.Mode().IsRegular():
		w.found = append(w.found, name)
	case literal:
		return errors.New("not a regular file")
	}
	return nil
}

func (w *walk) each(dir string, f func(name string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(512)
		if len(names) == 0 || err != nil {
			return nil
		}
		if w.visited += len(names); w.visited > maxVisited {
			return fmt.Errorf("more than %d entries to look at", maxVisited)
		}
		for _, n := range names {
			if err := f(n); err != nil {
				return err
			}
		}
	}
}
