package worker_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/worker"
)

// store is an object store with one object, of zeros without end, or one that does not answer.
type store struct {
	down bool
	read atomic.Int64
}

func (s *store) GetObject(_ context.Context, _ string, ref jobs.ObjectRef) (io.ReadCloser, error) {
	switch {
	case s.down:
		return nil, &jobs.Error{Code: jobs.CodeUnavailable, Message: "read object: timeout", RetryAfterMS: 1000}
	case ref.Name != "zeros":
		return nil, &jobs.Error{Code: jobs.CodeNotFound, Message: "no object " + ref.Name}
	}
	return io.NopCloser(s), nil
}

func (s *store) Read(b []byte) (int, error) {
	clear(b)
	s.read.Add(int64(len(b)))
	return len(b), nil
}

func (s *store) PutObject(context.Context, string, io.Reader) (jobs.ObjectRef, error) {
	return jobs.ObjectRef{}, &jobs.Error{Code: jobs.CodeUnavailable, Message: "write object", RetryAfterMS: 1000}
}

// Whose fault an object is that cannot be had: the store's, the job's, or nobody's yet.
func TestObjectsThatCannotBeHad(t *testing.T) {
	for _, tt := range []struct {
		name, object string
		down         bool
		ending       jobs.Ending
	}{
		{"the store does not answer", "zeros", true, jobs.HostResources},
		{"no such object", "other", false, jobs.FileFailed},
		{"larger than the disk", "zeros", false, jobs.FileFailed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			objects := &store{down: tt.down}
			r.cfg.Objects = objects
			r.run(t)
			s := steps([]string{"true"})
			s.Limits.DiskBytes = 1 << 20
			s.Files = []jobs.File{{Path: "x", Object: &jobs.ObjectRef{Name: tt.object, SHA256: strings.Repeat("0", 64)}}}
			if res := r.report(t, r.put(s).Job).Result; res.Ending != tt.ending {
				t.Errorf("ended %s: %s", res.Ending, res.Reason)
			}
			if n := objects.read.Load(); n > 2<<20 {
				t.Errorf("%d bytes of it were read for a disk of 1 MiB", n)
			}
		})
	}
}

// Of two values of one name a program would see either: there is one, the step's before ours, ours before the image's.
func TestEnvironmentHasEachNameOnce(t *testing.T) {
	r := newRig(t)
	r.cfg.Images = surroundings{catalog{driver: r.cfg.Driver.Name()}}
	r.run(t)
	s := steps([]string{"env"})
	s.Steps[0].Env = map[string]string{"HOME": "/elsewhere", "OWN": "1"}
	l := r.put(s)
	got := strings.Fields(r.report(t, l.Job).Result.Steps[0].Stdout.Text)
	want := []string{"HOME=/elsewhere", "OWN=1", "PADDOCK_ATTEMPT=1", "PADDOCK_JOB=" + l.Job, "PATH=/image", "USER=sandbox"}
	if !slices.Equal(got, want) {
		t.Errorf("environment %q, want %q", got, want)
	}
}

// surroundings is a catalog whose image has an environment, and lets nobody be root.
type surroundings struct{ catalog }

func (surroundings) Env(string) []string { return []string{"PATH=/image", "HOME=/image", "USER=image"} }

func (s surroundings) Offer(name string) (jobs.OfferedImage, bool) { return offered(s, name) }

func (s surroundings) Offered() []jobs.OfferedImage {
	o := s.catalog.Offered()
	o[0].NoRoot = true
	return o
}

// An image that lets no step run as root lets none, whoever admitted the job.
func TestRootIsTheImagesToAllow(t *testing.T) {
	r := newRig(t)
	r.cfg.Images = surroundings{catalog{driver: r.cfg.Driver.Name()}}
	r.run(t)
	s := steps([]string{"true"}, []string{"true"})
	s.Steps[1].User = "root"
	if res := r.report(t, r.put(s).Job).Result; res.Ending != jobs.StartFailed || len(res.Steps) != 0 {
		t.Errorf("ended %s after %d steps", res.Ending, len(res.Steps))
	}
}

// refusing is a dispatcher that will not have a result with steps.
type refusing struct{ *fleet }

func (f refusing) Report(ctx context.Context, r jobs.Report) (jobs.ReportReply, error) {
	if len(r.Result.Steps) > 0 {
		return jobs.ReportReply{}, &jobs.Error{Code: jobs.CodeTooLarge, Message: "more than the server takes"}
	}
	return f.fleet.Report(ctx, r)
}

// A result that is refused for good is not sent for ever: the dispatcher gets one that it takes.
func TestReportRefusedForGood(t *testing.T) {
	r := newRig(t)
	r.cfg.Dispatcher = refusing{r.fleet}
	r.run(t)
	if res := r.report(t, r.put(steps([]string{"true"})).Job).Result; res.Ending != jobs.HostResources || !strings.Contains(res.Reason, "more than the server takes") {
		t.Errorf("ended %s: %s", res.Ending, res.Reason)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

// A worker that must end does, though neither the broker nor the dispatcher is there to hear of it.
func TestAbortWithEverybodyAway(t *testing.T) {
	r := newRig(t)
	r.ttl = time.Minute
	w, err := worker.New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, abort := context.WithCancelCause(zerolog.Nop().WithContext(context.Background()))
	drain, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- w.Run(ctx, drain) }()
	r.put(steps([]string{"sleep", "0.2"}, []string{"sleep", "600"}))
	r.until(t, "the job runs", func() bool { return len(r.beats) > 0 && len(r.beats[len(r.beats)-1].Running) == 1 })
	r.board.mu.Lock()
	r.board.broken = true
	r.board.mu.Unlock()
	r.set(func() { r.away = true })
	close(drain)
	abort(errors.New("second signal"))
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the worker does not end")
	}
}

// Whoever drains says so, before it has gone.
func TestDrainIsTold(t *testing.T) {
	for range 10 {
		r := newRig(t)
		r.cfg.BeatEvery = 5 * time.Second
		r.run(t)
		r.until(t, "a request stands", func() bool { return len(r.requests) > 0 })
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		r.set(func() {
			if !r.beats[len(r.beats)-1].Draining {
				t.Error("the last heartbeat does not say that the worker leaves")
			}
		})
	}
}
