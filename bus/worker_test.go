package bus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// What a worker says arrives as it was said, and so does the answer.
func TestWorkerCalls(t *testing.T) {
	s := bustest.Start(t)
	held := jobs.Held{Job: jobs.NewID(), Attempt: 2, Epoch: 7}
	beat := jobs.Beat{Worker: "w", Session: 3, Running: []jobs.Held{held}, Degraded: []string{"<no seccomp>"}}
	report := jobs.Report{Worker: "w", Held: held, Events: 5, Result: jobs.Result{Ending: jobs.Exited, Reason: "<&>"}}
	brain := &bustest.Brain{
		OnBeat: func(_ context.Context, b jobs.Beat) (jobs.BeatReply, error) {
			return jobs.BeatReply{Session: 4, Cancel: b.Running, TTLMS: 10}, nil
		},
		OnReport: func(_ context.Context, r jobs.Report) (jobs.ReportReply, error) {
			if diff := cmp.Diff(report, r); diff != "" {
				t.Error(diff)
			}
			return jobs.ReportReply{Fenced: true}, nil
		},
		OnLease: func(context.Context, jobs.LeaseRequest) (jobs.LeaseReply, error) {
			return jobs.LeaseReply{}, &jobs.Error{Code: jobs.CodeForbidden, Message: "no such session", RetryAfterMS: 100}
		},
	}
	bustest.Serve(t, s.Connect(), brain)
	w := s.Connect()
	b, err := w.Beat(t.Context(), beat)
	if diff := cmp.Diff(jobs.BeatReply{Session: 4, Cancel: []jobs.Held{held}, TTLMS: 10}, b); diff != "" || err != nil {
		t.Error(diff, err)
	}
	r, err := w.Report(t.Context(), report)
	if diff := cmp.Diff(jobs.ReportReply{Fenced: true}, r); diff != "" || err != nil {
		t.Error(diff, err)
	}
	l, err := w.Lease(t.Context(), jobs.LeaseRequest{Worker: "w"})
	if err != nil || l.Error == nil || l.Error.Code != jobs.CodeForbidden || l.Error.RetryAfterMS != 100 {
		t.Errorf("got %+v, %v", l.Error, err)
	}
	report.Result.Reason = strings.Repeat("x", 3<<20)
	if _, err := w.Report(t.Context(), report); code(err) != jobs.CodeTooLarge {
		t.Errorf("a report of 3 MB: got %v, want too_large, which is not tried again", err)
	}
}

// foreman is a brain that knows of workers.
type foreman struct {
	*bustest.Brain
	bus.Operator // nil: nothing else is asked of it
	list         []jobs.WorkerInfo
}

func (o *foreman) Workers(context.Context) ([]jobs.WorkerInfo, error) { return o.list, nil }

// However many snapshots workers have, there is a list of them.
func TestWorkersWithManySnapshots(t *testing.T) {
	s := bustest.Start(t)
	o := &foreman{Brain: &bustest.Brain{}}
	for n := range 12 {
		w := jobs.WorkerInfo{Name: fmt.Sprint("w", n), Images: []string{"base"}}
		for range 2000 {
			w.Images = append(w.Images, jobs.SnapshotImage(strings.Repeat("t", 63), jobs.NewID()))
		}
		o.list = append(o.list, w)
	}
	bustest.Serve(t, s.Connect(), o)
	m, err := s.Plain().Request(jobs.FleetSubject("list"), nil, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var r jobs.FleetReply
	if err := json.Unmarshal(m.Data, &r); err != nil {
		t.Fatal(err)
	}
	if r.Error != nil || len(r.Workers) != 12 {
		t.Fatalf("%d workers, %v", len(r.Workers), r.Error)
	}
	for _, w := range r.Workers {
		if !slices.Equal(w.Images, []string{"base"}) {
			t.Errorf("%s has %d images", w.Name, len(w.Images))
		}
	}
}

// Leases of which the specs make more than a message all arrive.
func TestLeaseLarge(t *testing.T) {
	s := bustest.Start(t)
	var given []jobs.Lease
	brain := &bustest.Brain{OnLease: func(context.Context, jobs.LeaseRequest) (jobs.LeaseReply, error) {
		return jobs.LeaseReply{Leases: given}, nil
	}}
	bustest.Serve(t, s.Connect(), brain)
	w := s.Connect()
	for _, sizes := range [][]int{{}, {10}, {1 << 20}, {10, 10}, {600_000, 600_000, 600_000, 600_000}, {10, 1 << 20, 1 << 20, 10, 1 << 20}} {
		t.Run(fmt.Sprint(sizes), func(t *testing.T) {
			given = nil
			for i, n := range sizes {
				given = append(given, jobs.Lease{Held: jobs.Held{Job: jobs.NewID(), Attempt: i}, Spec: jobs.Spec{Source: strings.Repeat("<", n)}})
			}
			r, err := w.Lease(t.Context(), jobs.LeaseRequest{Worker: "w"})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(given, r.Leases); diff != "" {
				t.Errorf("%.500s", diff)
			}
		})
	}
}

// Where the rest of an answer with leases does not come, what has come is given to the worker soon: until it has it no heartbeat names them.
func TestLeaseWithoutTheRest(t *testing.T) {
	s := bustest.Start(t)
	w, nc := s.Connect(), s.Plain()
	if _, err := nc.SubscribeSync("the.rest"); err != nil { // who listens there says nothing
		t.Fatal(err)
	}
	first, err := json.Marshal(jobs.LeaseReply{Leases: []jobs.Lease{{Held: jobs.Held{Job: jobs.NewID(), Attempt: 1}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Subscribe(jobs.LeaseSubject, func(m *nats.Msg) { _ = m.RespondMsg(&nats.Msg{Reply: "the.rest", Data: first}) }); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := w.Lease(ctx, jobs.LeaseRequest{Worker: "w"})
	if err != nil || len(r.Leases) != 1 {
		t.Errorf("got %d leases, %v", len(r.Leases), err)
	}
	if ctx.Err() != nil {
		t.Error("what had come was kept until the worker's time was over")
	}
}

// Without a dispatcher, or with one that dies while it is asked, a worker gets a typed error, in its own time.
func TestNoDispatcher(t *testing.T) {
	s := bustest.Start(t)
	w := s.Connect()
	if _, err := w.Lease(t.Context(), jobs.LeaseRequest{Worker: "w"}); code(err) != jobs.CodeUnavailable {
		t.Errorf("nobody serves: got %v", err)
	}
	asked := make(chan struct{}, 1)
	brain := &bustest.Brain{OnLease: func(ctx context.Context, _ jobs.LeaseRequest) (jobs.LeaseReply, error) {
		asked <- struct{}{}
		<-ctx.Done()
		return jobs.LeaseReply{}, nil
	}}
	d := s.Connect()
	bustest.Serve(t, d, brain)
	got := make(chan error)
	poll := func(ctx context.Context) {
		_, err := w.Lease(ctx, jobs.LeaseRequest{Worker: "w", WaitMS: 60_000})
		got <- err
	}
	ctx, cancel := context.WithCancel(t.Context())
	go poll(ctx)
	<-asked
	cancel()
	if err := <-got; code(err) != jobs.CodeUnavailable {
		t.Errorf("the worker's time is over: got %v", err)
	}
	go poll(t.Context())
	<-asked
	s.Close()
	if err := <-got; code(err) != jobs.CodeUnavailable {
		t.Errorf("the connection is lost while a poll stands: got %v", err)
	}
	if _, err := w.Beat(t.Context(), jobs.Beat{}); code(err) != jobs.CodeUnavailable {
		t.Errorf("the server is away: got %v", err)
	}
	s.Restart()
	bustest.Eventually(t, "the dispatcher is heard again", func() bool {
		_, err := w.Beat(t.Context(), jobs.Beat{})
		return err == nil
	})
}

// A poll whose dispatcher has vanished ends with the worker's own patience.
func TestDispatcherVanishes(t *testing.T) {
	s := bustest.Start(t)
	asked := make(chan struct{}, 1)
	d, w := s.Connect(), s.Connect()
	bustest.Serve(t, d, &bustest.Brain{OnLease: func(ctx context.Context, _ jobs.LeaseRequest) (jobs.LeaseReply, error) {
		asked <- struct{}{}
		<-ctx.Done()
		return jobs.LeaseReply{}, nil
	}})
	got := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	go func() {
		_, err := w.Lease(ctx, jobs.LeaseRequest{Worker: "w", WaitMS: 60_000})
		got <- err
	}()
	select {
	case <-asked:
	case err := <-got: // its time was over before anybody was asked
		got <- err
	}
	if err := <-got; code(err) != jobs.CodeUnavailable {
		t.Errorf("got %v, want unavailable", err)
	}
}
