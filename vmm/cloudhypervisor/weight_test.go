package cloudhypervisor_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// TestWeightUndone: a machine that keeps its size weighs what it did, also where its weight was changed in part.
func TestWeightUndone(t *testing.T) {
	l, _ := newFakes(t, "v53.0")
	scales := &vmmtest.Scales{Launcher: l}
	d, err := cloudhypervisor.New(cloudhypervisor.Config{Binary: "/bin/true", RunDir: t.TempDir(), Launcher: scales})
	must(t, err)
	boot := fakeBoot(t)
	boot.MaxVCPUs = 4
	m, err := d.Boot(within(t), boot, vmm.Attach{})
	must(t, err)
	defer m.Close()
	weightless := errors.New("it cannot be weighed")
	for had, want := range map[int]int{1: 4, 3: 2} {
		must(t, m.(vmm.Resizer).Resize(within(t), had, boot.MemoryMiB))
		before := scales.Weight(m.ID())
		scales.Refuse(weightless)
		if err := m.(vmm.Resizer).Resize(within(t), want, boot.MemoryMiB); !errors.Is(err, weightless) {
			t.Errorf("err = %v", err)
		}
		scales.Refuse(nil)
		if diff := cmp.Diff(before, scales.Weight(m.ID())); diff != "" {
			t.Errorf("of %d processors, and not %d, it weighs (-want +got):\n%s", had, want, diff)
		}
	}
}
