// Package host reads what this host has for machines and how pressed it is: processors, memory, limits of the cgroup that this process
// is in, pressure stall information. It changes nothing. Linux; it may import the standard library and Prometheus' client only.
package host

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// Reader reads a host's files. The zero value reads this host's.
type Reader struct {
	// Root is before /proc and /sys; empty for this host.
	Root string
}

// Capacity is what this process, and what it starts, can use.
type Capacity struct {
	// CPUs is in processors: those that it may run on, or the part of them that its cgroup is held to.
	CPUs float64
	// MemoryMiB is the host's memory or its cgroup's limit, the smaller.
	MemoryMiB int
}

// Capacity reads it anew.
func (r Reader) Capacity() (Capacity, error) {
	total, err := r.meminfo("MemTotal")
	if err != nil {
		return Capacity{}, err
	}
	c := Capacity{CPUs: float64(runtime.NumCPU()), MemoryMiB: int(total >> 20)}
	for _, dir := range r.cgroups("cpu") {
		if quota, ok := r.cpuQuota(dir); ok {
			c.CPUs = min(c.CPUs, quota)
		}
	}
	for _, dir := range r.cgroups("memory") {
		for _, name := range []string{"memory.max", "memory.limit_in_bytes"} {
			if limit, err := r.number(filepath.Join(dir, name)); err == nil {
				c.MemoryMiB = min(c.MemoryMiB, int(limit>>20))
			}
		}
	}
	return c, nil
}

// AvailableMiB is how much memory could be given out without swapping, as the kernel estimates it (proc_meminfo(5), MemAvailable).
func (r Reader) AvailableMiB() (int, error) {
	n, err := r.meminfo("MemAvailable")
	return int(n >> 20), err
}

// meminfo gives a line of /proc/meminfo in bytes.
func (r Reader) meminfo(name string) (int64, error) {
	f, err := os.Open(filepath.Join(r.Root, "/proc/meminfo"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var kib int64
		if n, _ := fmt.Sscanf(s.Text(), name+": %d kB", &kib); n == 1 {
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("no %s in /proc/meminfo", name)
}

// cgroups gives the directories of this process's cgroup and those above it, where the controller is, of version 2 and 1 (cgroups(7)).
func (r Reader) cgroups(controller string) (dirs []string) {
	b, err := os.ReadFile(filepath.Join(r.Root, "/proc/self/cgroup"))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) != 3 {
			continue
		}
		mount := "/sys/fs/cgroup"
		if part[1] != "" {
			if !strings.Contains(","+part[1]+",", ","+controller+",") {
				continue
			}
			mount = filepath.Join(mount, controller)
		}
		for dir := filepath.Clean(part[2]); ; dir = filepath.Dir(dir) {
			dirs = append(dirs, filepath.Join(mount, dir))
			if dir == "/" || dir == "." {
				break
			}
		}
	}
	return dirs
}

// cpuQuota is what a cgroup is held to, in processors.
func (r Reader) cpuQuota(dir string) (float64, bool) {
	if b, err := os.ReadFile(filepath.Join(r.Root, dir, "cpu.max")); err == nil {
		var quota, period float64
		if n, _ := fmt.Sscanf(string(b), "%g %g", &quota, &period); n == 2 && period > 0 {
			return quota / period, true
		}
		return 0, false // "max"
	}
	quota, err := r.number(filepath.Join(dir, "cpu.cfs_quota_us"))
	period, err2 := r.number(filepath.Join(dir, "cpu.cfs_period_us"))
	if err != nil || err2 != nil || quota <= 0 || period <= 0 {
		return 0, false
	}
	return float64(quota) / float64(period), true
}

// number reads a file that holds one; "max" is the largest.
func (r Reader) number(path string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(r.Root, path))
	if err != nil {
		return 0, err
	}
	s := strings.TrimSpace(string(b))
	if s == "max" {
		return math.MaxInt64, nil
	}
	return strconv.ParseInt(s, 10, 64)
}

// Stall is how long tasks waited for a resource (kernel: Documentation/accounting/psi.rst).
type Stall struct {
	// Some is the part of the last 10 seconds in which some task waited, Full in which all did: 0 to 1.
	Some, Full float64
	// SomeSeconds and FullSeconds are sums since the host's start.
	SomeSeconds, FullSeconds float64
}

// ErrNoPressure says that the kernel does not tell: it was built without PSI, or started with psi=0.
var ErrNoPressure = errors.New("no pressure stall information: the kernel wants CONFIG_PSI, and psi=1 where it is off by default")

// Pressure reads how a resource is pressed: "cpu", "memory" or "io".
func (r Reader) Pressure(resource string) (s Stall, err error) {
	b, err := os.ReadFile(filepath.Join(r.Root, "/proc/pressure", resource))
	if errors.Is(err, fs.ErrNotExist) {
		return s, ErrNoPressure
	}
	if err != nil {
		return s, fmt.Errorf("%w: %w", ErrNoPressure, err) // reading gives EOPNOTSUPP where it is off
	}
	for line := range strings.Lines(string(b)) {
		var kind string
		var avg10, avg60, avg300 float64
		var us int64
		if n, _ := fmt.Sscanf(line, "%s avg10=%g avg60=%g avg300=%g total=%d", &kind, &avg10, &avg60, &avg300, &us); n != 5 {
			return s, fmt.Errorf("pressure of %s: %q", resource, line)
		}
		switch kind {
		case "some":
			s.Some, s.SomeSeconds = avg10/100, float64(us)/1e6
		case "full":
			s.Full, s.FullSeconds = avg10/100, float64(us)/1e6
		}
	}
	return s, nil
}
