package bustest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/test/port"
)

// Cluster are NATS servers in this process that are configured as configs/nats says, for the loopback and a test's directories.
type Cluster struct {
	tb  testing.TB
	dir string
	// CA has signed the servers' certificates.
	CA *Authority
	// Keys are of the dispatcher that lets clients in.
	Keys access.CalloutKeys
	// Credentials is that dispatcher's file, at first empty.
	Credentials string
	// Site is the seed of the key that leaf nodes show.
	Site string

	config string
	site   string // the public half
	ports  []ports
	nodes  []*server.Server
}

type ports struct{ client, route, leaf int }

// StartCluster starts n servers by configs/nats/cluster.conf, with TLS between them and with clients, and waits until they have a leader.
// They let in Paddock's own two users, and others when a dispatcher says so.
func StartCluster(tb testing.TB, n int) *Cluster {
	tb.Helper()
	c := &Cluster{tb: tb, dir: tb.TempDir(), CA: NewAuthority(tb), config: "cluster.conf"}
	var err error
	if c.Keys, err = access.MakeCalloutKeys(filepath.Join(c.dir, "callout")); err != nil {
		tb.Fatal(err)
	}
	c.Credentials = filepath.Join(c.dir, "credentials.yaml")
	if err := access.Write(c.Credentials, nil); err != nil {
		tb.Fatal(err)
	}
	site, seedFile := Key(tb)
	seed, err := os.ReadFile(seedFile)
	if err != nil {
		tb.Fatal(err)
	}
	c.site, c.Site = site, strings.TrimSpace(string(seed))
	for range n {
		c.ports = append(c.ports, ports{freePort(tb), freePort(tb), freePort(tb)})
	}
	c.nodes = make([]*server.Server, n)
	for i := range n {
		c.start(i)
	}
	tb.Cleanup(func() {
		for i := range c.nodes {
			c.Stop(i)
		}
	})
	c.led()
	return c
}

// ConfigFile writes a file of configs/nats as it is for a test: with the test's certificates, and what else is beside it.
func ConfigFile(tb testing.TB, name string, ca *Authority, beside map[string]string) string {
	tb.Helper()
	dir := tb.TempDir()
	cert, key := ca.Leaf("server")
	b, err := os.ReadFile(filepath.Join(root(tb), "configs", "nats", name))
	if err != nil {
		tb.Fatal(err)
	}
	text := strings.NewReplacer("/etc/nats/tls/server.pem", cert, "/etc/nats/tls/server-key.pem", key, "/etc/nats/tls/ca.pem", ca.File("ca.pem"),
		"/var/lib/nats", filepath.Join(dir, "jetstream")).Replace(string(b))
	beside[name] = text
	for file, text := range beside {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return filepath.Join(dir, name)
}

func root(tb testing.TB) string {
	tb.Helper()
	dir, err := os.Getwd()
	if err != nil {
		tb.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			tb.Fatal("not inside the repository")
		}
	}
}

// options gives what a configuration file says, for the loopback.
func (c *Cluster) options(i int) *server.Options {
	c.tb.Helper()
	c.tb.Setenv("NATS_NAME", fmt.Sprintf("nats-%d", i+1))
	auth, err := os.ReadFile(c.Keys.Config())
	if err != nil {
		c.tb.Fatal(err)
	}
	o, err := server.ProcessConfigFile(ConfigFile(c.tb, c.config, c.CA, map[string]string{
		"auth.conf": string(auth), "sites.conf": "authorization { nkey: " + c.site + ", account: PADDOCK }\n",
	}))
	if err != nil {
		c.tb.Fatal(err)
	}
	p := c.ports[i]
	o.Host, o.Port, o.HTTPPort, o.NoSigs, o.NoLog = "127.0.0.1", p.client, 0, true, true
	o.StoreDir = filepath.Join(c.dir, fmt.Sprint(i))
	o.Cluster.Host, o.Cluster.Port, o.Routes = "127.0.0.1", p.route, nil
	o.LeafNode.Host, o.LeafNode.Port = "127.0.0.1", p.leaf
	for _, other := range c.ports {
		o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", other.route)})
	}
	o.JetStreamMaxStore = 30 << 30 // what is set aside is not used
	return o
}

func (c *Cluster) start(i int) {
	c.tb.Helper()
	c.nodes[i] = run(c.tb, c.options(i))
}

func run(tb testing.TB, o *server.Options) *server.Server {
	tb.Helper()
	s, err := server.NewServer(o)
	if err != nil {
		tb.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(time.Minute) {
		tb.Fatalf("server %s does not come up", o.ServerName)
	}
	return s
}

// led waits until the cluster has a leader.
func (c *Cluster) led() {
	c.tb.Helper()
	for end := Patience(c.tb); c.Leader() < 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			c.tb.Fatal("the cluster has still no leader")
		}
	}
}

// Stop ends one server, whose connections are lost. It may be called again.
func (c *Cluster) Stop(i int) {
	if c.nodes[i] != nil {
		c.nodes[i].Shutdown()
		c.nodes[i].WaitForShutdown()
		c.nodes[i] = nil
	}
}

// Restart starts a server that was stopped, where it was, and waits until it has caught up.
func (c *Cluster) Restart(i int) {
	c.tb.Helper()
	c.start(i)
	c.Healthy()
}

// Healthy waits until all servers that run are there and have all that the others have.
func (c *Cluster) Healthy() {
	c.tb.Helper()
	for end := Patience(c.tb); !c.current(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			c.tb.Fatal("some server has still not got all that the others have")
		}
	}
}

func (c *Cluster) current() bool {
	for _, s := range c.nodes {
		if s != nil && (!s.JetStreamIsCurrent() || !healthy(s)) {
			return false
		}
	}
	return true
}

// Patience is until when to wait for what takes as long as the machine is loaded, where only a hang is an error: a little before the test's
// own deadline, or 15 minutes.
func Patience(tb testing.TB) time.Time {
	if t, ok := tb.(interface{ Deadline() (time.Time, bool) }); ok {
		if end, ok := t.Deadline(); ok {
			return end.Add(-10 * time.Second)
		}
	}
	return time.Now().Add(15 * time.Minute)
}

func healthy(s *server.Server) bool {
	return s.Healthz(&server.HealthzOptions{}).Status == "ok"
}

// Leader is which server leads the cluster; -1 is none.
func (c *Cluster) Leader() int {
	for i, s := range c.nodes {
		if s != nil && s.JetStreamIsLeader() {
			return i
		}
	}
	return -1
}

// StreamLeader is which server leads a stream; -1 is none.
func (c *Cluster) StreamLeader(stream string) int {
	for i, s := range c.nodes {
		if s != nil && s.JetStreamIsStreamLeader(access.Account, stream) {
			return i
		}
	}
	return -1
}

// URL lists the servers.
func (c *Cluster) URL() string {
	var l []string
	for _, p := range c.ports {
		l = append(l, fmt.Sprintf("tls://127.0.0.1:%d", p.client))
	}
	return strings.Join(l, ",")
}

// NodeURL is one server's.
func (c *Cluster) NodeURL(i int) string { return fmt.Sprintf("tls://127.0.0.1:%d", c.ports[i].client) }

func freePort(tb testing.TB) int {
	tb.Helper()
	p, err := port.Free()
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// Allow adds credentials to the file. Dispatchers notice within a second.
func (c *Cluster) Allow(more ...access.Credential) {
	c.tb.Helper()
	if err := access.Change(c.Credentials, func(l []access.Credential) ([]access.Credential, error) { return append(l, more...), nil }); err != nil {
		c.tb.Fatal(err)
	}
}

// Let makes a key for an identity.
func (c *Cluster) Let(role access.Role, name string) (seedFile string) {
	c.tb.Helper()
	public, seedFile := Key(c.tb)
	c.Allow(access.Credential{NKey: public, Identity: access.Identity{Role: role, Name: name}})
	return seedFile
}

// TLS is what clients need.
func (c *Cluster) TLS() bus.TLS { return bus.TLS{CA: c.CA.File("ca.pem")} }

// Connect gives a bus: of a dispatcher with the seed that the servers know, or of another.
func (c *Cluster) Connect(cfg bus.Config) *bus.Bus {
	c.tb.Helper()
	if cfg.URL == "" {
		cfg.URL = c.URL()
	}
	cfg.TLS, cfg.Log = c.TLS(), zerolog.New(zerolog.NewTestWriter(c.tb)).Level(zerolog.WarnLevel)
	b, err := bus.Connect(c.tb.Context(), cfg)
	if err != nil {
		c.tb.Fatal(err)
	}
	c.tb.Cleanup(b.Close)
	return b
}

// Callout lets clients in by the file of credentials, until stop is called or the test ends.
func (c *Cluster) Callout() (stop func()) {
	c.tb.Helper()
	file, err := access.Open(c.Credentials)
	if err != nil {
		c.tb.Fatal(err)
	}
	a, err := bus.ConnectCallout(c.tb.Context(), bus.CalloutConfig{URL: c.URL(), TLS: c.TLS(), Keys: c.Keys, Credentials: file, Log: zerolog.New(zerolog.NewTestWriter(c.tb))})
	if err != nil {
		c.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- a.Run(ctx, func() { close(ready) }) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			c.tb.Error(err)
		}
	})
	c.tb.Cleanup(stop)
	<-ready
	return stop
}

// As gives a connection of nats.go of whoever has the key.
func (c *Cluster) As(seedFile string, opts ...nats.Option) (*nats.Conn, error) {
	o, err := nats.NkeyOptionFromSeed(seedFile)
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect(c.URL(), append(opts, o, nats.RootCAs(c.CA.File("ca.pem")))...)
	if err == nil {
		c.tb.Cleanup(nc.Close)
	}
	return nc, err
}

// Leaf starts a server by configs/nats/leaf.conf, which knows its clients itself, and gives its URL.
func (c *Cluster) Leaf(clients ...access.Credential) string {
	c.tb.Helper()
	c.tb.Setenv("NATS_NAME", "site-1")
	c.tb.Setenv("NATS_SITE_SEED", c.Site)
	o, err := server.ProcessConfigFile(ConfigFile(c.tb, "leaf.conf", c.CA, map[string]string{"workers.conf": access.ServerUsers(clients, time.Now())}))
	if err != nil {
		c.tb.Fatal(err)
	}
	o.Host, o.Port, o.HTTPPort, o.NoSigs, o.NoLog = "127.0.0.1", freePort(c.tb), 0, true, true
	for _, r := range o.LeafNode.Remotes {
		r.URLs = nil
		for _, p := range c.ports {
			r.URLs = append(r.URLs, &url.URL{Scheme: "tls", Host: fmt.Sprintf("127.0.0.1:%d", p.leaf)})
		}
	}
	s := run(c.tb, o)
	c.tb.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	return fmt.Sprintf("tls://127.0.0.1:%d", o.Port)
}
