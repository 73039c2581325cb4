package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/access"
)

// natsConfig is what a server command can be told of NATS: who may connect to ours, and how it connects to another's. It is a part of config.
type natsConfig struct {
	NATSCredentials string   `koanf:"nats_credentials"`
	NATSTLSCert     string   `koanf:"nats_tls_cert"`
	NATSTLSKey      string   `koanf:"nats_tls_key"`
	NATSTLSCA       string   `koanf:"nats_tls_ca"`
	NATSCreds       string   `koanf:"nats_creds"`
	NATSCallout     string   `koanf:"nats_callout"`
	NATSReplicas    int      `koanf:"nats_replicas"`
	NATSTags        []string `koanf:"nats_tags"`
	InsecureOpen    bool     `koanf:"insecure_open"`
}

func addNATSFlags(f *pflag.FlagSet, which parts) {
	if which&forDispatcher != 0 {
		f.String("nats-credentials", "", "file that says who may connect and what each may do, over HTTP too, which paddock credential writes; empty lets everybody do everything")
		f.Bool("insecure-open", false, "listen where others reach it without --nats-credentials, or without TLS over HTTP: whoever connects may do everything")
		f.String("nats-callout", "", "directory of the keys with which the servers of --nats ask who may connect, which paddock credential callout makes")
		f.Int("nats-replicas", 0, "how many servers of a cluster keep each stream: 1, 3 or 5; 0 is 3 on a cluster and 1 elsewhere")
		f.StringSlice("nats-tags", nil, "tags of the servers that may keep streams")
	}
	f.String("nats-creds", "", "file that lets in at --nats: an NKEY's seed, or a NATS credentials file")
	f.String("nats-tls-cert", "", "certificate: of the embedded server, or to show to the one of --nats")
	f.String("nats-tls-key", "", "its key")
	f.String("nats-tls-ca", "", "authority that has signed the other's certificate: of clients, which then must show one, or of the server of --nats (the system's)")
}

func (c natsConfig) tls() bus.TLS {
	return bus.TLS{Cert: c.NATSTLSCert, Key: c.NATSTLSKey, CA: c.NATSTLSCA}
}

// client gives how to connect to a server that is not ours.
func (c natsConfig) client(url string) bus.Config {
	creds := c.NATSCreds
	if creds == "" && c.NATSCallout != "" {
		creds = access.CalloutKeys(c.NATSCallout).Dispatcher()
	}
	return bus.Config{URL: url, Creds: creds, TLS: c.tls(), Replicas: c.NATSReplicas, Tags: c.NATSTags}
}

// embed gives how to run our own server. One that anybody can reach has to know whom it lets in.
func (c natsConfig) embed(listen, stateDir string, lazy bool, log zerolog.Logger) (e bus.EmbedConfig, err error) {
	e = bus.EmbedConfig{Listen: listen, StoreDir: filepath.Join(stateDir, "jetstream"), LazySync: lazy, TLS: c.tls(), Log: log}
	switch {
	case c.NATSCallout != "":
		return e, errors.New("--nats-callout is for the servers of --nats: say --listen '' with it, or --nats-credentials alone")
	case c.NATSCredentials != "":
		e.Credentials, err = access.Open(c.NATSCredentials)
	case c.InsecureOpen:
		log.Warn().Str("listen", listen).Msg("whoever connects to NATS may do everything")
	case !loopback(listen):
		return e, fmt.Errorf("--listen %s can be reached by others, and nothing says who may connect: give --nats-credentials FILE, which `paddock credential add` writes, or --insecure-open to let everybody do everything", listen)
	default:
		log.Info().Str("listen", listen).Msg("NATS is open to every program of this host; --nats-credentials says who may connect")
	}
	return e, err
}

// loopback tells whether an address is this host's alone.
func loopback(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// serveCallout says who may connect to the servers of --nats, until ctx ends, where the configuration has the keys for it.
func serveCallout(ctx context.Context, c config) error {
	if c.NATSCallout == "" {
		return nil
	}
	if c.NATSCredentials == "" {
		return errors.New("--nats-callout says who may connect by --nats-credentials, and there is none")
	}
	file, err := access.Open(c.NATSCredentials)
	if err != nil {
		return err
	}
	log := *zerolog.Ctx(ctx)
	a, err := bus.ConnectCallout(ctx, bus.CalloutConfig{URL: c.NATS, TLS: c.tls(), Keys: access.CalloutKeys(c.NATSCallout), Credentials: file, Log: log})
	if err != nil {
		return err
	}
	return a.Run(ctx, func() { log.Info().Msg("NATS asks here who may connect") })
}
