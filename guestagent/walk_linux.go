package guestagent

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// maxVisited is how many directory entries a pattern may make the agent look at.
const maxVisited = 100_000

// walk finds what a pattern matches; it never goes through a link.
type walk struct {
	found   []string
	visited int
}

// glob gives the regular files that match an absolute pattern, in lexical order. A pattern without wildcards that names something else
// is refused; with wildcards, what is no regular file does not match.
func glob(pattern string) ([]string, error) {
	elements := strings.Split(strings.TrimPrefix(pattern, "/"), "/")
	elements = slices.CompactFunc(elements, func(a, b string) bool { return a == "**" && b == "**" })
	if !slices.ContainsFunc(elements, wild) {
		if st, err := os.Lstat(pattern); err == nil && !st.Mode().IsRegular() {
			return nil, refuse(pattern, "not a regular file")
		}
	}
	for _, e := range elements {
		if _, err := path.Match(e, ""); err != nil {
			return nil, refuse(pattern, err.Error())
		}
	}
	w := walk{}
	if err := w.from("/", elements); err != nil {
		return nil, err
	}
	slices.Sort(w.found)
	return slices.Compact(w.found), nil
}

func wild(element string) bool { return strings.ContainsAny(element, `*?[\`) }

func (w *walk) from(dir string, pattern []string) error {
	head, rest := pattern[0], pattern[1:]
	switch {
	case head == "**":
		return w.deep(dir, rest)
	case !wild(head):
		return w.at(path.Join(dir, head), rest)
	}
	return w.each(dir, func(name string) error {
		if ok, _ := path.Match(head, name); !ok { // glob has looked at the pattern
			return nil
		}
		return w.at(path.Join(dir, name), rest)
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

// at goes on below name, or notes it.
func (w *walk) at(name string, rest []string) error {
	st, err := os.Lstat(name)
	switch {
	case err != nil:
		return nil //nolint:nilerr // what is not there does not match
	case len(rest) > 0 && st.IsDir():
		return w.from(name, rest)
	case len(rest) == 0 && st.Mode().IsRegular():
		w.found = append(w.found, name)
	}
	return nil
}

// each calls f with the names in a directory. One that cannot be read has none.
func (w *walk) each(dir string, f func(name string) error) error {
	fd, err := unix.Openat2(unix.AT_FDCWD, dir, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil
	}
	d := os.NewFile(uintptr(fd), dir)
	defer d.Close()
	for {
		names, err := d.Readdirnames(512)
		if len(names) == 0 || err != nil {
			return nil
		}
		if w.visited += len(names); w.visited > maxVisited {
			return &wire.Error{Kind: wire.ErrTooLarge, Message: fmt.Sprintf("more than %d directory entries to look at", maxVisited)}
		}
		for _, n := range names {
			if err := f(n); err != nil {
				return err
			}
		}
	}
}
