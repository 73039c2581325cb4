package bus_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/crypto/bcrypt"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/bus/bustest"
)

// closed waits until the server has ended a connection that does not come back.
func closed(t *testing.T, nc *nats.Conn) {
	t.Helper()
	bustest.Eventually(t, "the connection is closed", nc.IsClosed)
}

func TestNobodyGetsInWithout(t *testing.T) {
	s := bustest.StartGuarded(t)
	s.Dispatcher() // this process does
	_, unknown := bustest.Key(t)
	o, err := nats.NkeyOptionFromSeed(unknown)
	if err != nil {
		t.Fatal(err)
	}
	for name, opts := range map[string][]nats.Option{
		"nothing": nil, "an unknown key": {o}, "a password": {nats.UserInfo("paddock", "x")}, "a token": {nats.Token("x")},
	} {
		if nc, err := nats.Connect(s.URL(), append(opts, nats.Timeout(time.Minute))...); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("%s: got %v, want an authorization violation", name, err)
			if err == nil {
				nc.Close()
			}
		}
	}
}

// What changes in the file holds within seconds: new credentials let in, and the connections of those that are gone end.
func TestCredentialsChange(t *testing.T) {
	s := bustest.StartGuarded(t)
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	s.Allow(access.Credential{User: "ci", Password: string(hash), Identity: access.Identity{Role: access.Tenant, Name: "ci"}})
	stays, goes := s.Let(access.Tenant, "acme"), s.Let(access.Worker, "w1")
	staying, going := s.As(stays, nats.NoReconnect()), s.As(goes, nats.NoReconnect())
	password, err := nats.Connect(s.URL(), nats.UserInfo("ci", "secret"), nats.NoReconnect(), nats.Timeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer password.Close()
	own := s.Dispatcher()
	drop := func(role access.Role) {
		t.Helper()
		if err := access.Change(s.Credentials(), func(l []access.Credential) (kept []access.Credential, _ error) {
			for _, c := range l {
				if c.Role != role || role == access.Tenant && c.Name != "ci" {
					kept = append(kept, c)
				}
			}
			return kept, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	drop(access.Worker)
	closed(t, going)
	if staying.IsClosed() || password.IsClosed() {
		t.Error("another's connection ended too")
	}
	o, err := nats.NkeyOptionFromSeed(goes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nats.Connect(s.URL(), o, nats.Timeout(time.Minute)); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("with the key that is gone: got %v", err)
	}
	drop(access.Tenant)
	closed(t, password)

	// A file that cannot be read changes nothing.
	b, err := os.ReadFile(s.Credentials())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Credentials(), []byte(strings.Replace(string(b), "tenant", "nobody", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2500 * time.Millisecond) // longer than it takes to notice
	if staying.IsClosed() {
		t.Error("a file with a mistake ended a connection")
	}
	s.As(stays).Close()
	bustest.Publish(t, own, bustest.Event("j", 1, 1, "x"))
}

// A connection ends when its credential does.
func TestCredentialExpires(t *testing.T) {
	s := bustest.StartGuarded(t)
	var nc *nats.Conn
	var o nats.Option
	for good := 5 * time.Second; nc == nil; good *= 2 { // that of one may be over before the server has noticed it, where the machine stands still
		if good > 5*time.Minute {
			t.Fatal("no key lets in")
		}
		public, seed := bustest.Key(t)
		end := time.Now().Add(good)
		s.Allow(access.Credential{NKey: public, Identity: access.Identity{Role: access.Tenant, Name: "acme"}, Expires: end})
		var err error
		if o, err = nats.NkeyOptionFromSeed(seed); err != nil {
			t.Fatal(err)
		}
		for nc == nil && time.Now().Before(end) {
			if nc, err = nats.Connect(s.URL(), o, nats.NoReconnect(), nats.Timeout(time.Minute)); err != nil {
				nc = nil
			}
		}
	}
	defer nc.Close()
	closed(t, nc)
	if _, err := nats.Connect(s.URL(), o, nats.Timeout(time.Minute)); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("got %v", err)
	}
}
