package e2e

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// hooked is a webhook that somebody's server got.
type hooked struct {
	path, id string
	hook     jobs.Hook
	body     []byte
	header   http.Header
}

// hookServer is somebody's server; down has it answer 503.
type hookServer struct {
	*httptest.Server
	mu   sync.Mutex
	got  []hooked
	down bool
}

func newHookServer(t *testing.T) *hookServer {
	t.Helper()
	s := &hookServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.down {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		h := hooked{path: r.URL.Path, id: r.Header.Get("webhook-id"), header: r.Header}
		var err error
		if h.body, err = io.ReadAll(r.Body); err != nil {
			t.Error(err)
		}
		if err := json.Unmarshal(h.body, &h.hook); err != nil {
			t.Error(err)
		}
		s.got = append(s.got, h)
	}))
	t.Cleanup(s.Close)
	return s
}

// args let webhooks go to the server.
func (s *hookServer) args(t *testing.T) []string {
	t.Helper()
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return []string{"--images", "base", "--webhook-http", "--webhook-allow", "127.0.0.0/8", "--webhook-ports", u.Port()}
}

func (s *hookServer) setDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// wait gives what was got of a job, once that is so many.
func (s *hookServer) wait(t *testing.T, job string, n int) (l []hooked) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		s.mu.Lock()
		l = nil
		for _, h := range s.got {
			if h.hook.Data.Job == job {
				l = append(l, h)
			}
		}
		s.mu.Unlock()
		if len(l) >= n {
			return l
		}
		if time.Now().After(end) {
			t.Fatalf("waited a minute for %d webhooks of %s; there are %+v", n, job, l)
		}
	}
}

func verify(t *testing.T, secret string, h hooked) {
	t.Helper()
	w, err := standardwebhooks.NewWebhook(secret)
	if err == nil {
		err = w.Verify(h.body, h.header)
	}
	if err != nil {
		t.Errorf("%s: %v", h.path, err)
	}
}

func askWebhook(t *testing.T, c *client.Client, op string, q any) jobs.WebhookReply {
	t.Helper()
	return answered(t, func(ctx context.Context) (jobs.WebhookReply, error) { return c.Webhook(ctx, op, q) })
}

// TestWebhook: of a job with a callback, whose tenant has an endpoint, both are told, signed with their own secrets; and what could not be
// delivered when Paddock was killed is when it is back.
func TestWebhook(t *testing.T) {
	s := newHookServer(t)
	dir := t.TempDir()
	o := harness.Options{Driver: "hostproc", Dir: dir, Args: s.args(t)}
	p := start(t, o)
	c := connect(t, p)
	added := askWebhook(t, c, jobs.WebhookAdd, jobs.EndpointRequest{URL: s.URL + "/endpoint", Events: []string{jobs.HookRunning, jobs.HookEnded}})
	callbacks := askWebhook(t, c, jobs.WebhookSecret, nil).Secret
	job := submit(t, c, jobs.Spec{
		Image: "base", Steps: []jobs.Step{{Shell: "echo hello; sleep 3; exit 3"}}, Labels: map[string]string{"run": "7"}, Callbacks: []jobs.Callback{{URL: s.URL + "/callback"}},
	})
	var paths []string
	for _, h := range s.wait(t, job, 3) {
		paths = append(paths, h.path+" "+h.hook.Type)
		d := h.hook.Data
		if d.Tenant != "default" || d.Attempt != 1 || d.Labels["run"] != "7" {
			t.Errorf("%s: %+v", h.path, d)
		}
		if h.hook.Type == jobs.HookEnded && (d.State != jobs.StateEnded || d.Ending != jobs.Exited || d.ExitCode == nil || *d.ExitCode != 3 || d.Stdout.Text != "hello\n") {
			t.Errorf("%s: %+v", h.path, d)
		}
		if h.path == "/callback" {
			verify(t, callbacks, h)
		} else {
			verify(t, added.Secret, h)
		}
	}
	slices.Sort(paths)
	if want := []string{"/callback job.ended", "/endpoint job.ended", "/endpoint job.running"}; !slices.Equal(paths, want) {
		t.Errorf("told: %q, want %q", paths, want)
	}

	s.setDown(true)
	job = submit(t, c, jobs.Spec{Image: "base", Steps: []jobs.Step{{Cmd: "true"}}, Callbacks: []jobs.Callback{{URL: s.URL + "/callback"}}})
	var pending jobs.Delivery
	for pending.Attempts == 0 {
		time.Sleep(10 * time.Millisecond)
		for _, d := range askWebhook(t, c, jobs.WebhookDeliveries, jobs.DeliveriesRequest{Endpoint: jobs.CallbacksID, Job: job}).Deliveries {
			pending = d
		}
	}
	if pending.State != jobs.DeliveryPending || pending.Error != "answered 503" {
		t.Errorf("delivery %+v", pending)
	}
	p.Kill()
	s.setDown(false)
	p = start(t, o)
	c = connect(t, p)
	for _, h := range s.wait(t, job, 2) {
		if h.path == "/callback" {
			verify(t, callbacks, h)
			if h.id != pending.ID {
				t.Errorf("the delivery is %s, and was %s before the crash", h.id, pending.ID)
			}
		}
	}
	done := askWebhook(t, c, jobs.WebhookDelivery, jobs.DeliveryID{ID: pending.ID}).Delivery
	for done.State == jobs.DeliveryPending { // the server has it, and the ledger not yet
		time.Sleep(10 * time.Millisecond)
		done = askWebhook(t, c, jobs.WebhookDelivery, jobs.DeliveryID{ID: pending.ID}).Delivery
	}
	if len(done.Tries) < 2 || done.Tries[0].Status != 503 || done.Tries[len(done.Tries)-1].Status != 200 {
		t.Errorf("tries %+v", done.Tries)
	}
}
