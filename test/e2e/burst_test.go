package e2e

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// A thousand submissions at one moment, from several connections, to a queue that has not room for all: each is answered, with a job or with
// a refusal that says when to come again. Who then does so is taken, and every job ends once.
func TestBurst(t *testing.T) {
	const burst, connections, room, slots = 1000, 8, 600, 8
	p := start(t, harness.Options{Driver: "inproc", Args: []string{
		"--images", "base", "--max-queued", fmt.Sprint(room), "--vcpus", fmt.Sprint(slots), "--memory-mib", fmt.Sprint(slots * 1024), "--ready", fmt.Sprint(slots), "--prepared", "0",
	}})
	var clients []*client.Client
	for range connections {
		clients = append(clients, connect(t, p))
	}
	c := clients[0]
	var holders []string // so that the queue fills, however slow the burst is
	for range slots {
		id := submit(t, c, jobs.Spec{Image: "base", Limits: jobs.Limits{WallMS: 3_600_000}, Steps: []jobs.Step{{Cmd: "sleep", Args: []string{"3600"}}}})
		holders = append(holders, id)
	}
	for _, id := range holders {
		running(t, c, id)
	}

	replies, errs := make([]jobs.SubmitReply, burst), make([]error, burst)
	asks := func(i int) {
		replies[i], errs[i] = clients[i%connections].Submit(t.Context(), &jobs.Spec{
			Image: "base", IdempotencyKey: fmt.Sprint(i), Steps: []jobs.Step{{Cmd: "echo", Args: []string{fmt.Sprint(i)}}},
		})
	}
	var all sync.WaitGroup
	now := make(chan struct{})
	for i := range burst {
		all.Go(func() {
			<-now
			asks(i)
		})
	}
	close(now)
	all.Wait()
	left := refusedOf(t, errs)
	if taken := burst - len(left); taken == 0 || taken > room {
		t.Fatalf("%d of %d are taken, and %d may wait", taken, burst, room)
	}
	t.Logf("%d of %d are refused", len(left), burst)
	if l, err := c.List(t.Context(), jobs.ListRequest{Limit: 1000}); err != nil || len(l.Jobs) != slots+burst-len(left) {
		t.Fatalf("there are %d jobs, %v: want those that were taken, %d, and the %d that run", len(l.Jobs), err, burst-len(left), slots)
	}

	for _, id := range holders {
		if _, err := c.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(10 * time.Minute); len(left) > 0; left = refusedOf(t, errs) {
		if time.Now().After(end) {
			t.Fatalf("%d are refused still", len(left))
		}
		e, _ := errors.AsType[*jobs.Error](errs[left[0]])
		time.Sleep(time.Duration(e.RetryAfterMS) * time.Millisecond)
		for _, i := range left {
			all.Go(func() { asks(i) })
		}
		all.Wait()
	}
	brought := map[string]bool{}
	for i, r := range replies {
		if r.Duplicate || brought[r.Job.ID] {
			t.Fatalf("submission %d brings in %s, which is there", i, r.Job.ID)
		}
		brought[r.Job.ID] = true
		got := wantOnce(t, c, r.Job.ID)
		if wantSuccess(t, got); got.Attempt != 1 || stdout(t, got) != fmt.Sprint(i)+"\n" {
			t.Fatalf("submission %d: attempt %d printed %q", i, got.Attempt, stdout(t, got))
		}
	}
}

// refusedOf gives which submissions were refused, and checks that those were told when to come again: none was left without an answer.
func refusedOf(t *testing.T, errs []error) (refused []int) {
	t.Helper()
	for i, err := range errs {
		if err == nil {
			continue
		}
		if e, ok := errors.AsType[*jobs.Error](err); !ok || e.Code != jobs.CodeQueueFull || e.RetryAfterMS <= 0 {
			t.Fatalf("submission %d: %v", i, err)
		}
		refused = append(refused, i)
	}
	return refused
}
