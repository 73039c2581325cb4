package bus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// A tenant that asks for much at once, and whose answers take long, does not hold up another's; what it asks is answered all the same.
func TestObjectsInTurns(t *testing.T) {
	s, acme := tenantsOn(t)
	other := &tenantOf{t, s.As(s.Let(access.Tenant, "other"), nats.CustomInboxPrefix("_INBOX_other")), "other"}
	d := s.Dispatcher()
	var slow atomic.Int64
	going := make(chan struct{})
	bustest.Serve(t, d, &bustest.Brain{Before: func(context.Context, string) error {
		slow.Add(1)
		select {
		case <-going:
		case <-t.Context().Done():
		}
		return nil
	}})
	const asked = 200
	inbox := nats.NewInbox()
	inbox = "_INBOX_acme" + inbox[len("_INBOX"):]
	answers, err := acme.nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	for range asked { // of a job's objects, which asks the brain
		if err := acme.nc.PublishRequest("paddock.v1.object.acme.stat", inbox, fmt.Appendf(nil, `{"sha256":%q,"job":"x"}`, digest(nil))); err != nil {
			t.Fatal(err)
		}
	}
	bustest.Eventually(t, "some are being answered", func() bool { return slow.Load() >= 16 })
	for i := range 20 {
		begun := time.Now()
		r, _ := other.ask("stat", "", fmt.Appendf(nil, `{"sha256":%q}`, digest(nil)))
		other.refused("of none", jobs.CodeNotFound, r)
		if took := time.Since(begun); took > 5*time.Second {
			t.Fatalf("request %d took %v", i, took)
		}
	}
	close(going)
	for i := range asked {
		m, err := answers.NextMsg(time.Minute)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		var r jobs.ObjectReply
		if err := json.Unmarshal(m.Data, &r); err != nil {
			t.Fatal(err)
		}
		acme.refused("of no job", jobs.CodeNotFound, r)
	}
}

// What one tenant may have waiting is bounded, and said, when others have none of it.
func TestObjectsTooMany(t *testing.T) {
	s, acme := tenantsOn(t)
	other := &tenantOf{t, s.As(s.Let(access.Tenant, "other"), nats.CustomInboxPrefix("_INBOX_other")), "other"}
	going := make(chan struct{})
	bustest.Serve(t, s.Dispatcher(), &bustest.Brain{Before: func(context.Context, string) error {
		select {
		case <-going:
		case <-t.Context().Done():
		}
		return nil
	}})
	inbox := "_INBOX_acme" + nats.NewInbox()[len("_INBOX"):]
	answers, err := acme.nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	body := fmt.Appendf(nil, `{"sha256":%q,"job":"x","labels":%q}`, digest(nil), strings.Repeat("x", 400<<10)) // unknown fields are warned of
	n := 0
	for ; n < 120; n++ {
		if err := acme.nc.PublishRequest("paddock.v1.object.acme.stat", inbox, body); err != nil {
			t.Fatal(err)
		}
	}
	m, err := answers.NextMsg(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var r jobs.ObjectReply
	if err := json.Unmarshal(m.Data, &r); err != nil {
		t.Fatal(err)
	}
	acme.refused("too many", jobs.CodeUnavailable, r)
	r, _ = other.ask("stat", "", fmt.Appendf(nil, `{"sha256":%q}`, digest(nil)))
	other.refused("of none", jobs.CodeNotFound, r)
	close(going)
	for i := 1; i < n; i++ {
		if _, err := answers.NextMsg(time.Minute); err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
	}
}
