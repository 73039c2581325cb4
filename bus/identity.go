package bus

import (
	"fmt"
	"os"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/jobs"
)

// identify gives the options that say who connects, and over what.
func (b *Bus) identify(c Config) (opts []nats.Option, err error) {
	if c.Server != nil {
		opts = append(opts, nats.InProcessServer(c.Server.s))
		if c.Server.gate != nil {
			b.guards = true
			opts = append(opts, c.Server.gate.option())
		}
		return opts, nil
	}
	if c.TLS != (TLS{}) || strings.HasPrefix(c.URL, "tls://") {
		o, err := c.TLS.client()
		if err != nil {
			return nil, err
		}
		opts = append(opts, o)
	}
	if c.Creds == "" {
		return opts, nil
	}
	b.guards = true
	o, err := credsOption(c.Creds)
	if err != nil {
		return nil, err
	}
	opts = append(opts, o)
	if c.Worker != "" {
		b.worker = c.Worker
		opts = append(opts, nats.CustomInboxPrefix(access.Identity{Role: access.Worker, Name: c.Worker}.Inbox()))
	}
	return opts, nil
}

// credsOption reads the seed of an NKEY, or a file with a JWT and a seed.
func credsOption(name string) (nats.Option, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	if strings.Contains(string(b), "BEGIN NATS USER JWT") {
		return nats.UserCredentials(name), nil
	}
	o, err := nats.NkeyOptionFromSeed(name)
	if err != nil {
		return nil, fmt.Errorf("credentials: %s: %w", name, err)
	}
	return o, nil
}

// fleet is the subject of a worker's requests: with its name in it where the server knows who asks.
func (b *Bus) fleet(subject string) string {
	if b.worker == "" {
		return subject
	}
	return access.FleetSubject(subject, b.worker)
}

// itself refuses a request of a worker that says it is another than its subject does.
func itself(m *nats.Msg, worker string) *jobs.Error {
	if name := token(m.Subject, 4); name != "" && name != worker {
		return &jobs.Error{Code: jobs.CodeForbidden, Message: fmt.Sprintf("the worker %s asks as %.80q", name, worker)}
	}
	return nil
}

// strange tells whether a request is one that nobody could have sent who may: access.Answerable says why.
func (b *Bus) strange(m *nats.Msg) bool { return b.guards && !access.Answerable(m.Subject, m.Reply) }
