package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/checkpoint"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor/api"
	"github.com/paddockvm/paddock/vmm/hostfile"
)

// A checkpoint takes three things of a machine while it stands still:
//
//   - The devices' state, by vm.snapshot. Of a clone that would write all memory too, as the clone has mapped it privately; but last, after
//     configuration and state, and into a file that must not be there yet (vmm/src/vm.rs and memory_manager.rs of v53.0, Transportable).
//     So there is one, the request ends with an error before a page was read, and what it has written by then is whole: it would else be no JSON.
//   - The memory, of which a clone has written few pages: those are its own by the page tables' word.
//   - The scratch disk, copied then and there, since Cloud Hypervisor has nothing that copies it while the machine runs. vm.pause waits for
//     all requests that the disk has under way, and begins no other (virtio-devices/src/block.rs, Pausable); what the guest has not yet
//     asked for is in its memory.
var _ vmm.Checkpointer = (*machine)(nil)

// taken is what was taken of a machine while it stood still.
type taken struct {
	checkpoint.Taken
	memory  *checkpoint.Memory // of a clone, open for what is private
	saved   map[string][]byte  // by their names in a template
	refused error              // what vm.snapshot said
	paused  time.Duration
}

func (t *taken) close() {
	if t.memory != nil {
		t.memory.Close()
	}
	closeAll([]*os.File{t.Template, t.Whole, t.Scratch})
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
	if !m.release.keeps() {
		return c, fmt.Errorf("it wants Cloud Hypervisor v53.0 or newer, and this is %s: %w", m.platform.Version, vmm.ErrUnsupported)
	}
	t, err := m.take(ctx)
	if err != nil {
		return c, err
	}
	defer t.close()
	c.Paused = t.paused
	if err := writeSaved(dir, t.saved); err != nil {
		return c, err
	}
	old := checkpoint.Base{Memory: filepath.Join(base.Dir, memoryFile), Scratch: base.Boot.Scratch}
	if c.MemoryBytes, c.ScratchBytes, err = t.Write(dir, old); err != nil {
		return c, err
	}
	return c, hostfile.SyncDir(dir)
}

// turn lets one at a time change whether the machine runs, and how many processors it has.
func (m *machine) turn(ctx context.Context) (release func(), err error) {
	select {
	case m.turns <- struct{}{}:
		return func() { <-m.turns }, nil
	case <-m.done:
		return nil, errOver
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

var errOver = errors.New("the machine is over")

// take pauses the machine, takes what it is made of, and lets it run on.
func (m *machine) take(ctx context.Context) (_ *taken, err error) {
	release, err := m.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if m.vcpus != m.boot.VCPUs {
		return nil, fmt.Errorf("it has been given another number of processors than the %d of its template: %w", m.boot.VCPUs, vmm.ErrUnsupported)
	}
	if m.memoryMiB != m.boot.MemoryMiB {
		return nil, fmt.Errorf("it has, or may have, other memory than the %d MiB of its template: %w", m.boot.MemoryMiB, vmm.ErrUnsupported)
	}
	t := &taken{Taken: checkpoint.Taken{MemorySize: int64(m.boot.MemoryMiB) << 20}}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if err := m.reserve(t); err != nil {
		return nil, err
	}
	defer m.clear()
	if err := m.standing(ctx, t); err != nil {
		return nil, err
	}
	if t.saved, err = m.saved(); err == nil {
		t.saved[stateFile], err = withoutMemory(t.saved[stateFile], t.MemorySize)
	}
	if err != nil {
		return nil, errors.Join(t.refused, err)
	}
	return t, nil
}

// reserve gets ready what can be while the machine runs.
func (m *machine) reserve(t *taken) (err error) {
	if m.scratch != nil {
		if t.Scratch, err = hostfile.Unnamed(m.d.cfg.RunDir); err != nil {
			return err
		}
	}
	m.clear()
	if m.memory != nil {
		return nil
	}
	if t.Template, err = hostfile.Duplicate(m.template); err != nil {
		return err
	}
	if t.memory, err = checkpoint.OpenMemory(m.proc.PID(), t.Template, t.MemorySize); err != nil {
		return err
	}
	if err := t.memory.Reserve(); err != nil {
		return err
	}
	return m.dir.write(copiedFile, nil)
}

// clear removes what a checkpoint leaves in the machine's directory, which is also what the next would not find in order.
func (m *machine) clear() {
	for _, name := range []string{configFile, stateFile, copiedFile} {
		m.dir.remove(name)
	}
}

// standing is what is done while the machine stands still. Whatever fails in it, the machine runs on, or is over.
func (m *machine) standing(ctx context.Context, t *taken) (err error) {
	info, err := m.info(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	if info.State != api.Paused {
		defer func() {
			err = errors.Join(err, m.runOn(ctx, err == nil))
			t.paused = time.Since(start)
		}()
		if err := m.order(ctx, m.api.Pause); err != nil {
			return err
		}
	}
	err = m.takeAll(ctx, t)
	t.paused = time.Since(start)
	return err
}

// takeAll takes all three at once: nothing that the VMM does for its devices' state changes memory or disk.
func (m *machine) takeAll(ctx context.Context, t *taken) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	parts := []func() error{
		func() error { return m.saveDevices(ctx, t) },
		func() error { return m.readMemory(t) },
		func() error { return m.copyDisk(ctx, t) },
	}
	errs := make(chan error, len(parts))
	for _, part := range parts {
		go func() { errs <- part() }()
	}
	var all []error
	over := m.done
	for len(all) < len(parts) {
		select {
		case err := <-errs:
			if err != nil {
				cancel(err) // a disk is large, and of no use now
			}
			all = append(all, err)
		case <-over:
			cancel(errOver)
			over = nil
		}
	}
	return errors.Join(all...)
}

// saveDevices has the VMM write the devices' state into the machine's directory.
func (m *machine) saveDevices(ctx context.Context, t *taken) error {
	err := m.order(ctx, func(ctx context.Context) error { return m.api.Snapshot(ctx, "file://"+fdPath(dirFD)) })
	if _, refused := errors.AsType[*api.Error](err); refused && m.memory == nil {
		t.refused, err = err, nil
	}
	return err
}

func (m *machine) readMemory(t *taken) (err error) {
	if t.memory == nil {
		t.Whole, err = checkpoint.CopyMemory(m.memory)
		return err
	}
	t.Private, err = t.memory.Read()
	return err
}

func (m *machine) copyDisk(ctx context.Context, t *taken) error {
	if m.scratch == nil {
		return nil
	}
	return hostfile.CopySparseUntil(ctx, t.Scratch, m.scratch)
}

// runOn lets the machine run again. Where something failed before nobody knows what it does: a pause that ends half-way leaves a machine whose
// processors stand and which Cloud Hypervisor calls running and does not resume. So it is paused once more, all of it. A machine that
// cannot be helped so is over.
func (m *machine) runOn(ctx context.Context, paused bool) error {
	ctx = context.WithoutCancel(ctx)
	if paused && m.order(ctx, m.api.Resume) == nil {
		return nil
	}
	_ = m.order(ctx, m.api.Pause) // it may be paused
	err := m.order(ctx, m.api.Resume)
	if err != nil {
		err = fmt.Errorf("let it run on: %w", err)
		m.breakDown(err)
	}
	return err
}

// info asks what the machine is.
func (m *machine) info(ctx context.Context) (info api.Info, err error) {
	err = m.order(ctx, func(ctx context.Context) error {
		info, err = m.api.Info(ctx)
		return err
	})
	return info, err
}

// order waits for a step of the VMM's.
func (m *machine) order(ctx context.Context, order func(context.Context) error) error {
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	return order(ctx)
}
