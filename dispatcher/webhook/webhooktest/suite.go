package webhooktest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/webhook"
	"github.com/paddockvm/paddock/jobs"
)

// Rig is a store to be tested.
type Rig struct {
	webhook.Store
	// AddHook leaves a hook as a state change does: of a job with the hook's labels, batch and callbacks.
	AddHook func(h ledger.Hook)
}

// TestStore holds a store to what webhook.Store says. open gives an empty one, which it closes when the test ends.
func TestStore(t *testing.T, open func(t *testing.T) Rig) {
	for name, test := range map[string]func(*testing.T, Rig){
		"endpoints": testEndpoints, "callback secrets": testSecrets, "hooks": testHooks, "pending": testPending, "tried": testTried,
		"disabled": testDisabled, "listed": testListed, "redeliver": testRedeliver, "forget": testForget, "at once": testAtOnce,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

var start = time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)

func endpoint(tenant string) ledger.Endpoint {
	return ledger.Endpoint{
		ID: jobs.NewID(), Tenant: tenant, Enabled: true, URL: "https://example.com/a?b=<c>", Events: []string{jobs.HookEnded}, Format: jobs.FormatStandard,
		Description: "ours", CreatedAt: start, Secrets: []ledger.Secret{{Value: "whsec_x", CreatedAt: start, ExpiresAt: start.Add(time.Hour)}},
	}
}

// pending is a delivery to a target, due at a time; to the endpoint of that id, or a callback where it is none.
func pending(tenant, target string, at time.Time) ledger.Delivery {
	d := ledger.Delivery{
		Delivery: jobs.Delivery{
			ID: jobs.NewID(), URL: "https://example.com/", Event: jobs.HookEnded, Job: jobs.NewID(), Batch: "b", State: jobs.DeliveryPending, CreatedAt: start, NextAt: at,
			Body: `{"ü":"` + "\u2028" + `"}`,
		},
		Tenant: tenant, Target: target, Format: jobs.FormatCloudEvents, Step: 2,
	}
	if _, err := jobs.ParseID(target); err == nil {
		d.Endpoint = target
	}
	return d
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testEndpoints(t *testing.T, s Rig) {
	ctx := t.Context()
	a, b, other := endpoint("t"), endpoint("t"), endpoint("u")
	for _, e := range []ledger.Endpoint{a, b, other} {
		ok, err := s.AddEndpoint(ctx, e, 2)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
	}
	if ok, err := s.AddEndpoint(ctx, endpoint("t"), 2); ok || err != nil {
		t.Errorf("a third of two: %t, %v", ok, err)
	}
	list, err := s.Endpoints(ctx, "t")
	must(t, err)
	equal(t, "endpoints", list, []ledger.Endpoint{a, b})
	got, err := s.Endpoint(ctx, "u", other.ID)
	must(t, err)
	equal(t, "endpoint", got, other)
	for _, id := range []string{other.ID, "none"} {
		_, get := s.Endpoint(ctx, "t", id)
		_, change := s.ChangeEndpoint(ctx, "t", id, func(e *ledger.Endpoint) { e.URL = "changed" })
		_, remove := s.RemoveEndpoint(ctx, "t", id, start)
		for _, err := range []error{get, change, remove} {
			if !errors.Is(err, ledger.ErrNoWebhook) {
				t.Errorf("another's, or none: %v", err)
			}
		}
	}
	change := func(e *ledger.Endpoint) {
		e.FailingSince, e.FailedAt = start, start.Add(time.Minute)
		e.Secrets = append([]ledger.Secret{{Value: "whsec_y", CreatedAt: start}}, e.Secrets...)
	}
	got, err = s.ChangeEndpoint(ctx, "t", b.ID, change)
	must(t, err)
	change(&b)
	equal(t, "changed", got, b)
	got, err = s.Endpoint(ctx, "t", b.ID)
	must(t, err)
	equal(t, "changed and read", got, b)
	got, err = s.RemoveEndpoint(ctx, "t", a.ID, start)
	must(t, err)
	equal(t, "removed", got, a)
	list, err = s.Endpoints(ctx, "t")
	must(t, err)
	equal(t, "what is left", list, []ledger.Endpoint{b})
	got, err = s.Endpoint(ctx, "u", other.ID)
	must(t, err)
	equal(t, "another tenant's", got, other)
}

func testSecrets(t *testing.T, s Rig) {
	ctx := t.Context()
	l, err := s.CallbackSecrets(ctx, "t")
	if err != nil || len(l) > 0 {
		t.Fatal(l, err)
	}
	for n := range 3 {
		l, err = s.ChangeCallbackSecrets(ctx, "t", func(old []ledger.Secret) []ledger.Secret {
			if len(old) != n {
				t.Errorf("%d secrets, want %d", len(old), n)
			}
			return append(old, ledger.Secret{Value: fmt.Sprint(n), CreatedAt: start})
		})
		must(t, err)
	}
	equal(t, "secrets", l, []ledger.Secret{{Value: "0", CreatedAt: start}, {Value: "1", CreatedAt: start}, {Value: "2", CreatedAt: start}})
	read, err := s.CallbackSecrets(ctx, "t")
	must(t, err)
	equal(t, "read", read, l)
	if l, err := s.CallbackSecrets(ctx, "u"); err != nil || len(l) > 0 {
		t.Error("another tenant's:", l, err)
	}
}

func testHooks(t *testing.T, s Rig) {
	ctx := t.Context()
	plain := ledger.Hook{Tenant: "t", Type: jobs.HookRunning, Event: []byte(`{"type":"state"}`)}
	full := ledger.Hook{
		Tenant: "u", Type: jobs.HookEnded, Event: []byte(`{"type":"result"}`), Labels: map[string]string{"a": "b"}, Batch: jobs.NewID(),
		Callbacks: []jobs.Callback{{URL: "https://example.com/x", Events: []string{jobs.HookEnded}}, {URL: "https://example.org/"}},
	}
	s.AddHook(plain)
	s.AddHook(full)
	s.AddHook(plain)
	list, err := s.Hooks(ctx, 2)
	must(t, err)
	if len(list) != 2 || list[0].ID >= list[1].ID {
		t.Fatalf("hooks %+v", list)
	}
	first, second := list[0].ID, list[1].ID
	list[0].ID, list[1].ID = 0, 0
	equal(t, "hooks", list, []ledger.Hook{plain, full})
	d, e := pending("u", "u x", start), pending("u", "u y", start)
	must(t, s.SpreadHooks(ctx, []ledger.Spread{{Hook: first}, {Hook: second, Deliveries: []ledger.Delivery{d, e}}}))
	must(t, s.SpreadHooks(ctx, []ledger.Spread{{Hook: second, Deliveries: []ledger.Delivery{pending("u", "u x", start)}}})) // it is not there any more
	if list, err = s.Hooks(ctx, 10); err != nil || len(list) != 1 {
		t.Errorf("left: %+v, %v", list, err)
	}
	got, err := s.PendingDeliveries(ctx, "u x", 10)
	must(t, err)
	equal(t, "deliveries", got, []ledger.Delivery{d})
}

func testPending(t *testing.T, s Rig) {
	ctx := t.Context()
	var want []ledger.Delivery
	for n := range 5 {
		d := pending("t", "t a", start.Add(time.Duration(n/2)*time.Minute)) // two are due at once: the older first
		want = append(want, d)
	}
	for _, d := range slices.Backward(want) {
		must(t, s.AddDelivery(ctx, d))
	}
	must(t, s.AddDelivery(ctx, pending("t", "t b", start.Add(time.Hour))))
	got, err := s.PendingDeliveries(ctx, "t a", 4)
	must(t, err)
	equal(t, "pending", got, want[:4])
	targets, err := s.DeliveryTargets(ctx)
	must(t, err)
	equal(t, "targets", targets, []ledger.DeliveryTarget{{Target: "t a", Tenant: "t", NextAt: start}, {Target: "t b", Tenant: "t", NextAt: start.Add(time.Hour)}})
}

func testTried(t *testing.T, s Rig) {
	ctx := t.Context()
	e := endpoint("t")
	_, err := s.AddEndpoint(ctx, e, 9)
	must(t, err)
	d := pending("t", e.ID, start)
	must(t, s.AddDelivery(ctx, d))
	no := func(*ledger.Endpoint) bool { return false }
	try := ledger.DeliveryTry{
		Tenant: "t", ID: d.ID, Try: jobs.Try{At: start, DurationMS: 1.5, Status: 500, Error: "answered 500", Response: "no\n"}, State: jobs.DeliveryPending,
		NextAt: start.Add(time.Minute), Step: 3, Endpoint: e.ID,
		Change: func(x *ledger.Endpoint) bool { x.FailingSince = start; return true },
	}
	must(t, s.DeliveryTried(ctx, try))
	last := ledger.DeliveryTry{Tenant: "t", ID: d.ID, Try: jobs.Try{At: start.Add(time.Minute), Status: 200}, State: jobs.DeliveryDelivered, Step: 4, Endpoint: e.ID, Change: no}
	other := last
	other.Tenant = "u"
	must(t, s.DeliveryTried(ctx, other)) // another tenant's is nobody's
	got, err := s.Delivery(ctx, "t", d.ID)
	must(t, err)
	one := try.Try
	one.Attempt = 1
	want := d
	want.Attempts, want.NextAt, want.Step, want.Error, want.Tries = 1, try.NextAt, 3, "answered 500", []jobs.Try{one}
	equal(t, "tried once", got, want)
	must(t, s.DeliveryTried(ctx, last))
	two := last.Try
	two.Attempt = 2
	want.State, want.Attempts, want.NextAt, want.Step, want.Error, want.EndedAt, want.Tries = jobs.DeliveryDelivered, 2, time.Time{}, 4, "", two.At, []jobs.Try{one, two}
	got, err = s.Delivery(ctx, "t", d.ID)
	must(t, err)
	equal(t, "delivered", got, want)
	must(t, s.DeliveryTried(ctx, try)) // late: it stays delivered
	if got, err = s.Delivery(ctx, "t", d.ID); err != nil || got.State != jobs.DeliveryDelivered || len(got.Tries) != 3 {
		t.Errorf("a late failure: %+v, %v", got, err)
	}
	if x, err := s.Endpoint(ctx, "t", e.ID); err != nil || !x.FailingSince.Equal(start) {
		t.Errorf("endpoint %+v, %v", x, err)
	}
	if _, err := s.Delivery(ctx, "u", d.ID); !errors.Is(err, ledger.ErrNoWebhook) {
		t.Error("another tenant's:", err)
	}
	if l, err := s.PendingDeliveries(ctx, e.ID, 9); err != nil || len(l) > 0 {
		t.Error("pending:", l, err)
	}
}

// testDisabled: by whichever way an endpoint is disabled or goes, what it was still to be told fails.
func testDisabled(t *testing.T, s Rig) {
	ctx := t.Context()
	disable := func(e *ledger.Endpoint) { e.Enabled, e.DisabledReason, e.DisabledAt = false, "why", start }
	for name, how := range map[string]func(e ledger.Endpoint, d ledger.Delivery) error{
		"the endpoint is disabled: why": func(e ledger.Endpoint, _ ledger.Delivery) error {
			_, err := s.ChangeEndpoint(ctx, "t", e.ID, disable)
			return err
		},
		"the endpoint is disabled: why ": func(e ledger.Endpoint, d ledger.Delivery) error {
			return s.DeliveryTried(ctx, ledger.DeliveryTry{
				Tenant: "t", ID: d.ID, Try: jobs.Try{At: start, Status: 410, Error: "gone"}, State: jobs.DeliveryFailed, Endpoint: e.ID,
				Change: func(x *ledger.Endpoint) bool { disable(x); return true },
			})
		},
		"the endpoint was removed": func(e ledger.Endpoint, _ ledger.Delivery) error {
			_, err := s.RemoveEndpoint(ctx, "t", e.ID, start)
			return err
		},
	} {
		e := endpoint("t")
		_, err := s.AddEndpoint(ctx, e, 9)
		must(t, err)
		tried, waits, done := pending("t", e.ID, start), pending("t", e.ID, start.Add(time.Hour)), pending("t", e.ID, start)
		for _, d := range []ledger.Delivery{tried, waits, done} {
			must(t, s.AddDelivery(ctx, d))
		}
		must(t, s.DeliveryTried(ctx, ledger.DeliveryTry{Tenant: "t", ID: done.ID, Try: jobs.Try{At: start}, State: jobs.DeliveryDelivered}))
		must(t, how(e, tried))
		got, err := s.Delivery(ctx, "t", waits.ID)
		if err != nil || got.State != jobs.DeliveryFailed || got.Error != strings.TrimSpace(name) || !got.EndedAt.Equal(start) || !got.NextAt.IsZero() {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if got, err := s.Delivery(ctx, "t", done.ID); err != nil || got.State != jobs.DeliveryDelivered {
			t.Errorf("%s: what was delivered is %+v, %v", name, got, err)
		}
		if l, err := s.PendingDeliveries(ctx, e.ID, 9); err != nil || len(l) > 0 {
			t.Errorf("%s: pending %+v, %v", name, l, err)
		}
	}
}

func testListed(t *testing.T, s Rig) {
	ctx := t.Context()
	e := endpoint("t")
	_, err := s.AddEndpoint(ctx, e, 9)
	must(t, err)
	a, b, c := pending("t", e.ID, start), pending("t", "t x", start), pending("t", e.ID, start)
	b.Job = a.Job
	for _, d := range []ledger.Delivery{a, b, c, pending("u", "u x", start)} {
		must(t, s.AddDelivery(ctx, d))
	}
	must(t, s.DeliveryTried(ctx, ledger.DeliveryTry{Tenant: "t", ID: c.ID, Try: jobs.Try{At: start, Error: "x"}, State: jobs.DeliveryFailed}))
	for name, tt := range map[string]struct {
		q    jobs.DeliveriesRequest
		want []string
	}{
		"all":           {jobs.DeliveriesRequest{Limit: 9}, []string{c.ID, b.ID, a.ID}},
		"two, and more": {jobs.DeliveriesRequest{Limit: 1}, []string{c.ID, b.ID}},
		"before":        {jobs.DeliveriesRequest{Limit: 9, Before: b.ID}, []string{a.ID}},
		"endpoint":      {jobs.DeliveriesRequest{Limit: 9, Endpoint: e.ID}, []string{c.ID, a.ID}},
		"callbacks":     {jobs.DeliveriesRequest{Limit: 9, Endpoint: jobs.CallbacksID}, []string{b.ID}},
		"job":           {jobs.DeliveriesRequest{Limit: 9, Job: a.Job}, []string{b.ID, a.ID}},
		"failed":        {jobs.DeliveriesRequest{Limit: 9, States: []jobs.DeliveryState{jobs.DeliveryFailed}}, []string{c.ID}},
		"some states":   {jobs.DeliveriesRequest{Limit: 9, States: []jobs.DeliveryState{jobs.DeliveryFailed, jobs.DeliveryPending}}, []string{c.ID, b.ID, a.ID}},
		"all at once":   {jobs.DeliveriesRequest{Limit: 9, States: []jobs.DeliveryState{jobs.DeliveryPending}, Endpoint: e.ID, Job: a.Job, Before: c.ID}, []string{a.ID}},
	} {
		list, err := s.Deliveries(ctx, "t", tt.q)
		must(t, err)
		var got []string
		for _, d := range list {
			if d.Body != "" || d.Tries != nil {
				t.Errorf("%s: a body or tries in a list", name)
			}
			got = append(got, d.ID)
		}
		equal(t, name, got, tt.want)
	}
}

func testRedeliver(t *testing.T, s Rig) {
	ctx := t.Context()
	on, off := endpoint("t"), endpoint("t")
	off.Enabled = false
	for _, e := range []ledger.Endpoint{on, off} {
		_, err := s.AddEndpoint(ctx, e, 9)
		must(t, err)
	}
	ended := func(tenant, target string, state jobs.DeliveryState, created time.Time) ledger.Delivery {
		d := pending(tenant, target, start)
		d.CreatedAt = created
		must(t, s.AddDelivery(ctx, d))
		must(t, s.DeliveryTried(ctx, ledger.DeliveryTry{Tenant: tenant, ID: d.ID, Try: jobs.Try{At: start, Error: "x"}, State: state, Step: 9}))
		return d
	}
	old, failed, callback := ended("t", on.ID, jobs.DeliveryFailed, start.Add(-time.Minute)), ended("t", on.ID, jobs.DeliveryFailed, start), ended("t", "t x", jobs.DeliveryFailed, start)
	delivered := ended("t", on.ID, jobs.DeliveryDelivered, start)
	disabled := ended("t", off.ID, jobs.DeliveryFailed, start)
	ended("t", jobs.NewID(), jobs.DeliveryFailed, start) // of an endpoint that is not there any more
	foreign := ended("u", "u x", jobs.DeliveryFailed, start)
	at := start.Add(time.Hour)
	for _, q := range []jobs.RedeliverRequest{{ID: disabled.ID}, {ID: foreign.ID}, {ID: "none"}, {Since: at}, {Since: start, Endpoint: off.ID}} {
		if targets, n, err := s.Redeliver(ctx, "t", q, at); err != nil || n != 0 || len(targets) != 0 {
			t.Errorf("%+v: %v, %d, %v", q, targets, n, err)
		}
	}
	targets, n, err := s.Redeliver(ctx, "t", jobs.RedeliverRequest{Since: start}, at)
	must(t, err)
	slices.SortFunc(targets, func(a, b ledger.DeliveryTarget) int { return strings.Compare(b.Target, a.Target) })
	equal(t, "targets", targets, []ledger.DeliveryTarget{{Target: "t x", Tenant: "t", NextAt: at}, {Target: on.ID, Tenant: "t", NextAt: at}})
	if n != 2 {
		t.Errorf("%d replayed, want 2", n)
	}
	for _, d := range []ledger.Delivery{failed, callback} {
		got, err := s.Delivery(ctx, "t", d.ID)
		if err != nil || got.State != jobs.DeliveryPending || got.Step != 0 || got.Attempts != 1 || !got.NextAt.Equal(at) || !got.EndedAt.IsZero() || got.Error != "" || len(got.Tries) != 1 {
			t.Errorf("replayed: %+v, %v", got, err)
		}
	}
	for _, d := range []ledger.Delivery{old, delivered} {
		if _, n, err := s.Redeliver(ctx, "t", jobs.RedeliverRequest{ID: d.ID}, at); err != nil || n != 1 {
			t.Errorf("one by its id: %d, %v", n, err)
		}
	}
	if l, err := s.PendingDeliveries(ctx, on.ID, 9); err != nil || len(l) != 3 {
		t.Errorf("pending: %d, %v", len(l), err)
	}
}

func testForget(t *testing.T, s Rig) {
	ctx := t.Context()
	waits := pending("t", "t x", start)
	must(t, s.AddDelivery(ctx, waits))
	var last ledger.Delivery
	for n := range 5 {
		last = pending("t", "t x", start)
		must(t, s.AddDelivery(ctx, last))
		must(t, s.DeliveryTried(ctx, ledger.DeliveryTry{Tenant: "t", ID: last.ID, Try: jobs.Try{At: start.Add(time.Duration(n) * time.Minute)}, State: jobs.DeliveryDelivered}))
	}
	for _, want := range []int{3, 1, 0} {
		if n, err := s.ForgetDeliveries(ctx, start.Add(4*time.Minute), 3); err != nil || n != want {
			t.Errorf("%d forgotten, want %d; %v", n, want, err)
		}
	}
	list, err := s.Deliveries(ctx, "t", jobs.DeliveriesRequest{Limit: 9})
	if err != nil || len(list) != 2 || list[0].ID != last.ID || list[1].ID != waits.ID {
		t.Errorf("left: %+v, %v", list, err)
	}
}

// testAtOnce has many write at once: nothing is lost, and the endpoint says what the last one saw.
func testAtOnce(t *testing.T, s Rig) {
	ctx := t.Context()
	e := endpoint("t")
	_, err := s.AddEndpoint(ctx, e, 9)
	must(t, err)
	const many = 50
	var all sync.WaitGroup
	for range many {
		all.Go(func() {
			d := pending("t", e.ID, start)
			err := errors.Join(s.AddDelivery(ctx, d), s.DeliveryTried(ctx, ledger.DeliveryTry{
				Tenant: "t", ID: d.ID, Try: jobs.Try{At: start, Error: "x"}, State: jobs.DeliveryPending, NextAt: start, Endpoint: e.ID,
				Change: func(x *ledger.Endpoint) bool { x.Description += "."; return true },
			}))
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	got, err := s.Endpoint(ctx, "t", e.ID)
	if err != nil || len(got.Description) != len(e.Description)+many {
		t.Errorf("endpoint %+v, %v", got, err)
	}
	list, err := s.PendingDeliveries(ctx, e.ID, 2*many)
	if err != nil || len(list) != many {
		t.Errorf("%d deliveries, %v", len(list), err)
	}
}
