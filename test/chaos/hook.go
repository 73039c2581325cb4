package chaos

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/paddockvm/paddock/jobs"
)

// receiver is a server that webhooks are sent to: one path for each tenant.
type receiver struct {
	l      net.Listener
	s      *http.Server
	clocks *clocks // the senders'

	mu      sync.Mutex
	secrets map[string]*standardwebhooks.Webhook // by tenant
	refused map[string]bool                      // ids of deliveries that were refused, each once
	ended   map[string][]told                    // by job: what it was told of the job's end and has taken
	wrong   []string                             // what was not as it should be
}

// told is a delivery that was taken.
type told struct {
	id   string
	data jobs.HookData
}

func openReceiver(clocks *clocks) (*receiver, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &receiver{l: l, clocks: clocks, secrets: map[string]*standardwebhooks.Webhook{}, refused: map[string]bool{}, ended: map[string][]told{}}
	r.s = &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go r.s.Serve(l)
	return r, nil
}

func (r *receiver) port() int { return r.l.Addr().(*net.TCPAddr).Port }

// url is where a tenant's are sent.
func (r *receiver) url(tenant string) string { return fmt.Sprintf("http://%s/%s", r.l.Addr(), tenant) }

// expect tells what a tenant's are signed with.
func (r *receiver) expect(tenant, secret string) error {
	w, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secrets[tenant] = w
	return nil
}

// ServeHTTP takes a delivery, or now and then refuses it, once.
func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body, err := io.ReadAll(q.Body)
	if err != nil {
		return // the sender died
	}
	id, tenant := q.Header.Get("webhook-id"), q.URL.Path[1:]
	r.mu.Lock()
	defer r.mu.Unlock()
	secret := r.secrets[tenant]
	var unsigned error
	if secret != nil {
		unsigned = r.verify(secret, body, q.Header)
	}
	var hook jobs.Hook
	switch {
	case secret == nil:
		r.wrong = append(r.wrong, fmt.Sprintf("delivery %s for %q, which has no endpoint here", id, tenant))
	case unsigned != nil:
		r.wrong = append(r.wrong, fmt.Sprintf("delivery %s for %s, of %s: its signature is not right: %v", id, tenant, q.Header.Get("webhook-timestamp"), unsigned))
	case json.Unmarshal(body, &hook) != nil || hook.Data.Tenant != tenant:
		r.wrong = append(r.wrong, fmt.Sprintf("delivery %s for %s: %.200s", id, tenant, body))
	case oneIn(20, id) && !r.refused[id] && !ahead(q.Header):
		r.refused[id] = true
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case hook.Type == jobs.HookEnded:
		r.ended[hook.Data.Job] = append(r.ended[hook.Data.Job], told{id, hook.Data})
	}
	w.WriteHeader(http.StatusNoContent)
}

// tolerance is by how much a delivery's time may differ from its receiver's, as Standard Webhooks' libraries have it.
const tolerance = 5 * time.Minute

// verify does what the library's Verify does, by the sender's clock.
func (r *receiver) verify(secret *standardwebhooks.Webhook, body []byte, h http.Header) error {
	if at, err := sentAt(h); err != nil || time.Since(r.clocks.moment(at, time.Second, "").latest).Abs() > tolerance {
		return secret.Verify(body, h) // it says why
	}
	return secret.VerifyIgnoringTimestamp(body, h)
}

// ahead tells whether a sender's clock is far ahead. What is refused then is sent again when that clock, set right, says so again.
func ahead(h http.Header) bool {
	at, _ := sentAt(h)
	return time.Until(at) > time.Second
}

func sentAt(h http.Header) (time.Time, error) {
	sec, err := strconv.ParseInt(h.Get("webhook-timestamp"), 10, 64)
	return time.Unix(sec, 0), err
}

// oneIn tells whether a text is one of every n.
func oneIn(n uint32, text string) bool {
	h := fnv.New32a()
	_, _ = h.Write([]byte(text))
	return h.Sum32()%n == 0
}

// of gives what was told of a job's end.
func (r *receiver) of(job string) []told {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended[job]
}

func (r *receiver) close() error { return r.s.Close() }
