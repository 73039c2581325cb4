package qemu_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// TestSandbox starts QEMU without a jail: the filter of system calls that each of its threads has is its own, of -sandbox.
func TestSandbox(t *testing.T) {
	looked := 0
	d := newDriver(t, qemu.Config{Accel: "tcg", Launcher: vmmtest.Onlooker{Launcher: vmm.Direct{}, Look: func(p vmm.Process) {
		threads := madeThreads(t, p)
		for _, th := range threads {
			if th.Seccomp != 2 || th.Filters == 0 {
				t.Errorf("a thread without a filter: %+v", th)
			}
		}
		looked++
		t.Logf("%+v", threads)
	}}})
	if _, err := d.Probe(within(t)); err != nil {
		t.Fatal(err)
	}
	if looked == 0 {
		t.Error("there was no VMM to look at")
	}
}

// madeThreads are a QEMU's when it has made its processors', which it does last.
func madeThreads(t *testing.T, p vmm.Process) []vmmtest.Thread {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	ctx := within(t)
	for {
		list := vmmtest.Threads(t, p.PID())
		if slices.ContainsFunc(list, func(th vmmtest.Thread) bool { return strings.HasPrefix(th.Name, "CPU ") }) {
			return list
		}
		select {
		case <-tick.C:
		case <-p.Done():
			t.Errorf("it has ended: %v", p.Err())
			return nil
		case <-ctx.Done():
			t.Errorf("it has no processors: %+v", list)
			return nil
		}
	}
}
