package jail

import (
	"cmp"
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
)

// setting is a file of a cgroup, and what is written to it.
type setting struct{ file, value string }

// weightOf is what a machine weighs: what its share says, else what it may use at most.
func weightOf(s vmm.Share) vmm.Weight {
	return vmm.Weight{CPUs: cmp.Or(s.Weight.CPUs, s.CPUs), MemoryBytes: cmp.Or(s.Weight.MemoryBytes, s.MemoryBytes)}
}

// weigh has a machine's cgroup weigh so much. Of its memory that counts which the host really has for it: where more is given away than there is,
// all have less by the same factor.
func (c *cgroups) weigh(name string, w vmm.Weight) error {
	w.MemoryBytes = int64(float64(w.MemoryBytes)/max(c.overcommit, 1)) &^ 4095 // the kernel counts in pages
	return apply(c.weights(name, w))
}

// apply writes what there is a file for. Which weights a kernel has depends on how it was built and on what is loaded: without them machines
// share as they come, and nothing that bounds one is missing. A realtime kernel has a file for v1's memory, and no use for it.
func apply(weights []setting) (err error) {
	for _, w := range weights {
		if setErr := set(w.file, w.value); !errors.Is(setErr, fs.ErrNotExist) && !errors.Is(setErr, unix.EOPNOTSUPP) {
			err = errors.Join(err, setErr)
		}
	}
	return err
}

// Weigh implements vmm.Weigher. It is no error that the machine has ended.
func (m *process) Weigh(w vmm.Weight) error {
	if m.group == nil {
		return nil
	}
	if err := m.l.cgroups.weigh(m.group.name, w); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// BoundMemory implements vmm.Bounder. It is no error that the machine has ended.
func (m *process) BoundMemory(bytes int64) (err error) {
	if m.group == nil {
		return nil
	}
	bounds := m.l.cgroups.bounds(m.group.name, bytes)
	if len(bounds) > 1 { // that with swap is never less than that without: it is written first where both grow, and last where they shrink
		_ = set(bounds[1].file, bounds[1].value)
	}
	for _, b := range bounds {
		if setErr := set(b.file, b.value); !errors.Is(setErr, fs.ErrNotExist) && !errors.Is(setErr, unix.ENODEV) {
			err = errors.Join(err, setErr)
		}
	}
	return err
}

var (
	_ vmm.Weigher = (*process)(nil)
	_ vmm.Bounder = (*process)(nil)
)

const (
	// mostBFQ is the scheduler BFQ's largest weight (kernel: block/bfq-iosched.h), leastCFQ that of CFQ's smallest, before Linux 5.0
	// (Documentation/cgroup-v1/blkio-controller.txt).
	mostBFQ  = 1000
	leastCFQ = 10
)
