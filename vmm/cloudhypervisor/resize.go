package cloudhypervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor/api"
)

// A machine's memory grows by virtio-mem: with its template's file goes a range that is in none, empty at first, of which the guest takes
// as much as it is offered, and gives it back when it is asked to. In a template and in what is kept of a machine nothing is taken of it:
// Cloud Hypervisor would copy that beside the file (memory_manager.rs, memory_range_table), and every clone read it.

// blockMiB is what Linux on x86 brings into use or gives up at least, and what virtio-mem's range is a multiple of (virtio-devices/src/mem.rs,
// VIRTIO_MEM_ALIGN_SIZE).
const blockMiB = 128

// headroom is what a machine can grow by, in bytes.
func headroom(b vmm.Boot) int64 { return int64(max(0, b.MaxMemoryMiB-b.MemoryMiB)) << 20 }

// checkHeadroom refuses headroom that no machine can have.
func checkHeadroom(b vmm.Boot) error {
	switch {
	case b.MaxMemoryMiB != 0 && b.MaxMemoryMiB < b.MemoryMiB:
		return fmt.Errorf("at most %d MiB of memory, and %d to begin with", b.MaxMemoryMiB, b.MemoryMiB)
	case b.MaxMemoryMiB != 0 && (b.MaxMemoryMiB-b.MemoryMiB)%blockMiB != 0:
		return fmt.Errorf("memory from %d to %d MiB: it grows by %d MiB at a time", b.MemoryMiB, b.MaxMemoryMiB, blockMiB)
	}
	return nil
}

// Resize gives the machine other processors, from one to as many as it was booted for, and other memory, from what it was booted with on. It
// waits until the guest has let go of those that go. A guest that does not, or is paused, is an error, and may still do so later. To want memory
// back that a guest uses may starve it: its kernel gives all that is free, and what runs out of memory then may be its agent. So the agent is
// asked first to give it up.
func (m *machine) Resize(ctx context.Context, vcpus, memoryMiB int) error {
	if err := m.resize(ctx, vcpus, memoryMiB); err != nil {
		return fmt.Errorf("resize %s: %w", m.id, err)
	}
	return nil
}

func (m *machine) resize(ctx context.Context, vcpus, memoryMiB int) error {
	if err := m.canBe(vcpus, memoryMiB); err != nil {
		return err
	}
	release, err := m.turn(ctx)
	if err != nil {
		return err
	}
	defer release()
	had, hadMiB := m.vcpus, m.memoryMiB
	if err = m.change(ctx, vcpus, memoryMiB); err == nil {
		return nil
	}
	return errors.Join(err, m.undo(context.WithoutCancel(ctx), had, hadMiB, !errors.Is(err, errKept)))
}

// canBe tells whether the machine can have that size.
func (m *machine) canBe(vcpus, memoryMiB int) error {
	b := m.boot
	switch most := max(b.VCPUs, b.MaxVCPUs); {
	case vcpus < 1 || vcpus > most:
		return fmt.Errorf("%d processors: it was booted for 1 to %d: %w", vcpus, most, vmm.ErrUnsupported)
	case memoryMiB == b.MemoryMiB:
		return nil
	case m.memory != nil:
		return fmt.Errorf("a machine that is to be a template keeps its memory: %w", vmm.ErrUnsupported)
	case memoryMiB < b.MemoryMiB || memoryMiB > max(b.MemoryMiB, b.MaxMemoryMiB):
		return fmt.Errorf("%d MiB: it was booted for %d to %d: %w", memoryMiB, b.MemoryMiB, max(b.MemoryMiB, b.MaxMemoryMiB), vmm.ErrUnsupported)
	case (memoryMiB-b.MemoryMiB)%blockMiB != 0:
		return fmt.Errorf("its memory grows from %d MiB by %d MiB at a time: %w", b.MemoryMiB, blockMiB, vmm.ErrUnsupported)
	case !grows(m.config):
		return fmt.Errorf("its template is older than that machines of this driver grow: %w", vmm.ErrUnsupported)
	}
	return nil
}

// grows tells whether a clone's configuration has memory to grow by.
func grows(config []byte) bool {
	var c struct {
		Memory api.Memory `json:"memory"`
	}
	return json.Unmarshal(config, &c) == nil && len(c.Memory.Zones) == 1 && c.Memory.Zones[0].HotplugSize > 0
}

// change has the process be bound to the larger of both sizes as long as it may have either.
func (m *machine) change(ctx context.Context, vcpus, memoryMiB int) error {
	most := max(memoryMiB, m.memoryMiB, m.boundMiB)
	if m.memoryMiB == unknown || m.boundMiB == unknown {
		most = max(m.boot.MemoryMiB, m.boot.MaxMemoryMiB)
	}
	if err := m.bound(most); err != nil {
		return err
	}
	if err := m.setMemory(ctx, memoryMiB); err != nil {
		return err
	}
	if err := m.setVCPUs(ctx, vcpus); err != nil {
		return err
	}
	if err := vmm.Weigh(m.proc, weight(vcpus, memoryMiB)); err != nil {
		return err
	}
	return m.bound(memoryMiB)
}

// undo has the machine be as it was, where that is known, also where nobody knows whether it obeyed.
func (m *machine) undo(ctx context.Context, vcpus, memoryMiB int, processors bool) error {
	var err error
	if memoryMiB != unknown {
		err = m.setMemory(ctx, memoryMiB)
	}
	if vcpus != unknown && vcpus != m.vcpus && processors {
		err = errors.Join(err, m.setVCPUs(ctx, vcpus))
	}
	if vcpus == unknown || memoryMiB == unknown || vcpus != m.vcpus || memoryMiB != m.memoryMiB {
		return err
	}
	return errors.Join(err, vmm.Weigh(m.proc, weight(vcpus, memoryMiB)), m.bound(memoryMiB)) // it may weigh in part what it was to
}

// bound has the process use the memory of a machine of that size at most.
func (m *machine) bound(memoryMiB int) error {
	if memoryMiB == m.boundMiB {
		return nil
	}
	if err := vmm.BoundMemory(m.proc, memoryBytes(memoryMiB)); err != nil {
		m.boundMiB = unknown
		return err
	}
	m.boundMiB = memoryMiB
	return nil
}

// setMemory is in the machine's turn. It offers the guest so much, and waits until it has no more. Less than it was offered it may have as
// long as it likes: its agent sees to that.
func (m *machine) setMemory(ctx context.Context, memoryMiB int) error {
	if memoryMiB == m.memoryMiB {
		return nil
	}
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	size := int64(memoryMiB) << 20
	info, err := m.api.Info(ctx)
	if err != nil {
		return err
	}
	m.memoryMiB = unknown
	if offered(info) != size { // it refuses what it was asked for last
		if err := m.api.ResizeZone(ctx, api.ResizeZone{ID: memoryZone, RAM: size}); err != nil {
			return err
		}
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		if info, err = m.api.Info(ctx); err != nil {
			return err
		}
		if info.MemorySize <= size {
			m.memoryMiB = memoryMiB
			return nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("the guest has not given memory back: it has %d MiB: %w", info.MemorySize>>20, context.Cause(ctx))
		}
	}
}

// offered is how much memory the guest may have.
func offered(i api.Info) (n int64) {
	for _, z := range i.Config.Memory.Zones {
		n += z.Size + z.HotpluggedSize
	}
	return n
}

// setVCPUs is in the machine's turn. Processors go when the guest lets go of them. Until then Cloud Hypervisor answers 429 to who asks for any
// number but that which there still is: to that it says yes, and takes them away all the same (vmm/src/cpu.rs, resize). So it is waited for,
// and what was begun is brought to its end before anything else is.
func (m *machine) setVCPUs(ctx context.Context, n int) error {
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	if m.fewer != 0 && m.fewer != n {
		if err := m.lessen(ctx, m.fewer); err != nil {
			return err
		}
	}
	if m.vcpus == unknown || n < m.vcpus {
		return m.lessen(ctx, n)
	}
	err := m.api.Resize(ctx, api.Resize{VCPUs: &n})
	switch _, refused := errors.AsType[*api.Error](err); {
	case err == nil:
		m.vcpus = n
	case !refused:
		m.vcpus = unknown
	}
	return err
}

// lessen asks for n processors, of more or of nobody knows how many, until it is answered that there are no others: the first yes may be to
// what then begins.
func (m *machine) lessen(ctx context.Context, n int) error {
	asked := false
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := m.api.Resize(ctx, api.Resize{VCPUs: &n})
		refusal, refused := errors.AsType[*api.Error](err)
		switch {
		case refused && refusal.Status == http.StatusTooManyRequests:
		case refused:
			return err
		case err != nil:
			if m.fewer == n && ctx.Err() != nil {
				err = fmt.Errorf("%w: %w", errKept, err)
			}
			m.vcpus, m.fewer = unknown, n
			return err
		case asked:
			m.vcpus, m.fewer = n, 0
			return nil
		default:
			m.vcpus, m.fewer, asked = unknown, n, true
			continue // it may have let go meanwhile
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", errKept, context.Cause(ctx))
		}
	}
}

// errKept is a guest that has processors which it should have no more.
var errKept = errors.New("the guest has not let go of a processor")

// unknown is how many processors a machine has that did not answer.
const unknown = -1
