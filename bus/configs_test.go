package bus_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/bus/bustest"
)

// Every file of configs/nats is taken by the server without a warning, and says what it has to.
func TestConfigs(t *testing.T) {
	keys, err := access.MakeCalloutKeys(filepath.Join(t.TempDir(), "callout"))
	if err != nil {
		t.Fatal(err)
	}
	auth, err := os.ReadFile(keys.Config())
	if err != nil {
		t.Fatal(err)
	}
	public, seedFile := bustest.Key(t)
	seed, err := os.ReadFile(seedFile)
	if err != nil {
		t.Fatal(err)
	}
	worker := access.Credential{NKey: public, Identity: access.Identity{Role: access.Worker, Name: "w1"}}
	t.Setenv("NATS_NAME", "nats-1")
	t.Setenv("NATS_SITE_SEED", strings.TrimSpace(string(seed)))
	files, err := filepath.Glob("../configs/nats/*.conf")
	if err != nil || len(files) != 3 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		o, err := server.ProcessConfigFile(bustest.ConfigFile(t, name, bustest.NewAuthority(t), map[string]string{
			"auth.conf": string(auth), "sites.conf": "authorization { nkey: " + public + ", account: PADDOCK }\n",
			"workers.conf": access.ServerUsers([]access.Credential{worker}, time.Now()),
		}))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if o.PingInterval > 5*time.Second || o.MaxPingsOut > 2 {
			t.Errorf("%s: who says nothing is noticed after %d times %v", name, o.MaxPingsOut, o.PingInterval)
		}
		if o.MaxPayload != 2<<20 && o.MaxPayload != 2_000_000 || o.TLSConfig == nil {
			t.Errorf("%s: max_payload %d, TLS %v", name, o.MaxPayload, o.TLSConfig != nil)
		}
		if name == "leaf.conf" {
			want := access.Of(worker.Identity)
			if len(o.Nkeys) != 1 || !slices.Equal(o.Nkeys[0].Permissions.Publish.Allow, want.Publish.Allow) || !slices.Equal(o.Nkeys[0].Permissions.Publish.Deny, want.Publish.Deny) ||
				!slices.Equal(o.Nkeys[0].Permissions.Subscribe.Allow, want.Subscribe.Allow) || o.Nkeys[0].Permissions.Response.Expires != want.Answers || o.JetStream {
				t.Errorf("%s: a worker has other permissions there", name)
			}
			continue
		}
		if !o.JetStream || !o.SyncAlways || o.AuthCallout == nil || o.AuthCallout.XKey == "" || len(o.AuthCallout.AuthUsers) != 2 {
			t.Errorf("%s: JetStream %v, synced %v, callout %+v", name, o.JetStream, o.SyncAlways, o.AuthCallout)
		}
		if name == "cluster.conf" && (len(o.Routes) != 3 || o.Cluster.TLSConfig == nil) {
			t.Errorf("%s: %d routes, TLS %v", name, len(o.Routes), o.Cluster.TLSConfig != nil)
		}
	}
}

// The certificates that docs/nats.md makes with openssl are good for a server and for a client of it.
func TestDocsCertificates(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("REQUIRE_OPENSSL") != "" {
			t.Fatal(err)
		}
		t.Skip("SKIPPED: no openssl in PATH to try the commands of docs/nats.md with")
	}
	b, err := os.ReadFile("../docs/nats.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)## TLS\n.*?```sh\n(.*?)```").FindSubmatch(b)
	if m == nil {
		t.Fatal("docs/nats.md has no commands below TLS")
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", string(m[1]))
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	all := bus.TLS{Cert: file("server.pem"), Key: file("server-key.pem"), CA: file("ca.pem")}
	s, err := bus.Embed(bus.EmbedConfig{Listen: "127.0.0.1:0", StoreDir: t.TempDir(), TLS: all, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, host := range []string{"127.0.0.1", "localhost"} {
		nc, err := nats.Connect(strings.Replace(s.URL(), "127.0.0.1", host, 1), nats.RootCAs(file("ca.pem")), nats.ClientCert(file("server.pem"), file("server-key.pem")))
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		nc.Close()
	}
}
