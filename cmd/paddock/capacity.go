package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker/host"
)

// leastMemoryMiB is what the smallest machine takes that runs anything.
const leastMemoryMiB = 96

// defaultReserve is what stays the system's and Paddock's own, in MiB: a quarter of the host's memory, and no more than 8 GiB of it.
func defaultReserve(memoryMiB int) int { return min(memoryMiB/4, 8192) }

// hostMemoryMiB is what this process can use of the host's memory; 1 GiB where nothing says.
func hostMemoryMiB() int {
	c, err := host.Reader{}.Capacity()
	if err != nil {
		return 1024
	}
	return c.MemoryMiB
}

// capacityOf is what machines may use together: as the configuration says it, or else what the host has, less the reserve, as often over
// as it may be committed.
func capacityOf(c config) (jobs.Resources, error) {
	if sane := func(over float64) bool { return over >= 1 && over <= 100 }; !sane(c.OvercommitVCPUs) || !sane(c.OvercommitMemory) { // nor is what is no number
		return jobs.Resources{}, fmt.Errorf("overcommit_vcpus is %g and overcommit_memory %g: both must be from 1 (nothing is promised twice) to 100", c.OvercommitVCPUs, c.OvercommitMemory)
	}
	if c.MemoryMiB > 0 && c.MemoryMiB < leastMemoryMiB {
		return jobs.Resources{}, fmt.Errorf("memory_mib is %d: that is no machine's; want at least %d, or 0 for what the host has", c.MemoryMiB, leastMemoryMiB)
	}
	r := jobs.Resources{VCPUs: c.VCPUs, MemoryMiB: c.MemoryMiB}
	if r.VCPUs > 0 && r.MemoryMiB > 0 {
		return r, nil
	}
	has, err := host.Reader{}.Capacity()
	if err != nil {
		return r, fmt.Errorf("find out what this host has: %w; say it with --vcpus and --memory-mib", err)
	}
	if r.VCPUs == 0 {
		r.VCPUs = max(1, int(math.Floor(has.CPUs*c.OvercommitVCPUs)))
	}
	if r.MemoryMiB == 0 {
		left := has.MemoryMiB - c.ReserveMemoryMiB
		if left < leastMemoryMiB {
			return r, fmt.Errorf("this host has %d MiB of memory, and reserve_memory_mib keeps %d of them: nothing is left for machines", has.MemoryMiB, c.ReserveMemoryMiB)
		}
		r.MemoryMiB = int(float64(left) * c.OvercommitMemory)
	}
	return r, nil
}

// machineMemory is what of this host's memory is all machines' together, in bytes, and how often over it is given to them; zeros where that is
// not known, or is nothing.
func machineMemory(c config) (bytes int64, overcommit float64) {
	left := hostMemoryMiB() - c.ReserveMemoryMiB
	given, err := capacityOf(c)
	if err != nil || left < leastMemoryMiB {
		return 0, 0
	}
	return int64(left) << 20, max(1, float64(given.MemoryMiB)/float64(left))
}

// Machines' uids: below leastUID are the host's users and services, nobody (65534) and 16 bits' -1 among them; from tooLargeUID on, what
// some programs take for a negative number.
const (
	leastUID    = 1 << 16
	tooLargeUID = 1 << 31
	defaultUIDs = "200000-209999"
)

// uidRange reads jail_uids. Its error says what it would have to be.
func uidRange(text string) (first, count int, err error) {
	from, to, _ := strings.Cut(text, "-")
	first, err = strconv.Atoi(from)
	last, err2 := strconv.Atoi(to)
	switch {
	case err != nil || err2 != nil:
		return 0, 0, errors.New("FIRST-LAST, two numbers, like 200000-209999")
	case first < leastUID:
		return 0, 0, fmt.Errorf("uids from %d on: the host's own users have those below", leastUID)
	case last >= tooLargeUID:
		return 0, 0, fmt.Errorf("uids below %d: some programs take larger ones for negative", tooLargeUID)
	case last < first:
		return 0, 0, errors.New("FIRST-LAST, the first no larger than the last")
	}
	return first, last - first + 1, nil
}

// checkUIDs wants a uid for every machine that there may be at once: one for each vCPU, and those that are kept
// ready and prepared of each image.
func checkUIDs(c config, has jobs.Resources) error {
	if c.Jail == "off" || !isMachine(c.Driver) {
		return nil
	}
	_, count, err := uidRange(c.JailUIDs)
	if err != nil {
		return fmt.Errorf("jail_uids: want %w", err)
	}
	if want := has.VCPUs + len(c.Images)*(c.Ready+c.Prepared); count < want {
		return fmt.Errorf("jail_uids: %s: want at least %d uids: for jobs on %d vCPUs, and for %d machines ready and %d prepared of each image",
			c.JailUIDs, want, has.VCPUs, c.Ready, c.Prepared)
	}
	return nil
}

// diskLimits are what each machine's disks are held to.
func diskLimits(c config) vmm.DiskLimits {
	return vmm.DiskLimits{BytesPerSecond: int64(c.DiskMiBPerSecond) << 20, OpsPerSecond: int64(c.DiskOpsPerSecond)}
}
