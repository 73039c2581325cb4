package webhook_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/webhook"
	"github.com/paddockvm/paddock/dispatcher/webhook/webhooktest"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/leak"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

// received is a request that a receiver got.
type received struct {
	path   string
	header http.Header
	body   []byte
	at     time.Time
}

// receiver is somebody's server.
type receiver struct {
	*httptest.Server
	mu  sync.Mutex
	got []received
}

// receive starts a server that answers as told, 200 where that is nil. It hears of requests when they have been read.
func receive(t testing.TB, answer http.HandlerFunc) *receiver {
	t.Helper()
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		if err != nil {
			return
		}
		r.mu.Lock()
		r.got = append(r.got, received{q.URL.Path, q.Header.Clone(), body, time.Now()})
		r.mu.Unlock()
		if answer != nil {
			answer(w, q)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) requests() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]received(nil), r.got...)
}

func (r *receiver) port(t testing.TB) uint16 {
	t.Helper()
	u, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(n)
}

// local lets webhooks go to receivers on loopback, by http.
func local(t testing.TB, receivers ...*receiver) webhook.Guard {
	t.Helper()
	g := webhook.Guard{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, HTTP: true}
	for _, r := range receivers {
		g.Ports = append(g.Ports, r.port(t))
	}
	return g
}

// run makes a service and has it run until stop, which waits for its end, or the test's.
func run(t testing.TB, c webhook.Config) (s *webhook.Service, stop func()) {
	t.Helper()
	s, err := webhook.New(c)
	if err != nil {
		t.Fatal(err)
	}
	log := zerolog.New(zerolog.NewTestWriter(t))
	ctx, cancel := context.WithCancel(log.WithContext(context.Background()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return s, stop
}

// ended is the hook of a job that has ended by itself.
func ended(tenant string, callbacks ...jobs.Callback) ledger.Hook {
	zero, now := 0, time.Now().UTC()
	e := jobs.Event{Type: jobs.EventResult, Job: jobs.NewID(), Tenant: tenant, Attempt: 1, Seq: 3, Time: now, Final: true, Result: &jobs.Result{
		Ending: jobs.Exited, Class: jobs.ClassUser, ExitCode: &zero, Attempt: 1, EndedAt: now,
		Steps: []jobs.StepResult{{Name: "0", Ending: jobs.Exited, ExitCode: &zero, Stdout: jobs.Output{Content: jobs.Content{Text: "hello\n"}, Bytes: 6}}},
	}}
	return hook(jobs.HookEnded, e, callbacks...)
}

func hook(kind string, e jobs.Event, callbacks ...jobs.Callback) ledger.Hook {
	b, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	return ledger.Hook{Tenant: e.Tenant, Type: kind, Event: b, Callbacks: callbacks, Labels: map[string]string{"a": "b"}}
}

// add makes an endpoint.
func add(t testing.TB, s *webhook.Service, tenant string, q jobs.EndpointRequest) (jobs.Endpoint, string) {
	t.Helper()
	e, secret, err := s.Add(t.Context(), tenant, q)
	if err != nil {
		t.Fatal(err)
	}
	return e, secret
}

// eventually waits for something that no channel tells of.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited half a minute, and still not: %s", what)
		}
	}
}

// verifies has the official library verify a request.
func verifies(secret string, r received) error {
	w, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return err
	}
	return w.Verify(r.body, r.header)
}

// only gives the one delivery that there is of a tenant, with its tries.
func only(t testing.TB, s *webhook.Service, tenant string) jobs.Delivery {
	t.Helper()
	l, _, err := s.Deliveries(t.Context(), tenant, jobs.DeliveriesRequest{})
	if err != nil || len(l) != 1 {
		t.Fatalf("deliveries %+v, %v", l, err)
	}
	d, err := s.Delivery(t.Context(), tenant, l[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// transport is a server in this process, for tests whose time is not the clock's.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// says makes an answer without a body.
func says(status int, header ...string) *http.Response {
	h := http.Header{}
	for i := 0; i+1 < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{StatusCode: status, Status: fmt.Sprint(status), Header: h, Body: http.NoBody}
}

var _ webhook.Store = (*webhooktest.Store)(nil)

// jobOf is the job that a hook tells of.
func jobOf(h ledger.Hook) string {
	var e jobs.Event
	if err := json.Unmarshal(h.Event, &e); err != nil {
		panic(err)
	}
	return e.Job
}
