package bus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
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
	for range 20 { // while those are held
		r, _ := other.ask("stat", "", fmt.Appendf(nil, `{"sha256":%q}`, digest(nil)))
		other.refused("of none", jobs.CodeNotFound, r)
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

// So it is with all that tenants ask: what one has on its way holds up nobody else.
func TestRequestsInTurns(t *testing.T) {
	s := bustest.Start(t)
	brain := &holds{Brain: &bustest.Brain{}, tenant: "acme", going: make(chan struct{})}
	bustest.Serve(t, s.Connect(), brain)
	let := sync.OnceFunc(func() { close(brain.going) })
	t.Cleanup(let)
	nc, other := s.Plain(), s.Plain()
	const asked = 1000
	inbox := nats.NewInbox()
	answers, err := nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	for range asked {
		if err := nc.PublishRequest(jobs.SubmitSubject("acme"), inbox, []byte(hello)); err != nil {
			t.Fatal(err)
		}
	}
	bustest.Eventually(t, "as many are held as ever are", func() bool { return brain.held.Load() >= 256 })
	for range 20 {
		if code := codeIn(request(t, other, jobs.SubmitSubject("other"), hello)); code != "" {
			t.Fatalf("another's: %s", code)
		}
	}
	let()
	for i := range asked {
		m, err := answers.NextMsg(time.Minute)
		if err != nil || !strings.Contains(string(m.Data), `"job"`) {
			t.Fatalf("answer %d: %v", i, err)
		}
	}
}

// holds is a brain that answers nothing of one tenant's until it may.
type holds struct {
	*bustest.Brain
	tenant string
	held   atomic.Int64
	going  chan struct{}

	outcomes []jobs.BatchItem // of every batch
}

func (h *holds) Admit(ctx context.Context, tenant string, spec *jobs.Spec) (jobs.Job, bool, error) {
	h.hold(tenant)
	return h.Brain.Admit(ctx, tenant, spec)
}

func (h *holds) hold(tenant string) {
	if tenant == h.tenant {
		h.held.Add(1)
		<-h.going
	}
}

// So it is with what is answered few at a time: replays, and batches that are more than a message.
func TestFewInTurns(t *testing.T) {
	s := bustest.Start(t)
	d := s.Connect()
	brain := &holds{Brain: &bustest.Brain{}, tenant: "acme", going: make(chan struct{})}
	bustest.Serve(t, d, brain)
	let := sync.OnceFunc(func() { close(brain.going) })
	t.Cleanup(let)
	batch := func(tenant string) []byte {
		ref, err := d.PutObject(t.Context(), tenant, strings.NewReader(hello+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Appendf(nil, `{"object":{"name":%q,"sha256":%q}}`, ref.Name, ref.SHA256)
	}
	ask := []byte(fmt.Sprintf(`{"job":%q}`, jobs.NewID()))
	large := fmt.Appendf(nil, `{"defaults":{"source":%q},"jobs":[{}%s]}`, strings.Repeat("x", 1<<20), strings.Repeat(",{}", 9))
	for _, c := range []struct {
		what, acmes, others string
		acme                []byte
		other               [][]byte
	}{
		{"replay", jobs.ReplaySubject("acme"), jobs.ReplaySubject("other"), ask, [][]byte{ask}},
		{"batch", jobs.BatchSubject("acme", "submit"), jobs.BatchSubject("other", "submit"), batch("acme"), [][]byte{batch("other"), large}},
	} {
		nc, other := s.Plain(), s.Plain()
		held := brain.held.Load()
		for range 20 {
			if err := nc.PublishRequest(c.acmes, nats.NewInbox(), c.acme); err != nil {
				t.Fatal(err)
			}
		}
		bustest.Eventually(t, c.what+": some are held", func() bool { return brain.held.Load() > held })
		for _, body := range c.other {
			if code := codeIn(request(t, other, c.others, string(body))); code == string(jobs.CodeUnavailable) {
				t.Fatalf("%s: another's: %s", c.what, code)
			}
		}
	}
}

// Of lists a tenant has one made at a time.
func TestListsInTurns(t *testing.T) {
	s := bustest.Start(t)
	brain := &holds{Brain: &bustest.Brain{}, tenant: "acme", going: make(chan struct{})}
	bustest.Serve(t, s.Connect(), brain)
	t.Cleanup(sync.OnceFunc(func() { close(brain.going) }))
	nc := s.Plain()
	for range 20 {
		if err := nc.PublishRequest(jobs.ListSubject("acme"), nats.NewInbox(), nil); err != nil {
			t.Fatal(err)
		}
	}
	bustest.Eventually(t, "one is held", func() bool { return brain.held.Load() > 0 })
	for range 20 { // those of before have come, too
		if code := codeIn(request(t, nc, jobs.ListSubject("other"), "")); code != "" {
			t.Fatalf("another's: %s", code)
		}
	}
	if n := brain.held.Load(); n != 1 {
		t.Errorf("%d are made at once", n)
	}
}

func (h *holds) List(ctx context.Context, tenant string, q jobs.ListRequest) (jobs.ListReply, error) {
	h.hold(tenant)
	return h.Brain.List(ctx, tenant, q)
}

// AdmitBatch implements bus.Batches.
func (h *holds) AdmitBatch(_ context.Context, tenant string, _ *jobs.BatchRequest) (r jobs.BatchReply, _ error) {
	h.hold(tenant)
	r.Items = slices.Clone(h.outcomes)
	return r, nil
}

func (h *holds) Batch(context.Context, string, string) (b jobs.Batch, _ error) { return b, nil }

func (h *holds) Batches(context.Context, string, jobs.BatchQuery) (r jobs.BatchesReply, _ error) {
	return r, nil
}

func (h *holds) CancelBatch(context.Context, string, string) (int, error) { return 0, nil }

// Get is asked for the job of a replay that has no events.
func (h *holds) Get(ctx context.Context, tenant, id string) (jobs.Job, error) {
	h.hold(tenant)
	return h.Brain.Get(ctx, tenant, id)
}

// What became of a batch's jobs is told of each, however much is wrong with them.
func TestBatchOutcomesFitIntoAMessage(t *testing.T) {
	for name, long := range map[string]string{"some are wrong": strings.Repeat("ü", 300), "much is wrong with each": strings.Repeat("x", 5000)} {
		t.Run(name, func(t *testing.T) {
			s := bustest.Start(t)
			brain := &holds{Brain: &bustest.Brain{}, outcomes: make([]jobs.BatchItem, jobs.MaxBatch)}
			for i := range brain.outcomes {
				brain.outcomes[i].ID = jobs.NewID()
				if i%2 == 1 {
					brain.outcomes[i] = jobs.BatchItem{Error: &jobs.Error{Code: jobs.CodeInvalid, Message: "invalid spec", Faults: []jobs.Fault{{Path: "language", Message: long}, {Path: "image", Message: long}}}}
				}
			}
			bustest.Serve(t, s.Connect(), brain)
			var r jobs.BatchReply
			m, err := s.Plain().Request("paddock.v1.batch.acme.submit", []byte(`{"jobs":[{}]}`), time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(m.Data, &r); err != nil {
				t.Fatal(err)
			}
			if r.Error != nil || len(r.Items) != jobs.MaxBatch {
				t.Fatalf("%d outcomes, and %v", len(r.Items), r.Error)
			}
			for i, it := range r.Items {
				if it.ID != brain.outcomes[i].ID || (it.Error != nil) != (i%2 == 1) || it.Error != nil && it.Error.Code != jobs.CodeInvalid {
					t.Fatalf("outcome %d: %+v", i, it)
				}
			}
		})
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
	body := fmt.Appendf(nil, `{"sha256":%q,"job":"x","labels":%q}`, digest(nil), strings.Repeat("x", 60<<10)) // unknown fields are warned of
	n := 0
	for ; n < 1200; n++ {
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
