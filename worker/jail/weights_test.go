package jail_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker/jail"
)

// weightFiles are those by which a machine weighs: in v2, and in v1 of a controller; and what they hold for so many processors, or so much memory.
var weightFiles = []struct {
	v2, controller, v1 string
	always             bool // the kernel has it where it has the controller
	of                 func(w vmm.Weight, unified bool) int64
}{
	{"cpu.weight", "cpu", "cpu.shares", true, func(w vmm.Weight, unified bool) int64 {
		if unified {
			return int64(100 * w.CPUs)
		}
		return int64(1024 * w.CPUs)
	}},
	{"memory.low", "memory", "memory.soft_limit_in_bytes", true, func(w vmm.Weight, _ bool) int64 { return w.MemoryBytes }},
	{"io.weight", "blkio", "blkio.weight", false, func(w vmm.Weight, unified bool) int64 {
		if unified {
			return int64(100 * w.CPUs)
		}
		return min(int64(100*w.CPUs), 1000)
	}},
	{"io.bfq.weight", "blkio", "blkio.bfq.weight", false, func(w vmm.Weight, _ bool) int64 { return min(int64(100*w.CPUs), 1000) }},
}

// weighs has the kernel say of a machine that it weighs so much, by each of the files that it has for it.
func weighs(t *testing.T, m vmm.Process, want vmm.Weight) {
	t.Helper()
	for _, f := range weightFiles {
		path := cgroupPath(t, m.PID(), f.v2, f.controller, f.v1)
		unified := filepath.Base(path) == f.v2
		got, err := lastNumber(path)
		if errors.Is(err, fs.ErrNotExist) && !f.always {
			t.Logf("this kernel has no %s", filepath.Base(path))
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		if want := f.of(want, unified); got != want {
			t.Errorf("%s holds %d, want %d", path, got, want)
		}
	}
}

// lastNumber is what a file ends in: "100", or "default 100".
func lastNumber(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	words := strings.Fields(string(b))
	if len(words) == 0 {
		return 0, fmt.Errorf("%s is empty", path)
	}
	return strconv.ParseInt(words[len(words)-1], 10, 64)
}

// A machine weighs what it has, which is less than what it may come to have; and another size when it has that.
func TestWeights(t *testing.T) {
	l := newLauncher(t, jail.Config{})
	for _, part := range []string{"cpu", "memory"} {
		bounded(t, l, part)
	}
	small, large, larger := vmm.Weight{CPUs: 1.5, MemoryBytes: 100 << 20}, vmm.Weight{CPUs: 4.5, MemoryBytes: 200 << 20}, vmm.Weight{CPUs: 20.5, MemoryBytes: 1 << 30}
	sleeper := vmm.Command{
		Name: "m-0123456789abcdef", Path: "/bin/sleep", Args: []string{"1000"}, Share: vmm.Share{CPUs: 20.5, MemoryBytes: 1 << 30, Weight: small},
	}
	m := launch(t, l, sleeper)
	weighs(t, m, small)
	sleeper.Share.Weight = vmm.Weight{}
	whole := launch(t, l, sleeper) // what is not said is all that it may use
	weighs(t, whole, larger)
	for _, w := range []vmm.Weight{large, larger, small} {
		must(t, vmm.Weigh(m, w))
		weighs(t, m, w)
	}
	must(t, vmm.Weigh(m, vmm.Weight{CPUs: 2.5}))
	weighs(t, m, vmm.Weight{CPUs: 2.5, MemoryBytes: small.MemoryBytes})
	weighs(t, whole, larger)
	must(t, m.Kill())
	must(t, vmm.Weigh(m, large)) // it weighs nothing any more
}

// Where memory is given twice, half of what a machine was given is its own.
func TestWeightsOfOvercommittedMemory(t *testing.T) {
	l := newLauncher(t, jail.Config{MemoryBytes: 1 << 30, Overcommit: 2})
	bounded(t, l, "memory")
	m := launch(t, l, vmm.Command{
		Name: "m-0123456789abcdef", Path: "/bin/sleep", Args: []string{"1000"}, Share: vmm.Share{CPUs: 1.5, MemoryBytes: 100 << 20},
	})
	weighs(t, m, vmm.Weight{CPUs: 1.5, MemoryBytes: 50 << 20})
	must(t, vmm.Weigh(m, vmm.Weight{MemoryBytes: 33<<20 + 100})) // no whole number of pages
	weighs(t, m, vmm.Weight{CPUs: 1.5, MemoryBytes: 33 << 19})
	limit, err := lastNumber(cgroupPath(t, m.PID(), "memory.max", "memory", "memory.limit_in_bytes"))
	if err != nil || limit != 100<<20 {
		t.Errorf("it may use %d: %v", limit, err)
	}
}

// What a machine may use grows and shrinks while it runs.
func TestBoundMemory(t *testing.T) {
	l := newLauncher(t, jail.Config{})
	bounded(t, l, "memory")
	sleeper := vmm.Command{
		Name: "m-0123456789abcdef", Path: "/bin/sleep", Args: []string{"1000"},
		Share: vmm.Share{CPUs: 1.5, MemoryBytes: 100 << 20},
	}
	m := launch(t, l, sleeper)
	for _, bytes := range []int64{300 << 20, 200 << 20, 100 << 20, 400 << 20} {
		must(t, vmm.BoundMemory(m, bytes))
		for _, f := range [][2]string{{"memory.max", "memory.limit_in_bytes"}, {"memory.max", "memory.memsw.limit_in_bytes"}} {
			got, err := lastNumber(cgroupPath(t, m.PID(), f[0], "memory", f[1]))
			if f[1] == "memory.memsw.limit_in_bytes" && errors.Is(err, fs.ErrNotExist) {
				continue // the kernel does not count swap
			}
			if err != nil || got != bytes {
				t.Errorf("%s: %d, %v, want %d", f[0], got, err, bytes)
			}
		}
	}
	must(t, m.Kill())
	must(t, vmm.BoundMemory(m, 100<<20)) // it has none any more
}

// All machines together weigh what the host's processors do. In v2 what is a machine's own memory has to be its parent's too.
func TestWeightOfAllMachines(t *testing.T) {
	l := newLauncher(t, jail.Config{})
	bounded(t, l, "memory")
	m := launch(t, l, vmm.Command{Name: "m-0123456789abcdef", Path: "/bin/sleep", Args: []string{"1000"}, Share: vmm.Share{CPUs: 1.5, MemoryBytes: 100 << 20}})
	for _, f := range weightFiles {
		path := cgroupPath(t, m.PID(), f.v2, f.controller, f.v1)
		got, err := lastNumber(filepath.Join(filepath.Dir(filepath.Dir(path)), filepath.Base(path)))
		if errors.Is(err, fs.ErrNotExist) && !f.always {
			continue
		}
		// Other launchers of this host write here too: those of the same processors, and of as much memory as each says.
		switch filepath.Base(path) {
		case "memory.low":
			if err != nil || got < 100<<20 {
				t.Errorf("%s: %d, %v", path, got, err)
			}
		case "memory.soft_limit_in_bytes":
			if err != nil || got < 1<<60 {
				t.Errorf("%s bounds all machines: %d, %v", path, got, err)
			}
		default:
			if want := f.of(vmm.Weight{CPUs: float64(runtime.NumCPU())}, filepath.Base(path) == f.v2); err != nil || got != want {
				t.Errorf("%s: %d, want %d: %v", path, got, want, err)
			}
		}
	}
}
