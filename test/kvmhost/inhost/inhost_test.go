package inhost_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// paddock gives the binary, where this is the host for it.
func paddock(t *testing.T) string {
	t.Helper()
	if os.Getenv("REQUIRE_KVM") == "" {
		t.Skip("SKIPPED: it wants a host whose KVM works: make test-kvm makes one")
	}
	bin, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// The doctor finds all that it looks for; what it may find missing is what this host does not do: building images, and serving yet.
func TestDoctor(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cache, err := harness.Cache()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, paddock(t), "doctor", "-o", "json", "--state-dir", t.TempDir(), "--image-dir", cache+"/images")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("doctor: %v: %s%s", err, out, said.Bytes())
	}
	var findings []struct{ Check, Status, Detail, Advice string }
	if err := json.Unmarshal(out, &findings); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	status := map[string]string{}
	for _, f := range findings {
		t.Logf("%-12s %-9s %s", f.Check, f.Status, f.Detail)
		status[f.Check] = f.Status
		if strings.HasPrefix(f.Check, "jail.") { // a line for each wall that is missing
			t.Errorf("%s is %s: %s; %s", f.Check, f.Status, f.Detail, f.Advice)
		}
		if f.Check == "jail" && !strings.Contains(f.Detail, "all walls") {
			t.Errorf("jail: %s", f.Detail)
		}
	}
	for _, check := range []string{"qemu", "kvm", "jail", "agent", "images", "state"} {
		if status[check] != "ok" {
			t.Errorf("%s is %q", check, status[check])
		}
	}
}

// within bounds what is waited for: a template is booted and warmed, in a machine within a machine.
const within = 4 * time.Minute

// A job that comes over NATS runs in a machine of KVM's, in a jail that lacks nothing.
func TestJobOnKVM(t *testing.T) { jobsOn(t, "qemu", "--accel", "kvm") }

// The same, in a machine of the real Cloud Hypervisor.
func TestJobOnCloudHypervisor(t *testing.T) {
	binary := os.Getenv("CLOUD_HYPERVISOR")
	if binary == "" {
		t.Skip("SKIPPED: CLOUD_HYPERVISOR names no binary: the real one is not tested")
	}
	jobsOn(t, "cloud-hypervisor", "--cloud-hypervisor", binary)
}

func jobsOn(t *testing.T, driver string, args ...string) {
	bin := paddock(t)
	site := newSite(t)
	dir, err := os.MkdirTemp("", "pd-") //nolint:usetesting // t.TempDir is too long for a socket in it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	start := time.Now()
	p, err := harness.Start(t.Context(), harness.Options{
		Binary: site.program(t, dir, bin), Dir: dir, ReadyWithin: within, Log: os.Stderr, Driver: driver,
		Args: append(args, "--jail-require", "full", "--network", "on", "--network-dns", gateway, "--images", "base", "--ready", "1", "--prepared", "1", "--probe-timeout", "20s", "--step-timeout", "2m"),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Stop(); err != nil {
			t.Error("stop:", err)
		}
	}()
	t.Logf("ready after %s", time.Since(start).Round(100*time.Millisecond))
	c, err := client.Connect(p.URL, client.NATS(nats.SetCustomDialer(dialer(site.host))))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 2 {
		start := time.Now()
		r := run(t, c, jobs.Spec{
			Image: "base", Steps: []jobs.Step{{Shell: fmt.Sprintf("echo job %d", i)}}, Limits: jobs.Limits{WallMS: within.Milliseconds()},
		})
		t.Logf("job %d: %s after %s; degraded %v, phases %+v", i, r.Ending, time.Since(start).Round(time.Millisecond), r.Degraded, r.Phases)
		if !r.Success() {
			t.Fatalf("ended %s: %s %s: %+v", r.Ending, r.Limit, r.Reason, r.Steps)
		}
		if got, want := string(r.Steps[len(r.Steps)-1].Stdout.Data()), fmt.Sprintf("job %d\n", i); got != want {
			t.Errorf("said %q, want %q", got, want)
		}
		if len(r.Degraded) > 0 {
			t.Errorf("degraded: %v", r.Degraded)
		}
	}
	snapshotOf(t, c)
	site.reaches(t, c)
}

// snapshotOf has a snapshot made of a job that runs, and runs another in it, and that one's too.
func snapshotOf(t *testing.T, c *client.Client) {
	image := "base"
	for i := range 2 {
		spec := jobs.Spec{
			Image: image, Limits: jobs.Limits{WallMS: within.Milliseconds()},
			Steps: []jobs.Step{{Shell: fmt.Sprintf("cd /work; echo %d >> kept; echo %d >> /dev/shm/kept; echo ready; sleep 600", i, i)}},
		}
		id := submit(t, c, spec)
		untilReady(t, c, id)
		s, err := c.Snapshot(t.Context(), id, jobs.SnapshotRequest{})
		if err != nil {
			t.Fatal("snapshot:", err)
		}
		t.Logf("snapshot of %s: paused for %.1f ms, %d KiB of memory and %d of disk changed", image, s.PausedMS, s.MemoryBytes>>10, s.ScratchBytes>>10)
		if _, err := c.Cancel(t.Context(), id); err != nil {
			t.Fatal("cancel:", err)
		}
		image = s.Image
	}
	start := time.Now()
	r := run(t, c, jobs.Spec{
		Image: image, Limits: jobs.Limits{WallMS: within.Milliseconds()}, Steps: []jobs.Step{{Shell: "cat /work/kept /dev/shm/kept"}},
	})
	t.Logf("a job in %s: %s after %s", image, r.Ending, time.Since(start).Round(time.Millisecond))
	if got := string(r.Steps[len(r.Steps)-1].Stdout.Data()); !r.Success() || got != "0\n1\n0\n1\n" {
		t.Errorf("ended %s: %s %s; it said %q", r.Ending, r.Limit, r.Reason, got)
	}
}

// untilReady waits for the job's word.
func untilReady(t *testing.T, c *client.Client, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for e, err := range c.Follow(ctx, id, client.Position{}) {
		if err != nil {
			t.Fatalf("follow %s: %v", id, err)
		}
		if e.Final {
			t.Fatalf("job %s ended before it was ready: %+v", id, e.Result)
		}
		if e.Type == jobs.EventOutput && bytes.Contains(e.Data(), []byte("ready\n")) {
			return
		}
	}
	t.Fatalf("no word of %s", id)
}

func run(t *testing.T, c *client.Client, s jobs.Spec) jobs.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	id := submit(t, c, s)
	result, err := c.Wait(ctx, id)
	if err != nil {
		t.Fatalf("wait for %s: %v", id, err)
	}
	return result
}

// submit waits until the image is offered: the dispatcher hears of a snapshot with the worker's next beat.
func submit(t *testing.T, c *client.Client, s jobs.Spec) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for {
		r, err := c.Submit(ctx, &s)
		if err == nil {
			return r.Job.ID
		}
		if e, is := errors.AsType[*jobs.Error](err); !is || e.Code != jobs.CodeInvalid || !strings.HasPrefix(s.Image, "snapshot:") || ctx.Err() != nil {
			t.Fatal("submit:", err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}
