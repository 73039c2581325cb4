package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm/hostfile"
)

// Files of a template.
const (
	memoryFile   = "memory"    // the guest's memory, sparse
	stateFile    = "state"     // the devices' state, QEMU's migration stream
	manifestFile = "qemu.json" // a manifest
)

// memories holds the memory of templates for clones to map.
//
// Clones map a sealed memfd and not the template's file, because QEMU before 8.2 opens memory-backend-file's path O_RDWR even
// with share=off, which an unprivileged process cannot do, and must not, on a 0444 file that all clones share. A memfd with
// F_SEAL_WRITE opens O_RDWR by /proc/self/fd, takes MAP_PRIVATE mappings, and refuses everything that would change it. It needs
// no path in the jail and no right to one. It is loaded once per template and driver (60 ms for a small Linux); its pages are shared by all
// clones, belong to this process's memory limit, and cannot be evicted but to swap.
//
// Newer QEMUs could map the file itself (readonly=on,rom=off). Measured on 7.2 and on 10.0, restore, first answer and private memory
// of clones are the same either way, so there is one way.
type memories struct {
	mu    sync.Mutex
	byDir map[string]*memory
}

// memory is one template's, loaded by whoever needs it first.
type memory struct {
	load func() (*os.File, error)
	// modified is the file's: a template made anew in the same directory is another one.
	modified time.Time
}

// get gives a descriptor of its own for the memory of the template in dir, which has to have size bytes.
func (ms *memories) get(dir string, size int64) (*os.File, error) {
	path := filepath.Join(dir, memoryFile)
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() != size {
		return nil, fmt.Errorf("%s has %d bytes, want %d", path, info.Size(), size)
	}
	for {
		stale, m := ms.entry(dir, path, info.ModTime())
		if stale != nil {
			_ = stale.close()
		}
		sealed, err := m.load()
		if err != nil {
			ms.forget(dir, m)
			return nil, fmt.Errorf("load memory: %w", err)
		}
		if f, err := ms.duplicate(dir, m, sealed); f != nil || err != nil {
			return f, err
		}
	}
}

// duplicate gives a descriptor of its own for what m has loaded; nil where m was released meanwhile.
func (ms *memories) duplicate(dir string, m *memory, sealed *os.File) (*os.File, error) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if ms.byDir[dir] != m {
		return nil, nil
	}
	f, err := hostfile.Duplicate(sealed)
	if err != nil {
		return nil, fmt.Errorf("load memory: %w", err)
	}
	return f, nil
}

// forget makes the next one try again.
func (ms *memories) forget(dir string, m *memory) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if ms.byDir[dir] == m {
		delete(ms.byDir, dir)
	}
}

func (ms *memories) entry(dir, path string, modified time.Time) (stale, m *memory) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m = ms.byDir[dir]
	if m != nil && m.modified.Equal(modified) {
		return nil, m
	}
	stale = m
	m = &memory{modified: modified, load: sync.OnceValues(func() (*os.File, error) { return loadSealed(path) })}
	if ms.byDir == nil {
		ms.byDir = make(map[string]*memory)
	}
	ms.byDir[dir] = m
	return stale, m
}

// release gives up the memory of the template in dir; clones that run keep it. An empty dir means all.
func (ms *memories) release(dir string) error {
	ms.mu.Lock()
	var gone []*memory
	for d, m := range ms.byDir {
		if dir == "" || d == dir {
			gone = append(gone, m)
			delete(ms.byDir, d)
		}
	}
	ms.mu.Unlock()
	var errs []error
	for _, m := range gone {
		errs = append(errs, m.close())
	}
	return errors.Join(errs...)
}

func (m *memory) close() error {
	f, err := m.load()
	if err != nil {
		return nil //nolint:nilerr // it never held anything
	}
	return f.Close()
}

// loadSealed copies a sparse file into a memfd that nobody can change any more, this process included.
func loadSealed(path string) (_ *os.File, err error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	dst, err := newMemory("template", 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			dst.Close()
		}
	}()
	if err := hostfile.CopySparse(dst, src); err != nil {
		return nil, err
	}
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(dst.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return dst, nil
}

// newMemory makes a file that lives in memory and has no name. Any uid may open it, given a descriptor.
func newMemory(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("paddock-"+name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "memfd:"+name)
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
