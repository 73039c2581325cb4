package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/crypto/bcrypt"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// passwords is a file of credentials in which everybody has the same.
func passwords(t *testing.T) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	var list []access.Credential
	for _, role := range []access.Role{access.Tenant, access.Worker, access.Monitor, access.Operator} {
		list = append(list, access.Credential{User: string(role), Password: string(hash), Identity: access.Identity{Role: role, Name: "x"}, Expires: time.Now().Add(time.Hour)})
	}
	file := filepath.Join(t.TempDir(), "credentials.yaml")
	if err := access.Write(file, list); err != nil {
		t.Fatal(err)
	}
	return file
}

// Where others reach it there are credentials, and their passwords are not in plain text, unless somebody says that this is meant.
func TestOpenHTTP(t *testing.T) {
	file := passwords(t)
	cert, key := bustest.NewAuthority(t).Leaf("server")
	const here, everywhere, nats = "127.0.0.1:8080", "0.0.0.0:8080", "127.0.0.1:4222"
	for name, c := range map[string]struct {
		listen, nats, file, cert, key string
		insecure                      bool
		refused                       string // part of why
	}{
		"loopback":                         {listen: here, nats: nats},
		"loopback, credentials":            {listen: here, nats: nats, file: file},
		"everywhere":                       {listen: everywhere, nats: nats, refused: "nothing says who may watch"},
		"everywhere, TLS":                  {listen: everywhere, nats: nats, cert: cert, key: key, refused: "nothing says who may watch"},
		"everywhere, credentials":          {listen: everywhere, nats: nats, file: file, refused: "plain text"},
		"everywhere, credentials, TLS":     {listen: everywhere, nats: nats, file: file, cert: cert, key: key},
		"everywhere, meant":                {listen: everywhere, nats: nats, insecure: true},
		"everywhere, credentials, meant":   {listen: everywhere, nats: nats, file: file, insecure: true},
		"another's NATS":                   {listen: here, refused: "give --nats-credentials"},
		"another's NATS, credentials":      {listen: here, file: file},
		"another's NATS, meant":            {listen: here, insecure: true},
		"a name":                           {listen: "paddock.example:8080", nats: nats, refused: "nothing says who may watch"},
		"all addresses":                    {listen: ":8080", nats: nats, refused: "nothing says who may watch"},
		"a certificate without its key":    {listen: here, nats: nats, cert: cert, refused: "needs a certificate and its key"},
		"credentials that are not there":   {listen: here, nats: nats, file: "gone.yaml", refused: "gone.yaml"},
		"everywhere, credentials not here": {listen: everywhere, nats: nats, file: "gone.yaml", insecure: true, refused: "gone.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			a, credentials, err := openHTTP(config{
				Listen: c.nats, httpConfig: httpConfig{HTTPListen: c.listen, HTTPTLSCert: c.cert, HTTPTLSKey: c.key}, natsConfig: natsConfig{NATSCredentials: c.file, InsecureOpen: c.insecure},
			}, zerolog.Nop())
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("%v, want %q in it", err, c.refused)
				}
				return
			}
			if err != nil || (a.Access != nil) != (c.file != "") || (credentials != nil) != (c.file != "") || (a.TLS != nil) != (c.cert != "") {
				t.Errorf("%+v, %v", a, err)
			}
		})
	}
}

// Each role sees what it sees over NATS, as long as its credential is as it was.
func TestGatekeeper(t *testing.T) {
	name := passwords(t)
	file, err := access.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	k := gatekeeper{file}
	for user, tenant := range map[string]string{"tenant": "x", "monitor": "", "operator": ""} {
		g, err := k.Authenticate(user, "secret")
		if err != nil || g.Tenant != tenant || !g.Holds() || g.Until.IsZero() {
			t.Errorf("%s: %+v, %v", user, g, err)
		}
	}
	if _, err := k.Authenticate("worker", "secret"); jobs.ErrorOf(err).Code != jobs.CodeForbidden {
		t.Errorf("a worker: %v", err)
	}
	for _, user := range []string{"tenant", "worker", "nobody", ""} {
		if _, err := k.Authenticate(user, "guess"); !errors.Is(err, access.ErrDenied) {
			t.Errorf("%q: %v", user, err)
		}
	}
}
