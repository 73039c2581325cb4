package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
	"github.com/paddockvm/paddock/test/pgtest"
)

// The database is away for longer than a leader acts without it and a lease and its grace last then: submissions are refused and say when to
// come again, nothing that runs is hurt, whether it ends meanwhile or later, and what was refused is taken when the database is back, with
// the same key.
func TestDatabaseDown(t *testing.T) {
	needMachines(t)
	database := pgtest.Start(t)
	s := embed(t, t.TempDir(), "127.0.0.1:0")
	t.Cleanup(s.Close)
	const acts, ttl, grace = 4 * time.Second, 15 * time.Second, 5 * time.Second // as it is by default: with less a machine that is held up loses leases
	d := start(t, harness.Options{Command: "dispatcher", Args: []string{
		"--listen", "", "--nats", s.URL(), "--ledger", database.Database(t), "--lease-ttl", ttl.String(), "--lease-grace", grace.String(),
	}})
	d.URL = s.URL()
	start(t, harness.Options{Command: "worker", NATS: s.URL(), Driver: "hostproc", Args: []string{"--images", "base", "--vcpus", "3"}})
	c := connect(t, d)
	brief, lasting := t.TempDir(), t.TempDir()
	acting := witnessed(lasting)
	acting.Network.Ports = []int{8080} // its worker ends it when nobody answers for a lease
	before := []string{submit(t, c, witnessed(brief)), submit(t, c, acting)}
	for _, id := range before {
		running(t, c, id)
	}
	refused := jobs.Spec{Image: "base", IdempotencyKey: "again", Steps: []jobs.Step{{Shell: "true"}}}

	database.Kill()
	for back := time.Now().Add(acts + ttl + grace); time.Now().Before(back); time.Sleep(250 * time.Millisecond) { // it is away for so long
		_, err := c.Submit(t.Context(), &refused)
		wantLedgerAway(t, err)
	}
	letGo(t, brief)
	untilFile(t, filepath.Join(brief, "end"))
	_, err := c.Submit(t.Context(), &refused)
	wantLedgerAway(t, err)
	if err := database.Start(); err != nil {
		t.Fatal(err)
	}

	again := accepted(t, c, &refused)
	wantSuccess(t, wantOnce(t, c, again.Job.ID))
	if r := accepted(t, c, &refused); !r.Duplicate || r.Job.ID != again.Job.ID {
		t.Errorf("its key brings in %+v, and had brought in %s", r, again.Job.ID)
	}
	letGo(t, lasting)
	for i, dir := range []string{brief, lasting} {
		r := wantOnce(t, c, before[i])
		if wantSuccess(t, r); r.Attempt != 1 || stdout(t, r) != "1\n" {
			t.Errorf("attempt %d printed %q", r.Attempt, stdout(t, r))
		}
		if ran, err := os.ReadFile(filepath.Join(dir, "begin")); err != nil || string(ran) != "1\n" {
			t.Errorf("attempts that ran: %q, %v", ran, err)
		}
	}
	if l, err := c.List(t.Context(), jobs.ListRequest{}); err != nil || len(l.Jobs) != len(before)+1 {
		t.Errorf("%d jobs, %v: want those that ran and the one that was refused first", len(l.Jobs), err)
	}
}

// witnessed is a job that works until it is let go, and writes which of its attempts begins and ends. Programs on hostproc see this host's files.
func witnessed(dir string) jobs.Spec {
	return jobs.Spec{Image: "base", Limits: jobs.Limits{WallMS: 600_000}, Steps: []jobs.Step{{Shell: fmt.Sprintf(
		"cd %s && echo $PADDOCK_ATTEMPT | tee -a begin && until [ -e go ]; do sleep 0.05; done && echo $PADDOCK_ATTEMPT >>end", dir)}}}
}

// untilFile waits until there is such a file.
func untilFile(t *testing.T, name string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(name); err == nil {
			return
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// wantLedgerAway checks that a dispatcher has refused, for the sake of its ledger: the client alone says much the same where none answers.
func wantLedgerAway(t *testing.T, err error) {
	t.Helper()
	e, ok := errors.AsType[*jobs.Error](err)
	if !ok || e.Code != jobs.CodeUnavailable || e.RetryAfterMS <= 0 || !strings.Contains(e.Message, "ledger") {
		t.Fatalf("while the database is away: %v", err)
	}
}

// accepted submits a job until a dispatcher takes it.
func accepted(t *testing.T, c *client.Client, s *jobs.Spec) jobs.SubmitReply {
	t.Helper()
	return answered(t, func(ctx context.Context) (jobs.SubmitReply, error) { return c.Submit(ctx, s) })
}

// answered asks until there is an answer, for a minute, where what comes says to ask again.
func answered[T any](t *testing.T, ask func(ctx context.Context) (T, error)) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		r, err := ask(ctx)
		if err == nil {
			return r
		}
		e, ok := errors.AsType[*jobs.Error](err)
		if !ok || e.RetryAfterMS <= 0 {
			t.Fatal(err)
		}
		select {
		case <-time.After(time.Duration(e.RetryAfterMS) * time.Millisecond):
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}
