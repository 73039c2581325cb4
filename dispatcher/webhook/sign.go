package webhook

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// secretBytes is how long the secrets are that are made here; the specification has 24 to 64.
const secretBytes = 32

// maxSecrets bounds how many of an endpoint's secrets sign at once, and with it the header.
const maxSecrets = 5

// newSecret makes a secret, unless one is given.
func newSecret(given string, now time.Time) ledger.Secret {
	if given == "" {
		b := make([]byte, secretBytes)
		_, _ = rand.Read(b) // never fails (crypto/rand)
		given = jobs.SecretPrefix + base64.StdEncoding.EncodeToString(b)
	}
	return ledger.Secret{Value: given, CreatedAt: now}
}

// rotate puts a secret before those that there are, which expire when the grace is over.
func rotate(old []ledger.Secret, s ledger.Secret, grace time.Duration) []ledger.Secret {
	now := s.CreatedAt
	l := []ledger.Secret{s}
	for _, o := range active(old, now) {
		if end := now.Add(grace); o.ExpiresAt.IsZero() || o.ExpiresAt.After(end) {
			o.ExpiresAt = end
		}
		if o.ExpiresAt.After(now) && o.Value != s.Value && len(l) < maxSecrets {
			l = append(l, o)
		}
	}
	return l
}

// active are the secrets that sign now.
func active(all []ledger.Secret, now time.Time) (l []ledger.Secret) {
	for _, s := range all {
		if s.ExpiresAt.IsZero() || s.ExpiresAt.After(now) {
			l = append(l, s)
		}
	}
	return l
}

// sign sets the headers of Standard Webhooks: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md.
// There is a signature for each secret, so that a receiver may know any one of them.
func sign(h http.Header, id string, at time.Time, body []byte, secrets []ledger.Secret) error {
	ts := strconv.FormatInt(at.Unix(), 10)
	var signatures []string
	for _, s := range secrets {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(s.Value, jobs.SecretPrefix))
		if err != nil {
			return fmt.Errorf("secret of %s: not base64", s.CreatedAt) // its text stays out of logs
		}
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id + "." + ts + "."))
		mac.Write(body)
		signatures = append(signatures, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	h.Set("webhook-id", id)
	h.Set("webhook-timestamp", ts)
	h.Set("webhook-signature", strings.Join(signatures, " "))
	return nil
}
