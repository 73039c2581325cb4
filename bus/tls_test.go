package bus_test

import (
	"math/big"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/bustest"
)

func TestTLS(t *testing.T) {
	ca, other := bustest.NewAuthority(t), bustest.NewAuthority(t)
	cert, key := ca.Leaf("server")
	clientCert, clientKey := ca.Leaf("client")
	wrongCert, wrongKey := other.Leaf("client")
	ours := ca.File("ca.pem")
	for name, c := range map[string]struct {
		server, client bus.TLS
		want           string // of the error; empty: none
	}{
		"server alone":             {bus.TLS{Cert: cert, Key: key}, bus.TLS{CA: ours}, ""},
		"both":                     {bus.TLS{Cert: cert, Key: key, CA: ours}, bus.TLS{Cert: clientCert, Key: clientKey, CA: ours}, ""},
		"another's server":         {bus.TLS{Cert: cert, Key: key}, bus.TLS{CA: other.File("ca.pem")}, "unknown authority"},
		"a CA that nobody trusts":  {bus.TLS{Cert: cert, Key: key}, bus.TLS{}, "unknown authority"},
		"no client's certificate":  {bus.TLS{Cert: cert, Key: key, CA: ours}, bus.TLS{CA: ours}, "tls"},
		"another's certificate":    {bus.TLS{Cert: cert, Key: key, CA: ours}, bus.TLS{Cert: wrongCert, Key: wrongKey, CA: ours}, "tls:"},
		"a certificate and no key": {bus.TLS{Cert: cert, Key: key}, bus.TLS{Cert: clientCert, CA: ours}, "come together"},
		"no certificate in the CA": {bus.TLS{Cert: cert, Key: key}, bus.TLS{CA: key}, "no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := bus.Embed(bus.EmbedConfig{Listen: "127.0.0.1:0", StoreDir: t.TempDir(), TLS: c.server, Log: zerolog.Nop()})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if !strings.HasPrefix(s.URL(), "tls://") {
				t.Errorf("the URL is %s", s.URL())
			}
			own, err := bus.Connect(t.Context(), bus.Config{Server: s, Log: zerolog.Nop()}) // in the process there is nobody to listen
			if err != nil {
				t.Fatal(err)
			}
			own.Close()
			b, err := bus.Connect(t.Context(), bus.Config{URL: s.URL(), TLS: c.client, Log: zerolog.Nop()})
			if err == nil {
				b.Close()
			}
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %q", err, c.want)
			}
			if nc, err := nats.Connect("nats://"+strings.TrimPrefix(s.URL(), "tls://"), nats.RootCAs(other.File("ca.pem"))); err == nil {
				nc.Close()
				t.Error("connected to a server that it does not trust")
			}
		})
	}
}

func TestTLSFiles(t *testing.T) {
	ca := bustest.NewAuthority(t)
	cert, key := ca.Leaf("server")
	_, otherKey := ca.Leaf("other")
	for name, c := range map[string]struct {
		tls  bus.TLS
		want string
	}{
		"no key":      {bus.TLS{Cert: cert}, "needs a certificate and its key"},
		"a CA alone":  {bus.TLS{CA: cert}, "needs a certificate and its key"},
		"another key": {bus.TLS{Cert: cert, Key: otherKey}, "private key does not match"},
		"no file":     {bus.TLS{Cert: cert, Key: key + "x"}, "no such file"},
		"no CA":       {bus.TLS{Cert: cert, Key: key, CA: key}, "no certificate"},
	} {
		if s, err := bus.Embed(bus.EmbedConfig{Listen: "127.0.0.1:0", StoreDir: t.TempDir(), TLS: c.tls}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
			if err == nil {
				s.Close()
			}
		}
	}
}

// A certificate that is renewed is shown without a restart.
func TestCertificateIsRenewed(t *testing.T) {
	ca := bustest.NewAuthority(t)
	cert, key := ca.Leaf("server")
	s, err := bus.Embed(bus.EmbedConfig{Listen: "127.0.0.1:0", StoreDir: t.TempDir(), TLS: bus.TLS{Cert: cert, Key: key}, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	serial := func() *big.Int {
		t.Helper()
		nc, err := nats.Connect(s.URL(), nats.RootCAs(ca.File("ca.pem")))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		state, err := nc.TLSConnectionState()
		if err != nil {
			t.Fatal(err)
		}
		return state.PeerCertificates[0].SerialNumber
	}
	before := serial()
	ca.Leaf("server")
	if after := serial(); before.Cmp(after) == 0 {
		t.Error("the old certificate is shown")
	}
}
