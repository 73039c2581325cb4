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
	checkpoint.Taken
	memory *checkpoint.Memory // of a clone, open for what is private
	paused time.Duration
}

func (t *taken) close() {
	if t.memory != nil {
		t.memory.Close()
	}
	for _, f := range []*os.File{t.Template, t.Whole, t.Scratch} {
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
		return c, fmt.Errorf("checkpoint %s: %w", m.id, m.explained(err))
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
	old := checkpoint.Base{Memory: filepath.Join(base.Dir, memoryFile), Scratch: base.Boot.Scratch}
	if c.MemoryBytes, c.ScratchBytes, err = t.Write(dir, old); err != nil {
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
	if err := m.look(ctx); err != nil {
		return nil, err
	}
	if m.size.plugged() {
		return nil, fmt.Errorf("it has grown since: %w", vmm.ErrUnsupported)
	}
	t := &taken{Taken: checkpoint.Taken{MemorySize: int64(m.boot.MemoryMiB) << 20}}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if m.memory == nil {
		if t.Template, err = openTemplate(m.proc.PID()); err != nil {
			return nil, err
		}
		if t.memory, err = checkpoint.OpenMemory(m.proc.PID(), t.Template, t.MemorySize); err != nil {
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
		if t.Scratch, err = hostfile.Duplicate(job.file); err != nil {
			return nil, err
		}
	}
	return t, errors.Join(state.Chmod(0o444), state.Sync())
}

// newState makes the file of the devices' state. QEMU takes descriptors of a set only with the access that it wants.
func newState(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

// standing is what is done while the machine stands still. Whatever fails in it, the machine runs on, or is over.
func (m *machine) standing(ctx context.Context, t *taken, job *backup, state *os.File) (err error) {
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	running, err := m.running(ctx)
	if err != nil {
		return err
	}
	defer m.takeBack(ctx, stateSet)
	if err := m.lend(ctx, stateSet, state); err != nil {
		return err
	}
	start := time.Now()
	defer func() {
		if running { // also where stop's answer was not waited for
			err = errors.Join(err, m.runOn(context.WithoutCancel(ctx)))
		}
		t.paused = time.Since(start)
	}()
	if err := m.qmp.execute(ctx, "stop", nil, nil); err != nil {
		return err
	}
	// Nothing changes the memory now: saving devices does not, since where QEMU migrates it comes after the memory.
	read := make(chan error, 1)
	go func() { read <- m.readMemory(t) }()
	err = m.saveDevices(ctx, job)
	return errors.Join(err, <-read)
}

// runOn lets the machine run again. One of which QEMU says that it cannot is over, and so is one that nobody can tell anything any more: they
// would stand still for ever. A QEMU that only takes its time obeys when it comes to it.
func (m *machine) runOn(ctx context.Context) error {
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	err := m.qmp.execute(ctx, "cont", nil, nil)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("let it run on: %w", err)
	if refused(err) || m.hungUp() {
		m.breakDown(err)
	}
	return err
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
		t.Whole, err = checkpoint.CopyMemory(m.memory)
		return err
	}
	t.Private, err = t.memory.Read()
	return err
}
