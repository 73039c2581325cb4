package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

// sizes prints what the guest has, once for each time that it changes, until it has all.
const sizes = `
import os, time
def now():
    with open("/proc/meminfo") as f:
        kib = int(f.readline().split()[1])
    return os.sysconf("SC_NPROCESSORS_ONLN"), kib // 1024
print(os.uname().nodename, flush=True)
last = None
while True:
    if now() != last:
        last = now()
        print(*last, flush=True)
        if last[0] == 2 and last[1] > 400:
            break
    time.sleep(0.1)
`

// TestResize: a machine grows while its program runs, the program sees it, and what it grew by is the worker's again afterwards.
func TestResize(t *testing.T) {
	c := up(t)
	s := python(sizes)
	s.Resources = jobs.Resources{VCPUs: 1, MemoryMiB: 256}
	s.Headroom = jobs.Resources{VCPUs: 2, MemoryMiB: 512}
	s.Limits.WallMS = 600_000
	job := submit(t, c, s)
	lines, stop := iter.Pull(outputLines(t, c, job))
	defer stop()
	// until reads on until the program has seen enough: it looks when the guest lets it, and a resize that it has not seen yet may be followed by the next.
	until := func(what string, is func(vcpus, mib int) bool) {
		t.Helper()
		for {
			line, ok := lines()
			var vcpus, mib int
			if _, err := fmt.Sscan(line, &vcpus, &mib); !ok || err != nil {
				t.Fatalf("%q, and no line of %s", line, what)
			}
			if is(vcpus, mib) {
				return
			}
		}
	}
	machine, _ := lines()
	until("what it has at first", func(vcpus, mib int) bool { return vcpus == 1 && mib <= 256 })
	before := ownMemory(t, machine)
	for _, bad := range []jobs.ResizeRequest{{VCPUs: 3}, {MemoryMiB: 128}, {MemoryMiB: 1024}, {VCPUs: -1}} {
		if now, err := c.Resize(t.Context(), job, bad); !hasCode(err, jobs.CodeInvalid) {
			t.Errorf("%+v gives %+v, %v", bad, now, err)
		}
	}
	now, err := c.Resize(t.Context(), job, jobs.ResizeRequest{MemoryMiB: 500}) // rounded up to what can be plugged
	if err != nil || now != (jobs.Resources{VCPUs: 1, MemoryMiB: 512}) {
		t.Fatalf("memory: %+v, %v", now, err)
	}
	// The VMM has 128 MiB of its own; what the kernel is told is cut to pages.
	if after := ownMemory(t, machine); after < (before*640/384)-8192 || after > (before*640/384)+8192 {
		t.Errorf("of the host's memory it has %d bytes, %d before it grew", after, before)
	}
	until("more memory", func(vcpus, mib int) bool { return vcpus == 1 && mib > 400 })
	now, err = c.Resize(t.Context(), job, jobs.ResizeRequest{VCPUs: 2})
	if err != nil || now != (jobs.Resources{VCPUs: 2, MemoryMiB: 512}) {
		t.Fatalf("processors: %+v, %v", now, err)
	}
	r := wait(t, c, job)
	wantSuccess(t, r)
	if before == 0 && !slices.ContainsFunc(r.Degraded, func(wall string) bool { return wall == "jail.cgroup" || wall == "jail.cgroup.memory" }) {
		t.Errorf("the machine %s has no cgroup for its memory, and lacks only %v", machine, r.Degraded)
	}
	until("more processors", func(vcpus, mib int) bool { return vcpus == 2 && mib > 400 })
	if _, err := c.Resize(t.Context(), job, jobs.ResizeRequest{VCPUs: 1}); !hasCode(err, jobs.CodeUnavailable) {
		t.Errorf("after its end: %v", err)
	}
	without := submit(t, c, longJob(5))
	untilOutput(t, c, without)
	if _, err := c.Resize(t.Context(), without, jobs.ResizeRequest{VCPUs: 2}); !hasCode(err, jobs.CodeUnavailable) {
		t.Errorf("without headroom: %v", err)
	}
	wantSuccess(t, wait(t, c, without))
}

// outputLines are the lines that a job prints, as they come.
func outputLines(t *testing.T, c *client.Client, job string) iter.Seq[string] {
	t.Helper()
	return func(yield func(string) bool) {
		ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
		defer cancel()
		var part string
		for e, err := range c.Follow(ctx, job, client.Position{}) {
			if err != nil {
				t.Errorf("follow %s: %v", job, err)
				return
			}
			if e.Type != jobs.EventOutput {
				continue
			}
			part += e.Text
			for line, rest, ok := strings.Cut(part, "\n"); ok; line, rest, ok = strings.Cut(part, "\n") {
				if part = rest; !yield(line) {
					return
				}
			}
		}
	}
}

// ownMemory is what the kernel leaves to a machine as long as others have more than theirs; 0 where machines have no cgroups.
func ownMemory(t *testing.T, machine string) int64 {
	t.Helper()
	var found []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // others' come and go
			return nil
		}
		if name := filepath.Base(path); strings.HasPrefix(filepath.Base(filepath.Dir(path)), machine+".") && (name == "memory.low" || name == "memory.soft_limit_in_bytes") {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		return 0
	}
	b, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func hasCode(err error, code jobs.Code) bool {
	e, ok := errors.AsType[*jobs.Error](err)
	return ok && e.Code == code
}
