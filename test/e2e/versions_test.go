package e2e

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// previous is the last commit of the version before: of contract 1. When jobs.Contract grows it becomes the last one before that.
const previous = "786a37d"

func previousVersion(t *testing.T) string {
	t.Helper()
	return versionOf(t, previous)
}

// versionOf gives an earlier version's binary; the test skips, or fails where REQUIRE_HISTORY says so, where the history is not here.
func versionOf(t *testing.T, commit string) string {
	t.Helper()
	needMachines(t)
	bin, err := harness.Version(t.Context(), commit)
	if errors.Is(err, harness.ErrNoHistory) && os.Getenv("REQUIRE_HISTORY") == "" {
		t.Skipf("SKIPPED: %v: no versions are tested together", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// While a fleet is upgraded, workers and dispatchers of two versions work together, in whichever order it is done.
func TestVersionsTogether(t *testing.T) {
	old := previousVersion(t)
	now, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, dispatcher, worker, client string }{
		{"old worker", now, old, now},
		{"old worker and client", now, old, old},
		{"old dispatcher and client", old, now, old},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := embed(t, t.TempDir(), "127.0.0.1:0")
			t.Cleanup(s.Close)
			start(t, harness.Options{Binary: c.dispatcher, Command: "dispatcher", Args: []string{"--listen", "", "--nats", s.URL()}})
			start(t, harness.Options{Binary: c.worker, Command: "worker", NATS: s.URL(), Driver: "hostproc", Args: []string{"--images", "base"}})
			run := func(line string) (out string, code int) {
				cmd := exec.CommandContext(t.Context(), c.client, "run", "--nats", s.URL(), "--image", "base", "--", "sh", "-c", line)
				cmd.Stderr = os.Stderr
				b, err := cmd.Output()
				if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
					t.Error(err)
				}
				return string(b), cmd.ProcessState.ExitCode()
			}
			if out, code := run("echo together; exit 3"); out != "together\n" || code != 3 {
				t.Errorf("the program says %q and exits %d", out, code)
			}
			if out, code := run("head -c 3000000 /dev/zero | tr '\\0' x"); len(out) != 3_000_000 || code != 0 {
				t.Errorf("the program says %d bytes and exits %d", len(out), code)
			}
		})
	}
}

// A fleet is upgraded while a job runs and another waits: first the dispatcher, on the ledger that it has, then the worker.
func TestUpgrade(t *testing.T) {
	old := previousVersion(t)
	s := embed(t, t.TempDir(), "127.0.0.1:0")
	t.Cleanup(s.Close)
	dispatcher := harness.Options{Binary: old, Command: "dispatcher", Dir: shortDir(t), Args: []string{"--listen", "", "--nats", s.URL()}}
	worker := harness.Options{Binary: old, Command: "worker", Dir: shortDir(t), NATS: s.URL(), Driver: "hostproc", Args: []string{"--images", "base", "--vcpus", "1"}}
	d, err := harness.Start(t.Context(), dispatcher)
	if err != nil {
		t.Fatal(err)
	}
	w, err := harness.Start(t.Context(), worker)
	if err != nil {
		t.Fatal(err)
	}
	d.URL = s.URL()
	c := connect(t, d)
	dir := t.TempDir()
	runs := submit(t, c, heldJob(dir))
	running(t, c, runs)
	waits := submit(t, c, longJob(0))
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	dispatcher.Binary = ""
	start(t, dispatcher)
	letGo(t, dir)
	r := wantOnce(t, c, runs)
	if wantSuccess(t, r); r.Attempt != 1 {
		t.Errorf("what ran while the dispatcher was upgraded needed %d attempts", r.Attempt)
	}
	wantSuccess(t, wantOnce(t, c, waits))
	if err := w.Stop(); err != nil {
		t.Fatal(err)
	}
	worker.Binary, worker.Args = "", append(worker.Args, "--labels", "disk=fast")
	start(t, worker)
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) { // until it has been heard of, no worker has what is asked for
		r, err := c.Submit(t.Context(), &jobs.Spec{Image: "base", Steps: []jobs.Step{{Shell: "true"}}, Requires: map[string]string{"disk": "fast"}})
		if err == nil {
			wantSuccess(t, wantOnce(t, c, r.Job.ID))
			return
		}
		if time.Now().After(end) {
			t.Fatal("submit:", err)
		}
	}
}

// running waits until a job runs; an old dispatcher has no replay, so that nobody follows it.
func running(t *testing.T, c *client.Client, job string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		j, err := c.Get(t.Context(), job)
		if err != nil || time.Now().After(end) {
			t.Fatalf("job is %s, %v", j.State, err)
		}
		if j.State == jobs.StateRunning {
			return
		}
	}
}
