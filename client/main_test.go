package client_test

import (
	"context"
	"errors"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/leak"
)

func TestMain(m *testing.M) {
	leak.VerifyTestMain(m, leak.NATS()...)
}

func connect(t *testing.T, s *bustest.Server, opts ...client.Option) *client.Client {
	t.Helper()
	c, err := client.Connect(s.URL(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func code(err error) jobs.Code {
	if e, ok := errors.AsType[*jobs.Error](err); ok {
		return e.Code
	}
	return ""
}

func TestConnect(t *testing.T) {
	if _, err := client.Connect("nats://127.0.0.1:1"); err == nil {
		t.Error("nobody listens there")
	}
	s := bustest.Start(t)
	for _, tenant := range []string{"", "a.b", "*", "ü"} {
		if _, err := client.Connect(s.URL(), client.Tenant(tenant)); code(err) != jobs.CodeInvalid {
			t.Errorf("tenant %q: got %v, want invalid", tenant, err)
		}
	}
}

func TestSubmit(t *testing.T) {
	s := bustest.Start(t)
	c := connect(t, s)
	if _, err := c.Submit(t.Context(), &jobs.Spec{}); code(err) != jobs.CodeUnavailable {
		t.Errorf("nobody serves: got %v", err)
	}
	bustest.Serve(t, s.Connect(), &bustest.Brain{})
	spec := &jobs.Spec{Language: "python", Source: "print('<&>')", IdempotencyKey: "k"}
	first, err := c.Submit(t.Context(), spec)
	if err != nil || first.Duplicate {
		t.Fatal(first, err)
	}
	again, err := c.Submit(t.Context(), spec)
	if err != nil || !again.Duplicate || again.Job.ID != first.Job.ID {
		t.Errorf("again: got %+v, %v", again, err)
	}
	_, err = c.Submit(t.Context(), &jobs.Spec{Language: "python", Source: "2", IdempotencyKey: "k"})
	if code(err) != jobs.CodeConflict {
		t.Errorf("another body: got %v, want conflict", err)
	}
	other := connect(t, s, client.Tenant("other"))
	if r, err := other.Submit(t.Context(), spec); err != nil || r.Duplicate || r.Job.ID == first.Job.ID {
		t.Errorf("another tenant's key: got %+v, %v", r, err)
	}
	if _, err := other.Get(t.Context(), first.Job.ID); code(err) != jobs.CodeNotFound {
		t.Errorf("another tenant's job: got %v, want not_found", err)
	}
	if j, err := c.Get(t.Context(), first.Job.ID); err != nil || j.Spec.Source != spec.Source {
		t.Errorf("got %+v, %v", j, err)
	}
	e, ok := errors.AsType[*jobs.Error](second(c.Submit(t.Context(), &jobs.Spec{Language: "cobol"})))
	if !ok || len(e.Faults) < 2 {
		t.Errorf("two faults: got %v", e)
	}
	if _, err := c.Submit(t.Context(), &jobs.Spec{Language: "python", Source: string(make([]byte, 3<<20))}); code(err) != jobs.CodeTooLarge {
		t.Errorf("3 MB: got %v, want too_large", err)
	}
	if l, err := c.List(t.Context(), jobs.ListRequest{}); err != nil || len(l.Jobs) != 1 {
		t.Errorf("list: got %+v, %v", l, err)
	}
}

func second(_ jobs.SubmitReply, err error) error { return err }

// An id that is no id never becomes part of a subject.
func TestNoID(t *testing.T) {
	s := bustest.Start(t)
	bustest.Serve(t, s.Connect(), &bustest.Brain{})
	c := connect(t, s)
	for _, id := range []string{"", "*", ">", "a.b", "a b", jobs.NewID()} {
		if _, err := c.Cancel(t.Context(), id); code(err) != jobs.CodeNotFound {
			t.Errorf("cancel %q: got %v, want not_found", id, err)
		}
		if _, err := c.Wait(t.Context(), id); code(err) != jobs.CodeNotFound {
			t.Errorf("wait for %q: got %v, want not_found", id, err)
		}
		for _, err := range c.Follow(t.Context(), id, client.Position{}) {
			if code(err) != jobs.CodeNotFound {
				t.Errorf("follow %q: got %v, want not_found", id, err)
			}
		}
	}
	if _, err := c.Stdin(t.Context(), "*").Write([]byte("x")); code(err) != jobs.CodeNotFound {
		t.Errorf("stdin of *: got %v, want not_found", err)
	}
}

// What answers need not be a dispatcher; then that is the error.
func TestStrangeAnswers(t *testing.T) {
	s := bustest.Start(t)
	s.Connect() // for the streams
	nc := s.Plain()
	c := connect(t, s)
	for _, answer := range []string{`{}`, `[]`, `{"job": null}`, `no`, ``} {
		sub, err := nc.Subscribe("paddock.v1.>", func(m *nats.Msg) { _ = m.Respond([]byte(answer)) })
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Submit(t.Context(), &jobs.Spec{}); code(err) != jobs.CodeInternal {
			t.Errorf("submit, %q: got %v, want internal", answer, err)
		}
		if _, err := c.Get(t.Context(), jobs.NewID()); code(err) != jobs.CodeInternal {
			t.Errorf("get, %q: got %v, want internal", answer, err)
		}
		if _, err := c.Cancel(t.Context(), jobs.NewID()); code(err) != jobs.CodeInternal {
			t.Errorf("cancel, %q: got %v, want internal", answer, err)
		}
		if err := sub.Unsubscribe(); err != nil {
			t.Fatal(err)
		}
	}
}

// A cancelled context ends a request that nobody answers.
func TestAskEnds(t *testing.T) {
	s := bustest.Start(t)
	asked := make(chan struct{}, 1)
	free := make(chan struct{})
	bustest.Serve(t, s.Connect(), &bustest.Brain{Before: func(context.Context, string) error {
		asked <- struct{}{}
		<-free
		return nil
	}})
	defer close(free)
	c := connect(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if _, err := c.Get(ctx, jobs.NewID()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
}
