package inhost_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

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
	}
	for _, check := range []string{"qemu", "kvm", "agent", "images", "state"} {
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
	paddock(t)
	dir, err := os.MkdirTemp("", "pd-") //nolint:usetesting // t.TempDir is too long for a socket in it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	start := time.Now()
	p, err := harness.Start(t.Context(), harness.Options{
		Dir: dir, ReadyWithin: within, Log: os.Stderr, Driver: driver,
		Args: append(args, "--images", "base", "--ready", "1", "--prepared", "1", "--probe-timeout", "20s", "--step-timeout", "2m"),
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
	c, err := client.Connect(p.URL)
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
		for _, d := range r.Degraded {
			if strings.Contains(d, "kvm") || strings.Contains(d, "cgroup") {
				t.Errorf("degraded: %s", d)
			}
		}
	}
}

func run(t *testing.T, c *client.Client, s jobs.Spec) jobs.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	r, err := c.Submit(ctx, &s)
	if err != nil {
		t.Fatal("submit:", err)
	}
	result, err := c.Wait(ctx, r.Job.ID)
	if err != nil {
		t.Fatalf("wait for %s: %v", r.Job.ID, err)
	}
	return result
}
