package jobs_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/jobs"
)

// TestWebhookRequests: what is taken of requests about webhooks, and which fields are blamed.
func TestWebhookRequests(t *testing.T) {
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	endpoint := func(b string) ([]string, error) {
		var q jobs.EndpointRequest
		return jobs.DecodeRequest([]byte(b), &q)
	}
	rotate := func(b string) ([]string, error) {
		var q jobs.RotateRequest
		return jobs.DecodeRequest([]byte(b), &q)
	}
	deliveries := func(b string) ([]string, error) {
		var q jobs.DeliveriesRequest
		return jobs.DecodeRequest([]byte(b), &q)
	}
	replay := func(b string) ([]string, error) {
		var q jobs.RedeliverRequest
		return jobs.DecodeRequest([]byte(b), &q)
	}
	for _, tt := range []struct {
		name   string
		decode func(string) ([]string, error)
		body   string
		blamed []string
	}{
		{"an endpoint", endpoint, `{"url":"https://example.com/","events":["job.running","batch.ended"],"format":"cloudevents","secret":"` + secret + `"}`, nil},
		{"no URL", endpoint, `{}`, []string{"url"}},
		{"URLs that are none", endpoint, `{"url":"example.com"}`, []string{"url"}},
		{"credentials", endpoint, `{"url":"https://a:b@example.com/"}`, []string{"url"}},
		{"a fragment", endpoint, `{"url":"https://example.com/#x"}`, []string{"url"}},
		{"everything else", endpoint, `{"url":"https://example.com/","events":["job.ended","job.ended","x"],"format":"xml","secret":"whsec_short"}`, []string{"events[1]", "events[2]", "format", "secret"}},
		{"a secret without its prefix", endpoint, `{"url":"https://example.com/","secret":"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}`, []string{"secret"}},
		{"no grace", rotate, `{"id":"x","grace_ms":0}`, nil},
		{"less than none", rotate, `{"id":"x","grace_ms":-1}`, []string{"grace_ms"}},
		{"too long", rotate, `{"id":"x","grace_ms":2592000001}`, []string{"grace_ms"}},
		{"deliveries", deliveries, `{"states":["pending","delivered","failed"],"limit":1000}`, nil},
		{"deliveries that there are not", deliveries, `{"states":["gone"],"limit":1001,"before":"x"}`, []string{"before", "limit", "states[0]"}},
		{"one", replay, `{"id":"x"}`, nil},
		{"all since", replay, `{"since":"2026-01-02T15:04:05Z","endpoint":"callbacks"}`, nil},
		{"nothing", replay, `{}`, []string{"id"}},
		{"both", replay, `{"id":"x","since":"2026-01-02T15:04:05Z"}`, []string{"id"}},
		{"one of an endpoint", replay, `{"id":"x","endpoint":"y"}`, []string{"endpoint"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.decode(tt.body)
			var blamed []string
			if e := jobs.ErrorOf(err); e != nil {
				for _, f := range e.Faults {
					blamed = append(blamed, f.Path)
				}
			}
			if d := cmp.Diff(tt.blamed, blamed); d != "" {
				t.Error(d)
			}
		})
	}
}
