package e2e

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
	"github.com/paddockvm/paddock/test/port"
)

// embed starts a NATS server that is not Paddock's own.
func embed(t *testing.T, dir, listen string) *bus.Server {
	t.Helper()
	s, err := bus.Embed(bus.EmbedConfig{Listen: listen, StoreDir: dir, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Dispatcher and worker work on an external server, and outlive its restart: what ran goes on, what was printed meanwhile is not lost, and
// the result is reported when it is back.
func TestExternalNATSRestarts(t *testing.T) {
	dir, addr := t.TempDir(), port.Addr(harness.FreePort(t)) // to which the server comes back
	s := embed(t, dir, addr)
	url := s.URL()
	stopped := false
	t.Cleanup(func() {
		if !stopped {
			s.Close()
		}
	})
	d := start(t, harness.Options{Command: "dispatcher", Args: []string{"--listen", "", "--nats", url}})
	d.URL = url
	start(t, harness.Options{Command: "worker", NATS: url, Driver: "hostproc", Args: []string{"--images", "base"}})
	c := connect(t, d)
	hold := t.TempDir()
	job := submit(t, c, jobs.Spec{Image: "base", Limits: jobs.Limits{WallMS: 600_000}, Steps: []jobs.Step{{Shell: fmt.Sprintf(
		"for i in 1 2 3; do echo $i; sleep 0.2; done; cd %s && until [ -e go ]; do sleep 0.05; done; for i in 4 5 6; do echo $i; sleep 0.2; done; >end", hold)}}})
	untilOutput(t, c, job)
	s.Close()
	stopped = true
	letGo(t, hold)
	untilFile(t, filepath.Join(hold, "end")) // the program has printed into a server that is not there
	s = embed(t, dir, addr)
	defer s.Close()
	answered(t, func(ctx context.Context) (jobs.Job, error) { return c.Get(ctx, job) }) // each client comes back in its own time
	r := wantOnce(t, c, job)
	wantSuccess(t, r)
	if r.Attempt != 1 || stdout(t, r) != "1\n2\n3\n4\n5\n6\n" {
		t.Errorf("attempt %d printed %q", r.Attempt, stdout(t, r))
	}
	var events strings.Builder
	for e, err := range c.Follow(t.Context(), job, client.Position{}) {
		if err != nil {
			t.Fatal(err)
		}
		events.WriteString(e.Text)
	}
	if events.String() != "1\n2\n3\n4\n5\n6\n" {
		t.Errorf("the events hold %q", events.String())
	}
	wantSuccess(t, runJob(t, c, longJob(0)))
}

// A dispatcher that is killed alone, and its successor: what ran goes on, and what ended meanwhile is reported to the successor.
func TestKillDispatcher(t *testing.T) {
	s := embed(t, t.TempDir(), "127.0.0.1:0")
	t.Cleanup(s.Close)
	o := harness.Options{Command: "dispatcher", Dir: shortDir(t), Args: []string{"--listen", "", "--nats", s.URL()}}
	d := start(t, o)
	d.URL = s.URL()
	start(t, harness.Options{Command: "worker", NATS: s.URL(), Driver: "hostproc", Args: []string{"--images", "base", "--vcpus", "2"}})
	c := connect(t, d)
	ends, goesOn := t.TempDir(), t.TempDir()
	brief, lasting := submit(t, c, witnessed(ends)), submit(t, c, witnessed(goesOn))
	untilOutput(t, c, brief)
	untilOutput(t, c, lasting)
	d.Kill()
	if _, err := c.Submit(t.Context(), new(longJob(0))); err == nil {
		t.Error("accepted by nobody")
	} else if e, ok := errors.AsType[*jobs.Error](err); !ok || e.RetryAfterMS == 0 {
		t.Errorf("an error that says nothing of trying again: %v", err)
	}
	letGo(t, ends)
	untilFile(t, filepath.Join(ends, "end"))
	start(t, o)
	letGo(t, goesOn)
	for _, job := range []string{brief, lasting} {
		r := wantOnce(t, c, job)
		wantSuccess(t, r)
		if r.Attempt != 1 {
			t.Errorf("attempt %d", r.Attempt)
		}
	}
}
