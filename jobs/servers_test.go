package jobs_test

import (
	"strings"
	"testing"

	"github.com/paddockvm/paddock/jobs"
)

func TestServers(t *testing.T) {
	for _, c := range []struct{ urls, want string }{
		{"nats://127.0.0.1:4222", "nats://127.0.0.1:4222"},
		{"nats://ci:secret@a:4222", "nats://a:4222"},
		{"tls://secret@a", "tls://a"},
		{"ci:secret@a:4222", "nats://a:4222"},
		{"nats://ci:secret@a:4222, nats://ci:secret@[::1]:4222", "nats://a:4222,nats://[::1]:4222"},
		{"nats://ci:secret@no host", ""},
		{"nats://ci:secret@a:port", ""},
		{"nats://ci:sec%ret@a", ""},
	} {
		got, err := jobs.Servers(c.urls)
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("of %q got %q, %v, want %q", c.urls, got, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "sec") {
			t.Errorf("the error tells the secret: %v", err)
		}
	}
}
