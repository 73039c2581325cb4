package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/checkpoint"
	"github.com/paddockvm/paddock/vmm/hostfile"
)

// A checkpoint takes three things of a machine at one moment, and none of them by QEMU's migration, which would end the machine or send
// all of its memory:
//
//   - The devices' state, by xen-save-devices-state. Xen's toolstack, which saves memory itself, has QEMU write just this; nothing of it
//     needs Xen (migration/savevm.c, qmp_xen_save_devices_state), and it is a migration stream without sections of RAM.
//   - The memory, of which a clone has written few pages. Its mapping is private: those pages are its own by the page tables' word.
//   - The scratch disk, by a backup job that begins while the machine stands still. What the guest overwrites before the job has
//     come there is copied first, so that the job may go on while the machine runs.
var _ vmm.Checkpointer = (*machine)(nil)

// taken is what was taken of a machine while it stood still.
type taken struct {
	template *os.File            // what a clone's memory maps
	memory   *checkpoint.Memory  // of a clone, open for what is private
	private  *checkpoint.Private // what a clone has written
	whole    *os.File            // all memory, of a machine that was booted
	scratch  *os.File            // the disk as it was; nil: none
	paused   time.Duration
}

func (t *taken) close() {
	if t.memory != nil {
		t.memory.Close()
	}
	for _, f := range []*os.File{t.template, t.whole, t.scratch} {
		_ = f.Close()
	}
}

// openTemplate opens the memory file that a clone maps, which nobody but QEMU may have open any more.
func openTemplate(pid int) (*os.File, error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if target, err := os.Readlink(path); err == nil && strings.HasPrefix(target, "/memfd:paddock-template ") {
			return os.Open(path)
		}
	}
	return nil, fmt.Errorf("process %d has no template's memory open", pid)
}

// Checkpoint keeps the machine's state while it runs on.
func (m *machine) Checkpoint(ctx context.Context, dir string, base vmm.Template) (vmm.Checkpoint, error) {
	c, err := m.checkpoint(ctx, dir, base)
	if err != nil {
		return c, fmt.Errorf("checkpoint %s: %w", m.id, err)
	}
	return c, nil
}

func (m *machine) checkpoint(ctx context.Context, dir string, base vmm.Template) (vmm.Checkpoint, error) {
	c := vmm.Checkpoint{Driver: m.d.Name(), Boot: m.boot, Full: m.memory != nil}
	if !c.Full && base.Dir == "" {
		return c, errors.New("a clone is compared with a base, and none is given")
	}
	t, err := m.take(ctx, dir)
	if err != nil {
		return c, err
	}
	defer t.close()
	c.Paused = t.paused
	if c.Full {
		err = m.writeWhole(dir, t)
	} else {
		err = m.writeDeltas(dir, base, t, &c)
	}
	if err != nil {
		return c, err
	}
	b, err := json.MarshalIndent(m.platform, "", "  ")
	if err != nil {
		return c, err
	}
	if err := hostfile.WriteOnce(filepath.Join(dir, manifestFile), func(f *os.File) error {
		_, err := f.Write(append(b, '\n'))
		return err
	}); err != nil {
		return c, err
	}
	return c, hostfile.SyncDir(dir)
}

// take pauses the machine, takes what it is made of, lets it run on, and waits for the rest of its disk.
func (m *machine) take(ctx context.Context, dir string) (_ *taken, err error) {
	release, err := m.oneCheckpoint(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if m.size.plugged() {
		return nil, fmt.Errorf("it has grown since: %w", vmm.ErrUnsupported)
	}
	t := &taken{}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if m.memory == nil {
		if t.template, err = openTemplate(m.proc.PID()); err != nil {
			return nil, err
		}
		if t.memory, err = checkpoint.OpenMemory(m.proc.PID(), t.template, int64(m.boot.MemoryMiB)<<20); err != nil {
			return nil, err
		}
		if err := t.memory.Reserve(); err != nil {
			return nil, err
		}
	}
	job, err := m.prepareBackup(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if job != nil {
			err = errors.Join(err, job.close(ctx))
		}
	}()
	state, err := newState(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, err
	}
	defer state.Close()
	if err := m.standing(ctx, t, job, state); err != nil {
		return nil, err
	}
	if job != nil {
		if err := job.wait(ctx); err != nil {
			return nil, err
		}
		if t.scratch, err = duplicate(job.file); err != nil {
			return nil, err
		}
	}
	return t, errors.Join(state.Chmod(0o444), state.Sync())
}

// newState makes the file of the devices' state. QEMU takes descriptors of a set only with the access that it wants.
func newState(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

// standing is what is done while the machine stands still. Whatever fails in it, the machine runs on.
func (m *machine) standing(ctx context.Context, t *taken, job *backup, state *os.File) (err error) {
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	var status struct {
		Running bool `json:"running"`
	}
	if err := m.qmp.execute(ctx, "query-status", nil, &status); err != nil {
		return err
	}
	defer m.takeBack(ctx, stateSet)
	if err := m.lend(ctx, stateSet, state); err != nil {
		return err
	}
	start := time.Now()
	if err := m.qmp.execute(ctx, "stop", nil, nil); err != nil {
		return err
	}
	defer func() {
		if status.Running {
			resume, cancel := m.d.step(context.WithoutCancel(ctx))
			defer cancel()
			err = errors.Join(err, m.qmp.execute(resume, "cont", nil, nil))
		}
		t.paused = time.Since(start)
	}()
	// Nothing changes the memory now: saving devices does not, since where QEMU migrates it comes after the memory.
	read := make(chan error, 1)
	go func() { read <- m.readMemory(t) }()
	err = m.saveDevices(ctx, job)
	return errors.Join(err, <-read)
}

// saveDevices saves the devices' state and begins the copy of the disk.
func (m *machine) saveDevices(ctx context.Context, job *backup) error {
	// live would hand the disks over to another QEMU.
	if err := m.qmp.execute(ctx, "xen-save-devices-state", map[string]any{"filename": stateSet.path(), "live": false}, nil); err != nil {
		return err
	}
	if job == nil {
		return nil
	}
	return job.start(ctx)
}

func (m *machine) readMemory(t *taken) (err error) {
	if t.memory == nil {
		return m.copyOwn(t)
	}
	t.private, err = t.memory.Read()
	return err
}

// copyOwn is for a machine that was booted: its memory is a file of ours, which goes on changing.
func (m *machine) copyOwn(t *taken) (err error) {
	if t.whole, err = newMemory("checkpoint", 0); err != nil {
		return err
	}
	return hostfile.CopySparse(t.whole, m.memory)
}

// writeWhole writes memory and disk as they were.
func (m *machine) writeWhole(dir string, t *taken) error {
	err := hostfile.WriteOnce(filepath.Join(dir, memoryFile), func(f *os.File) error { return hostfile.CopySparse(f, t.whole) })
	if err != nil || t.scratch == nil {
		return err
	}
	return hostfile.WriteOnce(filepath.Join(dir, checkpoint.ScratchFile), func(f *os.File) error { return hostfile.CopySparse(f, t.scratch) })
}

// writeDeltas writes what of memory and disk differs from base.
func (m *machine) writeDeltas(dir string, base vmm.Template, t *taken, c *vmm.Checkpoint) (err error) {
	if c.MemoryBytes, err = m.memoryDelta(dir, base, t); err != nil || t.scratch == nil {
		return err
	}
	info, err := t.scratch.Stat()
	if err != nil {
		return err
	}
	c.ScratchBytes, err = delta(dir, checkpoint.ScratchFile, base.Boot.Scratch, info.Size(), func(d *checkpoint.Delta, _ *os.File) error {
		return d.Compare(t.scratch, nil)
	})
	return err
}

// memoryDelta compares the machine's own pages with base. All others are its template's, which may be another than base: an earlier
// checkpoint of the machine.
func (m *machine) memoryDelta(dir string, base vmm.Template, t *taken) (int64, error) {
	size := int64(m.boot.MemoryMiB) << 20
	return delta(dir, memoryFile, filepath.Join(base.Dir, memoryFile), size, func(d *checkpoint.Delta, old *os.File) error {
		info, err := old.Stat()
		if err != nil {
			return err
		}
		if info.Size() != size {
			return fmt.Errorf("the base has %d bytes of memory, the machine %d", info.Size(), size)
		}
		if err := t.private.PutInto(d); err != nil {
			return err
		}
		return d.Compare(t.template, t.private.Contains)
	})
}

// delta makes one delta of a base file.
func delta(dir, name, base string, size int64, fill func(d *checkpoint.Delta, old *os.File) error) (int64, error) {
	old, err := os.Open(base)
	if err != nil {
		return 0, err
	}
	defer old.Close()
	d, err := checkpoint.NewDelta(dir, name, old, size)
	if err != nil {
		return 0, err
	}
	defer d.Close() //nolint:errcheck // Finish tells of what could be lost
	if err := fill(d, old); err != nil {
		return 0, err
	}
	return d.Finish()
}
