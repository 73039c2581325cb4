package qemu_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

func TestCheckpoint(t *testing.T) {
	l := newLab(t, vmm.Direct{})
	vmmtest.RunCheckpoints(t, vmmtest.CheckpointFixture{Fixture: l.Fixture, Busy: l.wantSpace})
}

// wantSpace holds what QEMU has mapped so far to half of what it may: at its end QEMU aborts.
func (l *lab) wantSpace(t testing.TB, m vmm.Machine) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.pid(m.ID())))
	must(t, err)
	_, rest, _ := strings.Cut(string(b), "VmPeak:")
	var peak int64
	_, err = fmt.Sscanf(rest, "%d kB", &peak)
	must(t, err)
	if may := l.space[m.ID()] >> 10; 2*peak > may {
		t.Errorf("QEMU had mapped %d KiB of the %d that it may", peak, may)
	}
}
