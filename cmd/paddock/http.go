package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/dispatcher/api"
	"github.com/paddockvm/paddock/jobs"
)

// httpConfig is what a dispatcher can be told of HTTP. It is a part of config.
type httpConfig struct {
	HTTPListen  string `koanf:"http_listen"`
	HTTPTLSCert string `koanf:"http_tls_cert"`
	HTTPTLSKey  string `koanf:"http_tls_key"`
}

func addHTTPFlags(f *pflag.FlagSet) {
	f.String("http-listen", "", "address at which jobs' events are read over HTTP; empty for none")
	f.String("http-tls-cert", "", "its certificate")
	f.String("http-tls-key", "", "the certificate's key")
}

// openHTTP says what is served over HTTP, and to whom. Where anybody can reach it, it has to know whom it lets in, and their passwords have to
// be told in secret. credentials is nil where everybody is let in.
func openHTTP(c config, log zerolog.Logger) (_ api.Config, credentials *access.File, err error) {
	a := api.Config{Log: log}
	if a.TLS, err = (bus.TLS{Cert: c.HTTPTLSCert, Key: c.HTTPTLSKey}).Server(); err != nil {
		return a, nil, fmt.Errorf("http: %w", err)
	}
	if c.NATSCredentials != "" {
		if credentials, err = access.Open(c.NATSCredentials); err != nil {
			return a, nil, err
		}
		a.Access = gatekeeper{credentials}
	}
	switch {
	case c.InsecureOpen && a.Access == nil:
		log.Warn().Str("http_listen", c.HTTPListen).Msg("whoever connects over HTTP may watch every job")
	case c.InsecureOpen:
	case a.Access == nil && c.Listen == "":
		return a, nil, errors.New("the server of --nats says who may connect to it, and nothing says who may watch jobs with --http-listen: give --nats-credentials FILE, or --insecure-open to let everybody watch every job")
	case a.Access == nil && !loopback(c.HTTPListen):
		return a, nil, fmt.Errorf("--http-listen %s can be reached by others, and nothing says who may watch jobs there: give --nats-credentials FILE, which `paddock credential add` writes, or --insecure-open to let everybody watch every job", c.HTTPListen)
	case a.TLS == nil && !loopback(c.HTTPListen):
		return a, nil, fmt.Errorf("--http-listen %s can be reached by others, and passwords would go there in plain text: give --http-tls-cert and --http-tls-key, or listen on loopback behind a proxy that speaks TLS, or --insecure-open where the network is your own", c.HTTPListen)
	case a.Access == nil:
		log.Info().Str("http_listen", c.HTTPListen).Msg("HTTP is open to every program of this host; --nats-credentials says who may watch")
	}
	return a, credentials, nil
}

// serveHTTP serves jobs' events, where the configuration says so: also those of a dispatcher that stands by, for it asks the one that leads.
func (s *server) serveHTTP(ctx context.Context, g *errgroup.Group, b *bus.Bus) error {
	if s.config.HTTPListen == "" {
		return nil
	}
	log := *zerolog.Ctx(ctx)
	a, credentials, err := openHTTP(s.config, log)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", s.config.HTTPListen)
	if err != nil {
		return fmt.Errorf("http: %w; another address is given with --http-listen", err)
	}
	nc, err := b.Dial("http") // of its own, so that floods of output do not stand before leases and heartbeats
	if err != nil {
		return errors.Join(err, l.Close())
	}
	a.Source, a.Registerer = watched{nc}, s.registry
	h := api.New(a)
	log.Info().Stringer("address", l.Addr()).Bool("tls", a.TLS != nil).Msg("jobs' events are read over HTTP")
	g.Go(func() error {
		defer nc.Close()
		return h.Run(ctx, l)
	})
	if credentials == nil {
		return nil
	}
	g.Go(func() error {
		credentials.Watch(ctx, func(gone map[string]bool, err error) {
			if err != nil {
				log.Error().Err(err).Msg("http: the credentials cannot be read; those of before stay in force")
				return
			}
			log.Info().Int("gone", len(gone)).Msg("http: the credentials have changed")
			h.Recheck()
		})
		return nil
	})
	return nil
}

// gatekeeper lets in as NATS does: the same names and passwords, with the same roles.
type gatekeeper struct{ file *access.File }

var _ api.Access = gatekeeper{}

// Authenticate implements api.Access.
func (k gatekeeper) Authenticate(user, password string) (api.Grant, error) {
	one, err := k.file.Credentials().Authenticate(access.Login{User: user, Password: password}, time.Now())
	if err != nil {
		return api.Grant{}, err
	}
	g := api.Grant{Until: one.Expires, Holds: func() bool { return k.file.Credentials().Same(one) }}
	switch one.Role {
	case access.Tenant:
		g.Tenant = one.Name
	case access.Monitor, access.Operator:
	default:
		return g, &jobs.Error{Code: jobs.CodeForbidden, Message: fmt.Sprintf("a %s watches no jobs", one.Role)}
	}
	return g, nil
}

// watched asks dispatchers as every client does, on a connection that may ask for every tenant.
type watched struct{ nc *nats.Conn }

var _ api.Source = watched{}

// Replay implements api.Source.
func (w watched) Replay(ctx context.Context, tenant string, q jobs.ReplayRequest) (jobs.ReplayReply, error) {
	c, err := client.New(w.nc, tenant)
	if err != nil {
		return jobs.ReplayReply{}, err
	}
	return c.Replay(ctx, q)
}

// Follow implements api.Source.
func (w watched) Follow(ctx context.Context, tenant, job string, after jobs.Position) iter.Seq2[jobs.Event, error] {
	c, err := client.New(w.nc, tenant)
	if err != nil {
		return func(yield func(jobs.Event, error) bool) { yield(jobs.Event{}, err) }
	}
	return c.Follow(ctx, job, client.Position{Attempt: after.Attempt, Seq: after.Seq})
}
