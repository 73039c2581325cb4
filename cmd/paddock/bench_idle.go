package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// idle measures what this process and its VMMs use of the host while all machines only wait: processor time over ten seconds, that of the
// threads that run guests (which VMMs name) apart; memory that is private to a process and not the guest's.
func idle(ctx context.Context, r *benchReport) error {
	pids := append(childrenOf(os.Getpid()), os.Getpid())
	before := processorTime(pids)
	start := time.Now()
	select {
	case <-time.After(10 * time.Second):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	after, took := processorTime(pids), time.Since(start)*time.Duration(runtime.NumCPU())
	share := func(d time.Duration) float64 { return 100 * d.Seconds() / took.Seconds() }
	r.Figures["idle: guests, % of cpu"] = share(after.guests - before.guests)
	r.Figures["idle: vmms and paddock, % of cpu"] = share(after.own - before.own)
	var own float64
	for _, pid := range pids {
		mib := ownMemory(pid)
		own += mib
		if pid != os.Getpid() {
			r.Samples["vmm's own MiB"] = append(r.Samples["vmm's own MiB"], mib)
		}
	}
	r.Figures["idle: vmms and paddock, % of memory"] = 100 * own / float64(hostMemoryMiB())
	return nil
}

// times are processor time of threads that run guests, and of all others.
type times struct{ guests, own time.Duration }

// processorTime adds up what processes' threads have used (proc_pid_stat(5): utime and stime, in hundredths of a second).
func processorTime(pids []int) (t times) {
	for _, pid := range pids {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, task := range tasks {
			b, err := os.ReadFile(task)
			if err != nil {
				continue // it has ended
			}
			name, rest, _ := strings.Cut(string(b), ") ")
			fields := strings.Fields(rest)
			if len(fields) < 13 {
				continue
			}
			user, _ := strconv.Atoi(fields[11])
			system, _ := strconv.Atoi(fields[12])
			used := time.Duration(user+system) * 10 * time.Millisecond
			if _, thread, _ := strings.Cut(name, "("); strings.HasPrefix(thread, "CPU ") || strings.HasPrefix(thread, "vcpu") {
				t.guests += used
				continue
			}
			t.own += used
		}
	}
	return t
}

// ownMemory is what is private to a process, in MiB, but for its guest's memory: mappings of the template, or of a zone's file.
func ownMemory(pid int) (mib float64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0
	}
	guest := false
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) >= 5 && !strings.HasSuffix(f[0], ":") {
			name := strings.Join(f[5:], " ")
			guest = strings.Contains(name, "memfd:paddock-") || strings.HasSuffix(name, "/memory")
			continue
		}
		if len(f) < 2 || guest || f[0] != "Private_Clean:" && f[0] != "Private_Dirty:" {
			continue
		}
		kib, _ := strconv.ParseFloat(f[1], 64)
		mib += kib / 1024
	}
	return mib
}
