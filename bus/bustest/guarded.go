package bustest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/test/port"
)

// StartGuarded starts a server that lets in only who has a credential: at first nobody.
func StartGuarded(tb testing.TB) *Server {
	tb.Helper()
	s := &Server{tb: tb, dir: tb.TempDir(), addr: port.Addr(freePort(tb)), credentials: filepath.Join(tb.TempDir(), "credentials.yaml")}
	s.Allow()
	s.start()
	return s
}

// Credentials is the file's name.
func (s *Server) Credentials() string { return s.credentials }

// Allow adds credentials to the file. The server notices within a second.
func (s *Server) Allow(more ...access.Credential) {
	s.tb.Helper()
	if err := access.Change(s.credentials, func(l []access.Credential) ([]access.Credential, error) { return append(l, more...), nil }); err != nil {
		s.tb.Fatal(err)
	}
}

// Key makes a key: the public half, and a file with the seed.
func Key(tb testing.TB) (public, seedFile string) {
	tb.Helper()
	k, err := nkeys.CreateUser()
	if err != nil {
		tb.Fatal(err)
	}
	seed, err := k.Seed()
	if err != nil {
		tb.Fatal(err)
	}
	if public, err = k.PublicKey(); err != nil {
		tb.Fatal(err)
	}
	seedFile = filepath.Join(tb.TempDir(), "seed.nk")
	if err := os.WriteFile(seedFile, seed, 0o600); err != nil {
		tb.Fatal(err)
	}
	return public, seedFile
}

// Let makes a key for an identity, and waits until the server lets it in.
func (s *Server) Let(role access.Role, name string) (seedFile string) {
	s.tb.Helper()
	public, seedFile := Key(s.tb)
	s.Allow(access.Credential{NKey: public, Identity: access.Identity{Role: role, Name: name}})
	Eventually(s.tb, "the key lets in", func() bool {
		nc, err := s.login(seedFile)
		if err == nil {
			nc.Close()
		}
		return err == nil
	})
	return seedFile
}

func (s *Server) login(seedFile string, opts ...nats.Option) (*nats.Conn, error) {
	o, err := nats.NkeyOptionFromSeed(seedFile)
	if err != nil {
		s.tb.Fatal(err)
	}
	return nats.Connect(s.URL(), append(opts, o, nats.Timeout(loaded))...)
}

// As gives a connection of nats.go of whoever has the key.
func (s *Server) As(seedFile string, opts ...nats.Option) *nats.Conn {
	s.tb.Helper()
	nc, err := s.login(seedFile, append([]nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(50 * time.Millisecond)}, opts...)...)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(nc.Close)
	return nc
}

// Dispatcher gives the bus of the process that the server is in.
func (s *Server) Dispatcher() *bus.Bus {
	return s.bus(bus.Config{Server: s.Server, Name: "dispatcher"})
}

// Worker gives a worker's, which has the key.
func (s *Server) Worker(name, seedFile string) *bus.Bus {
	return s.bus(bus.Config{URL: s.URL(), Name: name, Worker: name, Creds: seedFile})
}

func (s *Server) bus(c bus.Config) *bus.Bus {
	s.tb.Helper()
	c.Log = zerolog.New(zerolog.NewTestWriter(s.tb)).Level(zerolog.WarnLevel)
	b, err := bus.Connect(s.tb.Context(), c)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(b.Close)
	return b
}
