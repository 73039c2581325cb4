package jail_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker/jail"
)

// Two machines that both want all of one processor have it as they weigh, and otherwise when that has been changed.
func TestProcessorIsShared(t *testing.T) {
	l := newLauncher(t, jail.Config{})
	bounded(t, l, "cpu")
	light, heavy := vmm.Weight{CPUs: 1}, vmm.Weight{CPUs: 4}
	busy := func(w vmm.Weight) vmm.Process {
		return launch(t, l, vmm.Command{
			Name: "m-0123456789abcdef", Path: "/bin/sh", Args: []string{"-c", "while :; do :; done"}, Share: vmm.Share{CPUs: 4, Weight: w},
		})
	}
	a, b := busy(heavy), busy(light)
	var here, one unix.CPUSet
	must(t, unix.SchedGetaffinity(0, &here))
	for cpu := 0; one.Count() == 0; cpu++ {
		if here.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	must(t, errors.Join(unix.SchedSetaffinity(a.PID(), &one), unix.SchedSetaffinity(b.PID(), &one)))
	fourTimes(t, a, b)
	must(t, errors.Join(vmm.Weigh(a, light), vmm.Weigh(b, heavy)))
	fourTimes(t, b, a)
}

// fourTimes has one machine have four times as much processor time as another, until that is two seconds for both, however long it takes: what
// else the host has to do takes from both, as they weigh.
func fourTimes(t *testing.T, a, b vmm.Process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	beforeA, beforeB := processorTime(t, a), processorTime(t, b)
	var byA, byB time.Duration
	for byA+byB < 2*time.Second {
		select {
		case <-time.After(20 * time.Millisecond): // nothing tells us
		case <-ctx.Done():
			t.Fatalf("one has had %v and the other %v: %v", byA, byB, ctx.Err())
		}
		byA, byB = processorTime(t, a)-beforeA, processorTime(t, b)-beforeB
	}
	ratio := byA.Seconds() / byB.Seconds()
	t.Logf("%v and %v: %.2f times as much", byA, byB, ratio)
	if ratio < 2.5 || ratio > 6 {
		t.Errorf("a machine that weighs four times what another does had %.2f times as much", ratio)
	}
}

// processorTime is what a machine of one thread has had (kernel: Documentation/scheduler/sched-stats.rst). Of cgroups only v2's count that.
func processorTime(t *testing.T, m vmm.Process) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", m.PID()))
	must(t, err)
	had, _, _ := strings.Cut(string(b), " ")
	ns, err := strconv.ParseInt(had, 10, 64)
	must(t, err)
	return time.Duration(ns)
}
