package checkpoint

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm/hostfile"
)

// Taken is what was taken of a machine's memory and scratch disk while it stood still. The files stay the caller's, and nobody changes them.
type Taken struct {
	// Template is the file that a clone's memory maps, Private what it has written; of a machine that was booted Whole is all of it.
	Template *os.File
	Private  *Private
	Whole    *os.File
	// MemorySize is the memory's size in bytes.
	MemorySize int64
	// Scratch is the disk as it was; nil: none.
	Scratch *os.File
}

// Base names the files that a clone is compared with.
type Base struct {
	Memory, Scratch string
}

// Write writes a checkpoint's memory and scratch disk into dir, for good: of a clone what differs from the base, and gives how many bytes
// do; else all, and base is not looked at.
func (t *Taken) Write(dir string, base Base) (memory, scratch int64, err error) {
	if t.Whole != nil {
		return 0, 0, t.writeWhole(dir)
	}
	if memory, err = t.memoryDelta(dir, base.Memory); err != nil || t.Scratch == nil {
		return memory, 0, err
	}
	info, err := t.Scratch.Stat()
	if err != nil {
		return memory, 0, err
	}
	scratch, err = delta(dir, ScratchFile, base.Scratch, info.Size(), func(d *Delta, _ *os.File) error {
		return d.Compare(t.Scratch, nil)
	})
	return memory, scratch, err
}

// writeWhole writes memory and disk as they were.
func (t *Taken) writeWhole(dir string) error {
	err := hostfile.WriteOnce(filepath.Join(dir, MemoryFile), func(f *os.File) error { return hostfile.CopySparse(f, t.Whole) })
	if err != nil || t.Scratch == nil {
		return err
	}
	return hostfile.WriteOnce(filepath.Join(dir, ScratchFile), func(f *os.File) error { return hostfile.CopySparse(f, t.Scratch) })
}

// memoryDelta compares the machine's own pages with the base. All others are its template's, which may be another than the base: an earlier
// checkpoint of the machine.
func (t *Taken) memoryDelta(dir, base string) (int64, error) {
	return delta(dir, MemoryFile, base, t.MemorySize, func(d *Delta, old *os.File) error {
		info, err := old.Stat()
		if err != nil {
			return err
		}
		if info.Size() != t.MemorySize {
			return fmt.Errorf("the base has %d bytes of memory, the machine %d", info.Size(), t.MemorySize)
		}
		if err := t.Private.PutInto(d); err != nil {
			return err
		}
		return d.Compare(t.Template, t.Private.Contains)
	})
}

// CopyMemory copies the memory of a machine that was booted, a file that goes on changing when the machine runs on. The copy is in memory,
// has no name and is the caller's.
func CopyMemory(from *os.File) (*os.File, error) {
	fd, err := unix.MemfdCreate("paddock-checkpoint", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "memfd:checkpoint")
	if err := hostfile.CopySparse(f, from); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// delta makes one delta of a base file.
func delta(dir, name, base string, size int64, fill func(d *Delta, old *os.File) error) (int64, error) {
	old, err := os.Open(base)
	if err != nil {
		return 0, err
	}
	defer old.Close()
	d, err := NewDelta(dir, name, old, size)
	if err != nil {
		return 0, err
	}
	defer d.Close() //nolint:errcheck // Finish tells of what could be lost
	if err := fill(d, old); err != nil {
		return 0, err
	}
	return d.Finish()
}
