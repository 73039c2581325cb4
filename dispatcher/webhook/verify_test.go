package webhook_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher/webhook"
	"github.com/paddockvm/paddock/dispatcher/webhook/webhooktest"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// check is a request to verify with a secret, and what is expected of that.
type check struct {
	Name    string            `json:"name"`
	Secret  string            `json:"secret"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
	OK      bool              `json:"ok"`
}

func checkOf(name, secret string, q received, ok bool) check {
	h := map[string]string{}
	for _, k := range []string{"webhook-id", "webhook-timestamp", "webhook-signature"} {
		h[k] = q.header.Get(k)
	}
	return check{name, secret, h, string(q.body), ok}
}

// TestOfficialVerifiers has real deliveries, in all cases of rotation, verified by the official libraries for Go, Python and JavaScript.
func TestOfficialVerifiers(t *testing.T) {
	checks := rotations(t)
	t.Run("Go", func(t *testing.T) {
		for _, c := range checks {
			h := http.Header{}
			for k, v := range c.Headers {
				h.Set(k, v)
			}
			if err := verifies(c.Secret, received{header: h, body: []byte(c.Body)}); (err == nil) != c.OK {
				t.Errorf("%s: %v", c.Name, err)
			}
		}
	})
	t.Run("Python", func(t *testing.T) {
		bin, err := harness.Python(t.Context(), "standardwebhooks==1.1.0")
		if err != nil {
			cannot(t, err)
		}
		elsewhere(t, checks, "", bin, "-c", pythonVerifier)
	})
	t.Run("JavaScript", func(t *testing.T) {
		dir, err := harness.Node(t.Context(), "standardwebhooks@1.1.1")
		if err != nil {
			cannot(t, err)
		}
		elsewhere(t, checks, "NODE_PATH="+filepath.Join(dir, "node_modules"), "node", "-e", javascriptVerifier)
	})
}

// rotations gives what was sent before, between and after rotations, with every secret that there was.
func rotations(t *testing.T) (checks []check) {
	r := receive(t, nil)
	store := webhooktest.NewStore()
	s, stop := run(t, webhook.Config{Store: store, Guard: local(t, r)})
	e, first := add(t, s, "t", jobs.EndpointRequest{URL: r.URL})
	sent := func(name string, valid ...string) {
		t.Helper()
		n := len(r.requests())
		h := ended("t")
		h.Labels = map[string]string{"name": "ünï<code>"}
		store.Hook(h)
		eventually(t, "a request", func() bool { return len(r.requests()) > n })
		q := r.requests()[n]
		for _, secret := range valid {
			checks = append(checks, checkOf(name+", a secret that signs", secret, q, true))
		}
		changed := q
		changed.body = bytes.Replace(q.body, []byte(`"attempt":1`), []byte(`"attempt":2`), 1)
		checks = append(checks, checkOf(name+", another body", valid[0], changed, false))
		if n := len(strings.Fields(q.header.Get("webhook-signature"))); n != len(valid) {
			t.Errorf("%s: %d signatures, want %d", name, n, len(valid))
		}
	}
	expired := func(name, secret string) {
		q := r.requests()[len(r.requests())-1]
		checks = append(checks, checkOf(name+", a secret that signs no more", secret, q, false))
	}
	rotate := func(q jobs.RotateRequest) string {
		t.Helper()
		secret, err := s.Rotate(t.Context(), "t", q)
		if err != nil {
			t.Fatal(err)
		}
		return secret
	}
	sent("one secret", first)
	second := rotate(jobs.RotateRequest{ID: e.ID})
	sent("rotated", second, first)
	own := jobs.SecretPrefix + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
	if third := rotate(jobs.RotateRequest{ID: e.ID, Secret: own}); third != own {
		t.Errorf("the secret is %q", third)
	}
	sent("rotated again, to one that was brought", own, second, first)
	short := int64(50)
	fourth := rotate(jobs.RotateRequest{ID: e.ID, GraceMS: &short})
	time.Sleep(60 * time.Millisecond) // the grace
	sent("after the grace", fourth)
	expired("after the grace", first)
	expired("after the grace", own)
	none := int64(0)
	fifth := rotate(jobs.RotateRequest{ID: e.ID, GraceMS: &none})
	sent("without a grace", fifth)
	expired("without a grace", fourth)
	got, err := s.Get(t.Context(), "t", e.ID)
	if err != nil || len(got.Secrets) != 1 || !strings.HasSuffix(fifth, got.Secrets[0].Hint) || len(got.Secrets[0].Hint) != 4 {
		t.Errorf("secrets %+v, %v", got.Secrets, err)
	}
	stop()
	callback, old := rotatedCallback(t)
	return append(checks, callback, old)
}

// rotatedCallback gives a callback's request after a rotation, with the new and with the old secret.
func rotatedCallback(t *testing.T) (_, _ check) {
	r := receive(t, nil)
	store := webhooktest.NewStore()
	s, stop := run(t, webhook.Config{Store: store, Guard: local(t, r)})
	old, err := s.Secret(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	made, err := s.Rotate(t.Context(), "t", jobs.RotateRequest{ID: jobs.CallbacksID})
	if err != nil || made == old {
		t.Fatal(made, err)
	}
	if again, err := s.Secret(t.Context(), "t"); err != nil || again != made {
		t.Errorf("%q, %v", again, err)
	}
	store.Hook(ended("t", jobs.Callback{URL: r.URL}))
	eventually(t, "a request", func() bool { return len(r.requests()) == 1 })
	stop()
	return checkOf("callback", made, r.requests()[0], true), checkOf("callback, the secret before", old, r.requests()[0], true)
}

const pythonVerifier = `
import json, sys
from standardwebhooks import Webhook, WebhookVerificationError
for c in json.load(sys.stdin):
    try:
        Webhook(c["secret"]).verify(c["body"].encode(), c["headers"])
        print("yes", c["name"])
    except WebhookVerificationError:
        print("no", c["name"])
`

const javascriptVerifier = `
const { Webhook, WebhookVerificationError } = require("standardwebhooks");
for (const c of JSON.parse(require("fs").readFileSync(0, "utf8"))) {
  try {
    new Webhook(c.secret).verify(c.body, c.headers);
    console.log("yes", c.name);
  } catch (e) {
    if (!(e instanceof WebhookVerificationError)) throw e;
    console.log("no", c.name);
  }
}
`

// elsewhere has a program of another language verify what it reads, and tell of each.
func elsewhere(t *testing.T, checks []check, env string, argv ...string) {
	t.Helper()
	in, err := json.Marshal(checks)
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, c := range checks {
		want.WriteString(map[bool]string{true: "yes ", false: "no "}[c.OK] + c.Name + "\n")
	}
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Env = append(os.Environ(), env)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &stderr
	out, err := cmd.Output()
	if d := cmp.Diff(want.String(), string(out)); err != nil || d != "" {
		t.Errorf("%v %s\n%s", err, d, stderr.String())
	}
}

// cannot skips, and fails where CI says that nothing may be missing.
func cannot(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("REQUIRE_PACKAGES") != "" {
		t.Fatal(err)
	}
	t.Skip(err)
}
