package e2e

import (
	"errors"
	"strings"
	"testing"

	"github.com/paddockvm/paddock/jobs"
)

// sizes prints what the guest has, once for each time that it changes.
const sizes = `
import os, time
def now():
    with open("/proc/meminfo") as f:
        kib = int(f.readline().split()[1])
    return os.sysconf("SC_NPROCESSORS_ONLN"), kib // 1024
last = None
for _ in range(600):
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
	s.Limits.WallMS = 90_000
	job := submit(t, c, s)
	untilOutput(t, c, job)
	for _, bad := range []jobs.ResizeRequest{{VCPUs: 3}, {MemoryMiB: 128}, {MemoryMiB: 1024}, {VCPUs: -1}} {
		if now, err := c.Resize(t.Context(), job, bad); !hasCode(err, jobs.CodeInvalid) {
			t.Errorf("%+v gives %+v, %v", bad, now, err)
		}
	}
	now, err := c.Resize(t.Context(), job, jobs.ResizeRequest{MemoryMiB: 500}) // rounded up to what can be plugged
	if err != nil || now != (jobs.Resources{VCPUs: 1, MemoryMiB: 512}) {
		t.Fatalf("memory: %+v, %v", now, err)
	}
	now, err = c.Resize(t.Context(), job, jobs.ResizeRequest{VCPUs: 2})
	if err != nil || now != (jobs.Resources{VCPUs: 2, MemoryMiB: 512}) {
		t.Fatalf("processors: %+v, %v", now, err)
	}
	r := wait(t, c, job)
	wantSuccess(t, r)
	lines := strings.Split(strings.TrimSpace(stdout(t, r)), "\n")
	if first, last := lines[0], lines[len(lines)-1]; !strings.HasPrefix(first, "1 ") || !strings.HasPrefix(last, "2 ") || len(lines) < 3 {
		t.Errorf("the program saw %q", lines)
	}
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

func hasCode(err error, code jobs.Code) bool {
	e, ok := errors.AsType[*jobs.Error](err)
	return ok && e.Code == code
}
