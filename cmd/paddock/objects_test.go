package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

// What a job waits for is kept, however old it is, from when the job is taken until it has ended; what nothing names goes. It is the parts
// that a dispatcher has, put together as it does.
func TestObjectsAreKeptForJobs(t *testing.T) {
	b := bustest.Start(t).Connect()
	f, err := openFront(t.Context(), config{StateDir: t.TempDir()}, b, nil) // with nothing kept for its age
	if err != nil {
		t.Fatal(err)
	}
	defer f.store.Close()
	d, err := dispatcher.New(f.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	put := func(content string) jobs.ObjectRef {
		t.Helper()
		ref, err := b.PutObject(ctx, "acme", strings.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	collect := func(want ...jobs.ObjectRef) {
		t.Helper()
		if err := f.old.Collect(ctx); err != nil {
			t.Fatal(err)
		}
		l, err := b.Objects().List(ctx, "acme")
		if err != nil {
			t.Fatal(err)
		}
		left := map[string]bool{}
		for _, i := range l {
			left[i.Name] = true
		}
		for _, ref := range want {
			if !left[ref.Name] {
				t.Errorf("%v is gone", ref)
			}
			delete(left, ref.Name)
		}
		if len(left) > 0 {
			t.Errorf("there are %v too", left)
		}
	}
	input := put("of a job")
	put("of nobody")
	j, _, err := d.Admit(ctx, "acme", &jobs.Spec{Image: "base", Steps: []jobs.Step{{Shell: "cat x"}}, Files: []jobs.File{{Path: "x", Object: &input}}})
	if err != nil {
		t.Fatal(err)
	}
	later := put("of a schedule")
	if _, err := d.PutSchedule(ctx, "acme", jobs.Schedule{Name: "s", Cron: "@yearly", Spec: &jobs.Spec{
		Image: "base", Steps: []jobs.Step{{Shell: "cat x"}}, Files: []jobs.File{{Path: "x", Object: &later}},
	}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		collect(input, later)
	}
	if _, err := d.Cancel(ctx, "acme", j.ID); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); !j.State.Terminal(); time.Sleep(10 * time.Millisecond) {
		if j, err = d.Get(ctx, "acme", j.ID); err != nil || time.Now().After(end) {
			t.Fatal(j.State, err)
		}
	}
	collect(later)
}
