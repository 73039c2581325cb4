// Package e2e drives the built binary with real machines: what the README promises, and what must hold when things die.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

var verbose = flag.Bool("paddock-log", false, "show what the started processes print")

// shared is one `paddock up` with real machines for the tests that leave it unhurt, which they all must.
var shared struct {
	once sync.Once
	p    *harness.Paddock
	err  error
}

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if shared.p != nil {
		if err := shared.p.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop paddock:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// needMachines skips, or fails where REQUIRE_QEMU says so, when there is no binary to test.
func needMachines(t *testing.T) {
	t.Helper()
	if _, err := harness.Binary(); err != nil {
		if os.Getenv("REQUIRE_QEMU") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// needRoot skips, or fails where REQUIRE_ROOT says so, what makes jails and network namespaces by itself.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ROOT") != "" {
		t.Fatal("needs root")
	}
	t.Skip("SKIPPED: needs root for network namespaces and jails")
}

// up gives a client of the shared Paddock.
func up(t *testing.T) *client.Client {
	t.Helper()
	needMachines(t)
	shared.once.Do(func() {
		shared.p, shared.err = harness.Start(context.Background(), harness.Options{Args: []string{"--images", "python,base"}, Log: processLog()})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return connect(t, shared.p)
}

func processLog() *os.File {
	if *verbose {
		return os.Stderr
	}
	return nil
}

// start starts a Paddock of the test's own and stops it with the test.
func start(t *testing.T, o harness.Options) *harness.Paddock {
	t.Helper()
	needMachines(t)
	if *verbose {
		o.Log = os.Stderr
	}
	if o.Dir == "" {
		o.Dir = shortDir(t)
	}
	p, err := harness.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-p.Done():
		default:
			if err := p.Stop(); err != nil {
				t.Error("stop:", err)
			}
		}
		if t.Failed() {
			t.Logf("%s said:\n%s", o.Command, p.Log())
		}
	})
	return p
}

// shortDir is a temporary directory whose name leaves room for socket paths.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pd-") //nolint:usetesting // t.TempDir is too long for a socket in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func connect(t *testing.T, p *harness.Paddock) *client.Client {
	t.Helper()
	c, err := client.Connect(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// submit gives the accepted job's id.
func submit(t *testing.T, c *client.Client, s jobs.Spec) string {
	t.Helper()
	r, err := c.Submit(t.Context(), &s)
	if err != nil {
		t.Fatal("submit:", err)
	}
	return r.Job.ID
}

// wait gives the job's result.
func wait(t *testing.T, c *client.Client, job string) jobs.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r, err := c.Wait(ctx, job)
	if err != nil {
		t.Fatalf("wait for %s: %v", job, err)
	}
	return r
}

func runJob(t *testing.T, c *client.Client, s jobs.Spec) jobs.Result {
	t.Helper()
	return wait(t, c, submit(t, c, s))
}

// python is a job of one Python program.
func python(source string) jobs.Spec { return jobs.Spec{Language: "python", Source: source} }

// untilOutput follows the job until its first output. Templates may have to be built first: the bound is against hanging alone.
func untilOutput(t *testing.T, c *client.Client, job string) jobs.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	for e, err := range c.Follow(ctx, job, client.Position{}) {
		if err != nil {
			t.Fatalf("follow %s: %v", job, err)
		}
		if e.Type == jobs.EventOutput {
			return e
		}
		if e.Final {
			t.Fatalf("job %s ended without output: %+v", job, e.Result)
		}
	}
	t.Fatalf("no output of %s", job)
	return jobs.Event{}
}

func wantSuccess(t *testing.T, r jobs.Result) {
	t.Helper()
	if !r.Success() {
		t.Fatalf("ended %s: %s %s; stderr %q", r.Ending, r.Limit, r.Reason, lastStderr(r))
	}
}

func lastStderr(r jobs.Result) string {
	if len(r.Steps) == 0 {
		return ""
	}
	return string(r.Steps[len(r.Steps)-1].Stderr.Data())
}

func stdout(t *testing.T, r jobs.Result) string {
	t.Helper()
	if len(r.Steps) == 0 {
		t.Fatalf("no steps in %+v", r)
	}
	return string(r.Steps[len(r.Steps)-1].Stdout.Data())
}
