package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor/api"
)

// Resize gives the machine other processors, from one to as many as it was booted for. It waits until the guest has let go of those that go. A
// guest that does not, or is paused, is an error, and may still do so later.
func (m *machine) Resize(ctx context.Context, vcpus, memoryMiB int) error {
	if memoryMiB != m.boot.MemoryMiB {
		return fmt.Errorf("resize %s: its memory is a template's, of %d MiB: %w", m.id, m.boot.MemoryMiB, vmm.ErrUnsupported)
	}
	if most := max(m.boot.VCPUs, m.boot.MaxVCPUs); vcpus < 1 || vcpus > most {
		return fmt.Errorf("resize %s: %d processors: it was booted for 1 to %d", m.id, vcpus, most)
	}
	release, err := m.turn(ctx)
	if err != nil {
		return fmt.Errorf("resize %s: %w", m.id, err)
	}
	defer release()
	had := m.vcpus
	if err = m.setVCPUs(ctx, vcpus); err == nil {
		err = vmm.Weigh(m.proc, weight(vcpus, memoryMiB))
	}
	if err != nil && m.vcpus != had && had != unknown && !errors.Is(err, errKept) { // also where nobody knows whether it obeyed
		undone := m.setVCPUs(context.WithoutCancel(ctx), had)
		if undone == nil {
			undone = vmm.Weigh(m.proc, weight(had, memoryMiB)) // it may weigh in part what it was to
		}
		err = errors.Join(err, undone)
	}
	if err != nil {
		return fmt.Errorf("resize %s: %w", m.id, err)
	}
	return nil
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
