package bus_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// hooking is a brain that calls webhooks, and says what it was asked.
type hooking struct{ bustest.Brain }

func (*hooking) Webhook(_ context.Context, tenant, op string, body []byte) (jobs.WebhookReply, error) {
	switch op {
	case jobs.WebhookRemove:
		return jobs.WebhookReply{Warnings: []string{"careful"}}, &jobs.Error{Code: jobs.CodeNotFound, Message: "no webhook endpoint"}
	case jobs.WebhookDeliveries:
		list := make([]jobs.Delivery, 1000)
		for i := range list {
			list[i] = jobs.Delivery{ID: jobs.NewID(), URL: "https://example.com/" + strings.Repeat("x", 2000)}
		}
		return jobs.WebhookReply{Deliveries: list, Next: "the next"}, nil
	}
	return jobs.WebhookReply{Secret: tenant + " " + op + " " + string(body)}, nil
}

// TestWebhooks: what is asked of webhooks reaches the brain with the subject's tenant, and a page of deliveries is no longer than a message.
func TestWebhooks(t *testing.T) {
	s := bustest.Start(t)
	bustest.Serve(t, s.Connect(), &hooking{})
	nc := s.Plain()
	ask := func(tenant, op, body string) (r jobs.WebhookReply) {
		t.Helper()
		m, err := nc.Request(jobs.WebhookSubject(tenant, op), []byte(body), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(m.Data, &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := ask("t", "rotate", `{"id":"x"}`); r.Secret != `t rotate {"id":"x"}` || r.Error != nil {
		t.Errorf("reply %+v", r)
	}
	if r := ask("t", "remove", ``); r.Error == nil || r.Error.Code != jobs.CodeNotFound || len(r.Warnings) != 1 {
		t.Errorf("reply %+v", r)
	}
	r := ask("t", "deliveries", ``)
	if n := len(r.Deliveries); n < 100 || n == 1000 || r.Next != r.Deliveries[n-1].ID {
		t.Errorf("%d deliveries, next %s", n, r.Next)
	}
}

// TestNoWebhooks: a brain that calls none leaves the subject unanswered.
func TestNoWebhooks(t *testing.T) {
	s := bustest.Start(t)
	bustest.Serve(t, s.Connect(), &bustest.Brain{})
	if m, err := s.Plain().Request(jobs.WebhookSubject("t", "list"), nil, 2*time.Second); err == nil {
		t.Errorf("answered %s", m.Data)
	}
}
