package e2e

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
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

// hookServer is somebody's server. While it is down it answers 503 to what comes for the first time, and nothing to what comes again, however
// long the test takes to see the former: after two failures the next try is 5 minutes away.
type hookServer struct {
	*httptest.Server
	mu      sync.Mutex
	got     []hooked
	refused map[string]bool
	up      chan struct{} // closed when it is up again; nil: it is
}

func newHookServer(t *testing.T) *hookServer {
	t.Helper()
	s := &hookServer{refused: map[string]bool{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := hooked{path: r.URL.Path, id: r.Header.Get("webhook-id"), header: r.Header}
		var err error
		if h.body, err = io.ReadAll(r.Body); err != nil {
			return // who sent it was killed
		}
		if err := json.Unmarshal(h.body, &h.hook); err != nil {
			t.Error(err)
		}
		first, up := s.tried(h.id)
		if up != nil && first {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if up != nil {
			select {
			case <-up:
			case <-r.Context().Done():
				return
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.got = append(s.got, h)
	}))
	t.Cleanup(s.Close)
	return s
}

// tried notes a try while the server is down, and gives whether it is the delivery's first, and what ends that; nil where it is not down.
func (s *hookServer) tried(id string) (first bool, up <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.up == nil {
		return true, nil
	}
	first = !s.refused[id]
	s.refused[id] = true
	return first, s.up
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
	if down {
		s.up = make(chan struct{})
		return
	}
	close(s.up)
	s.up = nil
}

// wait gives the deliveries of a job that were got, once they are so many. One that was answered too late comes again.
func (s *hookServer) wait(t *testing.T, job string, n int) []hooked {
	t.Helper()
	return s.waitAt(t, "/", job, n)
}

// waitAt is wait for those to a path.
func (s *hookServer) waitAt(t *testing.T, path, job string, n int) (l []hooked) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		s.mu.Lock()
		l = nil
		for _, h := range s.got {
			if h.hook.Data.Job == job && strings.HasPrefix(h.path, path) && !slices.ContainsFunc(l, func(had hooked) bool { return had.id == h.id }) {
				l = append(l, h)
			}
		}
		s.mu.Unlock()
		if len(l) >= n {
			return l
		}
		if time.Now().After(end) {
			t.Fatalf("waited a minute for %d webhooks of %s to %s; there are %+v", n, job, path, l)
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
	held := t.TempDir()
	job := submit(t, c, jobs.Spec{
		Image: "base", Steps: []jobs.Step{{Shell: "cd " + held + "; echo hello; until [ -e go ]; do sleep 0.05; done; exit 3"}}, Limits: jobs.Limits{WallMS: 600_000}, Labels: map[string]string{"run": "7"}, Callbacks: []jobs.Callback{{URL: s.URL + "/callback"}},
	})
	s.waitAt(t, "/endpoint", job, 1) // that it runs, which the dispatcher hears by a heartbeat
	letGo(t, held)
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
	h := s.waitAt(t, "/callback", job, 1)[0]
	verify(t, callbacks, h)
	if h.id != pending.ID {
		t.Errorf("the delivery is %s, and was %s before the crash", h.id, pending.ID)
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
