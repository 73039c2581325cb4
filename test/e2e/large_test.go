package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// peakMiB is the most memory that a process has had at once, since it began to run its program; 0 for one that is over. What wait4(2) tells of
// one that has ended is no less than what its parent had when it began: the kernel counts what a process had before execve(2).
func peakMiB(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, _ := strconv.Atoi(kib)
	return n / 1024
}

// counted hashes and counts what is written into it.
type counted struct {
	hash.Hash
	n int64
}

func (c *counted) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	return c.Hash.Write(b)
}

// 100 MB of output reach a live viewer, the command line, and a viewer who comes late, whole and in order, and what
// the processes need for it is bounded by the pace, not by the amount: docs/benchmarks.md has the same for 400 MB.
func TestHundredMegabytes(t *testing.T) {
	const first, last = 10_000_000, 21_650_806 // of 9 bytes each: 104,857,263 bytes
	want := &counted{Hash: sha256.New()}
	var line [16]byte
	for i := int64(first); i <= last; i++ {
		_, _ = want.Write(append(strconv.AppendInt(line[:0], i, 10), '\n'))
	}
	// The same without a large output is what the processes need anyway.
	p := start(t, harness.Options{Args: []string{"--images", "base", "--ready", "1", "--prepared", "0"}})
	c := connect(t, p)
	wantSuccess(t, runJob(t, c, jobs.Spec{Image: "base", Steps: []jobs.Step{{Shell: "exit 0"}}}))
	before := peakMiB(p.PID())

	job := submit(t, c, jobs.Spec{
		Image: "base", Limits: jobs.Limits{WallMS: 240_000, OutputBytes: 200 << 20},
		Steps: []jobs.Step{{Shell: fmt.Sprintf("seq %d %d", first, last)}},
	})
	bin, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	logs := exec.CommandContext(t.Context(), bin, "logs", "-f", "--nats", p.URL, job)
	cli, complaint := &counted{Hash: sha256.New()}, &bytes.Buffer{}
	logs.Stdout, logs.Stderr = cli, complaint
	if err := logs.Start(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var vmm, cliPeak int // as far as they are seen
	over, seen := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(seen)
		for {
			for _, pid := range processes(t, p.PID(), "org.paddock.agent.0") {
				vmm = max(vmm, peakMiB(pid))
			}
			cliPeak = max(cliPeak, peakMiB(logs.Process.Pid))
			select {
			case <-over:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	live, result := followAll(t, c, job)
	took := time.Since(began)
	wantSuccess(t, *result)
	if err := logs.Wait(); err != nil {
		t.Errorf("logs -f: %v %s", err, complaint)
	}
	close(over)
	<-seen
	late, _ := followAll(t, c, job)
	for who, got := range map[string]*counted{"live": live, "logs -f": cli, "late": late} {
		if got.n != want.n || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			t.Errorf("%s: %d bytes of %d, or others than were written", who, got.n, want.n)
		}
	}
	if out := result.Steps[0].Stdout; out.Bytes != want.n || out.Truncated {
		t.Errorf("the result counts %d bytes of %d, truncated %v", out.Bytes, want.n, out.Truncated)
	}
	grown := peakMiB(p.PID()) - before
	t.Logf("%.1f MB in %s; paddock up grew by %d MiB to %d, logs -f needed %d MiB, a VMM at most %d MiB",
		float64(want.n)/1e6, took.Round(time.Millisecond), grown, before+grown, cliPeak, vmm)
	// Ten seconds at the worker's pace (worker/events.go) are what the broker keeps, and as much again is the collector's.
	if grown > 224 || cliPeak == 0 || cliPeak > 64 || vmm == 0 || vmm > 320 {
		t.Errorf("paddock up grew by %d MiB, logs -f needed %d MiB and a VMM %d MiB for an output of %d MB", grown, cliPeak, vmm, want.n/1e6)
	}
}

// followAll reads a job's standard output to its end.
func followAll(t *testing.T, c *client.Client, job string) (*counted, *jobs.Result) {
	t.Helper()
	got := &counted{Hash: sha256.New()}
	var result *jobs.Result
	for e, err := range c.Follow(t.Context(), job, client.Position{}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Stream == jobs.Stdout {
			if e.Offset != got.n {
				t.Fatalf("a chunk at %d after %d bytes", e.Offset, got.n)
			}
			_, _ = io.Copy(got, bytes.NewReader(e.Data()))
		}
		if e.Final {
			result = e.Result
		}
	}
	if result == nil {
		t.Fatalf("job %s has no result", job)
	}
	return got, result
}
