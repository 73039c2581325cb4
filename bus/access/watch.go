package access

import (
	"context"
	"os"
	"sync/atomic"
	"time"
)

// File is a file of credentials that is read again when it changes.
type File struct {
	name string
	now  atomic.Pointer[Credentials]
	seen os.FileInfo // Watch's
}

// Open reads the file.
func Open(name string) (*File, error) {
	f := &File{name: name}
	info, err := os.Stat(name) // before it is read: what changes in between is read again
	if err == nil {
		f.seen = info
	}
	c, err := Read(name)
	if err != nil {
		return nil, err
	}
	f.now.Store(c)
	return f, nil
}

// Credentials gives those of now.
func (f *File) Credentials() *Credentials { return f.now.Load() }

// lookEvery is how often Watch looks at the file. Editors and orchestrators replace files and directories in too many ways for being told.
const lookEvery = time.Second

// Watch reads the file again when it changes, until ctx ends, and tells changed of the ids of credentials that are gone or are others'
// now, or of the error; then those of before stay in force.
func (f *File) Watch(ctx context.Context, changed func(gone map[string]bool, err error)) {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		info, err := os.Stat(f.name)
		if err != nil {
			if f.seen != nil {
				f.seen = nil
				changed(nil, err)
			}
			continue
		}
		if same(f.seen, info) {
			continue
		}
		f.seen = info
		c, err := Read(f.name)
		if err != nil {
			changed(nil, err)
			continue
		}
		before := f.now.Swap(c)
		changed(before.Gone(c), nil)
	}
}

func same(a, b os.FileInfo) bool {
	return a != nil && os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && a.Mode() == b.Mode()
}
