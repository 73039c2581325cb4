package client_test

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

// An operator's connection, of its own or a dispatcher's, is several tenants' clients; each has its own jobs only.
func TestShared(t *testing.T) {
	s := bustest.StartGuarded(t)
	public, seed := bustest.Key(t)
	s.Allow(access.Credential{NKey: public, Identity: access.Identity{Role: access.Operator, Name: "ada"}})
	s.Close()
	s.Restart()
	b, err := bus.Connect(t.Context(), bus.Config{Server: s.Server, Name: "test", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	brain := &bustest.Brain{}
	bustest.Serve(t, b, brain)
	key, err := nats.NkeyOptionFromSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	dialled, err := b.Dial("watch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dialled.Close)
	jobsOf := map[string]string{"acme": brain.Add("acme"), "other": brain.Add("other")}
	for name, nc := range map[string]*nats.Conn{"its own": s.Plain(key), "the dispatcher's": dialled} {
		for tenant, job := range jobsOf {
			c, err := client.New(nc, tenant)
			if err != nil {
				t.Fatal(err)
			}
			if r, err := c.Replay(t.Context(), jobs.ReplayRequest{Job: job}); err != nil || len(r.Events) != 0 || r.Ended {
				t.Errorf("%s, %s: %+v, %v", name, tenant, r, err)
			}
			for of, job := range jobsOf {
				if _, err := c.Replay(t.Context(), jobs.ReplayRequest{Job: job}); of != tenant && code(err) != jobs.CodeNotFound {
					t.Errorf("%s, %s: a job of %s: %v, want not_found", name, tenant, of, err)
				}
			}
		}
	}
	if _, err := client.New(dialled, "a.b"); code(err) != jobs.CodeInvalid {
		t.Errorf("a tenant of two tokens: %v, want invalid", err)
	}
}

// Replay gives what has been, from a position on.
func TestReplay(t *testing.T) {
	r := newRig(t)
	r.publish(bustest.Event(r.job, 1, 1, "a"), bustest.Event(r.job, 1, 2, "b"), bustest.Final(r.job, 1, 3))
	reply, err := r.client.Replay(t.Context(), jobs.ReplayRequest{Job: r.job, After: jobs.Position{Attempt: 1, Seq: 1}, Limit: 1})
	if err != nil || len(reply.Events) != 1 || reply.Events[0].Text != "b" || !reply.More {
		t.Errorf("got %+v, %v", reply, err)
	}
	if _, err := r.client.Replay(t.Context(), jobs.ReplayRequest{}); code(err) != jobs.CodeInvalid {
		t.Errorf("of nothing: %v, want invalid", err)
	}
}
