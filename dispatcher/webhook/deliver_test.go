package webhook_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/paddockvm/paddock/dispatcher/webhook"
	"github.com/paddockvm/paddock/dispatcher/webhook/webhooktest"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// TestDelivered: an endpoint and a callback are each told, and what they get verifies with each one's secret and no other.
func TestDelivered(t *testing.T) {
	r := receive(t, nil)
	store := webhooktest.NewStore()
	metrics := prometheus.NewRegistry()
	s, stop := run(t, webhook.Config{Store: store, Guard: local(t, r), Registerer: metrics})
	_, secret := add(t, s, "t", jobs.EndpointRequest{URL: r.URL + "/endpoint"})
	add(t, s, "t", jobs.EndpointRequest{URL: r.URL + "/running", Events: []string{jobs.HookRunning}})
	add(t, s, "u", jobs.EndpointRequest{URL: r.URL + "/another"})
	h := ended("t", jobs.Callback{URL: r.URL + "/callback"}, jobs.Callback{URL: r.URL + "/requeued", Events: []string{jobs.HookRequeued}})
	store.Hook(h)
	eventually(t, "two requests", func() bool { return len(r.requests()) == 2 })
	callbackSecret, err := s.Secret(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range r.requests() {
		right, wrong := secret, callbackSecret
		if q.path == "/callback" {
			right, wrong = wrong, right
		} else if q.path != "/endpoint" {
			t.Errorf("%s was told", q.path)
		}
		if err := verifies(right, q); err != nil {
			t.Errorf("%s: %v", q.path, err)
		}
		if verifies(wrong, q) == nil {
			t.Errorf("%s: verifies with the other secret", q.path)
		}
		q.body = append(q.body, ' ')
		if verifies(right, q) == nil {
			t.Errorf("%s: verifies when changed", q.path)
		}
		var got jobs.Hook
		if err := json.Unmarshal(q.body, &got); err != nil {
			t.Fatal(err)
		}
		zero := 0
		want := jobs.HookData{
			Tenant: "t", Job: jobOf(h), State: jobs.StateEnded, Attempt: 1, Labels: map[string]string{"a": "b"}, Ending: jobs.Exited, Class: jobs.ClassUser, ExitCode: &zero,
			Stdout: jobs.Output{Content: jobs.Content{Text: "hello\n"}, Bytes: 6}, EndedAt: got.Data.EndedAt,
		}
		if d := cmp.Diff(want, got.Data); d != "" || got.Type != jobs.HookEnded || got.Timestamp.IsZero() {
			t.Errorf("%s: %+v %s", q.path, got, d)
		}
		if c := q.header.Get("Content-Type"); c != "application/json" {
			t.Errorf("content type %q", c)
		}
	}
	eventually(t, "both are delivered", func() bool {
		l, _, err := s.Deliveries(t.Context(), "t", jobs.DeliveriesRequest{States: []jobs.DeliveryState{jobs.DeliveryDelivered}})
		return err == nil && len(l) == 2
	})
	stop() // a try is counted after it is recorded
	if n := counted(t, metrics, "paddock_webhook_attempts_total"); n != 2 {
		t.Errorf("%v tries are counted, want 2", n)
	}
}

// counted gives a counter, of all its labels together.
func counted(t *testing.T, r prometheus.Gatherer, name string) (n float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

// TestCloudEvents: an endpoint that wants CloudEvents gets one, signed as it is.
func TestCloudEvents(t *testing.T) {
	r := receive(t, nil)
	store := webhooktest.NewStore()
	s, _ := run(t, webhook.Config{Store: store, Guard: local(t, r)})
	_, secret := add(t, s, "t", jobs.EndpointRequest{URL: r.URL, Format: jobs.FormatCloudEvents})
	h := ended("t")
	store.Hook(h)
	eventually(t, "a request", func() bool { return len(r.requests()) == 1 })
	q := r.requests()[0]
	if err := verifies(secret, q); err != nil {
		t.Error(err)
	}
	var got map[string]any
	if err := json.Unmarshal(q.body, &got); err != nil {
		t.Fatal(err)
	}
	data, _ := got["data"].(map[string]any)
	if _, err := time.Parse(time.RFC3339, fmt.Sprint(got["time"])); err != nil || data["job"] != jobOf(h) || data["exit_code"] != 0.0 {
		t.Errorf("event %v", got)
	}
	delete(got, "data")
	delete(got, "time")
	want := map[string]any{
		"specversion": "1.0", "id": q.header.Get("webhook-id"), "source": "/paddock/v1/t", "type": "paddock.job.ended.v1", "subject": jobOf(h), "datacontenttype": "application/json",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if c := q.header.Get("Content-Type"); !strings.HasPrefix(c, "application/cloudevents+json") {
		t.Errorf("content type %q", c)
	}
}

// TestBatchEnded: a batch's end is told with its counts.
func TestBatchEnded(t *testing.T) {
	r := receive(t, nil)
	store := webhooktest.NewStore()
	s, _ := run(t, webhook.Config{Store: store, Guard: local(t, r)})
	add(t, s, "t", jobs.EndpointRequest{URL: r.URL})
	b := jobs.Batch{ID: jobs.NewID(), Tenant: "t", Total: 3, Ended: 3, OK: 2, EndedAt: time.Now().UTC()}
	body, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	h := hook(jobs.HookBatchEnded, jobs.Event{Tenant: "t"})
	h.Event, h.Labels = body, nil
	store.Hook(h)
	eventually(t, "a request", func() bool { return len(r.requests()) == 1 })
	var got jobs.Hook
	if err := json.Unmarshal(r.requests()[0].body, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(jobs.Hook{Type: jobs.HookBatchEnded, Timestamp: b.EndedAt, Data: jobs.HookData{Tenant: "t", Batch: b.ID, Total: 3, Ended: 3, OK: 2, EndedAt: b.EndedAt}}, got); d != "" {
		t.Error(d)
	}
}

// TestAnswers: what servers answer, and what is made of it. Nothing but 2xx is success, and nothing is followed.
func TestAnswers(t *testing.T) {
	elsewhere := receive(t, nil)
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		ok     bool
		status int
		err    string
		reply  string
	}{
		{"200", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "thank you") }, true, 200, "", "thank you"},
		{"202", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }, true, 202, "", ""},
		{"299", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(299) }, true, 299, "", ""},
		{"301", func(w http.ResponseWriter, q *http.Request) {
			http.Redirect(w, q, elsewhere.URL, http.StatusMovedPermanently)
		}, false, 301, "answered 301; redirects are not followed", ""},
		{"307", func(w http.ResponseWriter, q *http.Request) {
			http.Redirect(w, q, elsewhere.URL, http.StatusTemporaryRedirect)
		}, false, 307, "answered 307; redirects are not followed", ""},
		{"404", http.NotFound, false, 404, "answered 404", "404 page not found\n"},
		{"500", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "no\x00\xff", http.StatusInternalServerError)
		}, false, 500, "answered 500", "no\uFFFD\uFFFD\n"},
		{"a long answer", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("x", 5000)) }, true, 200, "", strings.Repeat("x", 1024)},
		{"an endless answer", func(w http.ResponseWriter, _ *http.Request) {
			for b := []byte(strings.Repeat("y", 1<<16)); ; {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		}, true, 200, "", strings.Repeat("y", 1024)},
		{"endless headers", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("x", strings.Repeat("z", 1<<20)) }, false, 0, "the connection ended before an answer", ""},
		{"nothing", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, false, 0, "the connection ended before an answer", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := receive(t, tt.answer)
			r.Config.ErrorLog = nil
			store := webhooktest.NewStore()
			s, _ := run(t, webhook.Config{Store: store, Guard: local(t, r, elsewhere), Schedule: []time.Duration{0}})
			add(t, s, "t", jobs.EndpointRequest{URL: r.URL})
			store.Hook(ended("t"))
			var d jobs.Delivery
			eventually(t, "the try's end", func() bool {
				l, _, err := s.Deliveries(t.Context(), "t", jobs.DeliveriesRequest{})
				return err == nil && len(l) == 1 && l[0].State != jobs.DeliveryPending
			})
			d = only(t, s, "t")
			if (d.State == jobs.DeliveryDelivered) != tt.ok || len(d.Tries) != 1 {
				t.Fatalf("delivery %+v", d)
			}
			got := d.Tries[0]
			if got.Status != tt.status || got.Error != tt.err || got.Response != tt.reply || got.DurationMS <= 0 {
				t.Errorf("try %+v", got)
			}
			if strings.Contains(got.Error, "127.0.0.1") {
				t.Errorf("the tenant is told of the network: %q", got.Error)
			}
		})
	}
	if n := len(elsewhere.requests()); n > 0 {
		t.Errorf("%d redirects were followed", n)
	}
}

// TestRefused: where nobody listens, or nobody speaks TLS.
func TestRefused(t *testing.T) {
	plain, tls := receive(t, nil), &receiver{Server: httptest.NewTLSServer(http.NotFoundHandler())}
	defer tls.Close()
	g, dead := local(t, plain, tls), harness.FreePort(t)
	g.Ports = append(g.Ports, uint16(dead))
	for _, tt := range []struct{ url, want string }{
		{fmt.Sprintf("http://127.0.0.1:%d", dead), "connection refused"},
		{strings.Replace(plain.URL, "http:", "https:", 1), "TLS: the handshake failed"},
		{tls.URL, "TLS: x509: "},
	} {
		store := webhooktest.NewStore()
		s, stop := run(t, webhook.Config{Store: store, Guard: g, Schedule: []time.Duration{0}})
		add(t, s, "t", jobs.EndpointRequest{URL: tt.url})
		store.Hook(ended("t"))
		eventually(t, "the try's end", func() bool {
			l, _, err := s.Deliveries(t.Context(), "t", jobs.DeliveriesRequest{States: []jobs.DeliveryState{jobs.DeliveryFailed}})
			return err == nil && len(l) == 1
		})
		if d := only(t, s, "t"); !strings.HasPrefix(d.Error, tt.want) {
			t.Errorf("%s: %q, want %q", tt.url, d.Error, tt.want)
		}
		stop()
	}
}

// TestCrash: the ledger fails between a delivery and its record, and the process ends: it is made again, under the same id.
func TestCrash(t *testing.T) {
	r := receive(t, nil)
	store := webhooktest.NewStore()
	var broken atomic.Bool
	store.Before = func(op string) error {
		if op == "tried" && broken.Load() {
			return errors.New("the power is off")
		}
		return nil
	}
	broken.Store(true)
	s, stop := run(t, webhook.Config{Store: store, Guard: local(t, r)})
	_, secret := add(t, s, "t", jobs.EndpointRequest{URL: r.URL})
	store.Hook(ended("t"))
	eventually(t, "the first try", func() bool { return len(r.requests()) >= 1 })
	stop()
	before := len(r.requests())
	if d := only(t, s, "t"); d.State != jobs.DeliveryPending {
		t.Fatalf("delivery %+v", d)
	}
	broken.Store(false)
	s, _ = run(t, webhook.Config{Store: store, Guard: local(t, r)})
	eventually(t, "it is delivered", func() bool { return only(t, s, "t").State == jobs.DeliveryDelivered })
	all := r.requests()
	if len(all) != before+1 {
		t.Errorf("%d requests, %d before the crash", len(all), before)
	}
	for _, q := range all {
		if q.header.Get("webhook-id") != only(t, s, "t").ID || verifies(secret, q) != nil {
			t.Errorf("id %s, %v", q.header.Get("webhook-id"), verifies(secret, q))
		}
	}
}

// TestStoreFails: whatever the ledger refuses is tried again, and nothing is lost.
func TestStoreFails(t *testing.T) {
	r := receive(t, nil)
	for _, op := range []string{"hooks", "endpoints", "spread", "pending", "endpoint", "tried"} {
		t.Run(op, func(t *testing.T) {
			store := webhooktest.NewStore()
			var failing, failed atomic.Int64
			store.Before = func(o string) error {
				if failing.Load() == 1 && o == op && failed.Add(1) == 1 {
					return errors.New("not now")
				}
				return nil
			}
			s, _ := run(t, webhook.Config{Store: store, Guard: local(t, r)})
			add(t, s, "t", jobs.EndpointRequest{URL: r.URL})
			failing.Store(1)
			store.Hook(ended("t"))
			eventually(t, "it is delivered", func() bool {
				l, _, err := s.Deliveries(t.Context(), "t", jobs.DeliveriesRequest{States: []jobs.DeliveryState{jobs.DeliveryDelivered}})
				return err == nil && len(l) == 1
			})
			if failed.Load() < 2 {
				t.Error("nothing failed")
			}
		})
	}
}

// TestOneHangs: a thousand deliveries to ten endpoints, of which one takes the request and answers nothing. The others' do not wait for it.
func TestOneHangs(t *testing.T) {
	show := func(what string, lags []time.Duration) {
		slices.Sort(lags)
		t.Logf("%s: %d deliveries, p50 %v, p99 %v, at most %v", what, len(lags), lags[len(lags)/2], lags[len(lags)*99/100], lags[len(lags)-1])
	}
	show("all are well", burst(t, false))
	show("one of ten hangs", burst(t, true))
}

// burst has ten endpoints told of a hundred jobs each, all at once, the last of which may hang, and gives how long the others' deliveries took.
func burst(t *testing.T, hang bool) (lags []time.Duration) {
	t.Helper()
	const endpoints, each = 10, 100
	last := receive(t, func(_ http.ResponseWriter, q *http.Request) {
		if hang {
			<-q.Context().Done()
		}
	})
	all := []*receiver{last}
	for len(all) < endpoints {
		all = append(all, receive(t, nil))
	}
	store := webhooktest.NewStore()
	s, stop := run(t, webhook.Config{Store: store, Guard: local(t, all...)})
	for i, r := range all {
		add(t, s, fmt.Sprint("t", i), jobs.EndpointRequest{URL: r.URL})
	}
	made := map[string]time.Time{} // when each was put in, by job
	for range each {
		for i := range all {
			h := ended(fmt.Sprint("t", i))
			made[jobOf(h)] = time.Now()
			store.Hook(h)
		}
	}
	for _, r := range all[1:] {
		eventually(t, "all are told", func() bool { return len(r.requests()) >= each })
		if n := len(r.requests()); n != each {
			t.Errorf("%d requests, want %d", n, each)
		}
		for _, q := range r.requests() {
			var h jobs.Hook
			if err := json.Unmarshal(q.body, &h); err != nil {
				t.Fatal(err)
			}
			lags = append(lags, q.at.Sub(made[h.Data.Job]))
		}
	}
	if n := len(last.requests()); hang && n > 5 {
		t.Errorf("%d requests hang, want one after the other and no more than five, when the circuit opens", n)
	}
	stop()
	return lags
}

// TestMalformed: an event that cannot be read holds up nobody.
func TestMalformed(t *testing.T) {
	r := receive(t, nil)
	store := webhooktest.NewStore()
	s, _ := run(t, webhook.Config{Store: store, Guard: local(t, r)})
	add(t, s, "t", jobs.EndpointRequest{URL: r.URL})
	bad := ended("t")
	bad.Event = []byte("{")
	store.Hook(bad)
	good := ended("t")
	store.Hook(good)
	eventually(t, "the good one is told", func() bool {
		return slices.ContainsFunc(r.requests(), func(q received) bool { return strings.Contains(string(q.body), jobOf(good)) })
	})
}
