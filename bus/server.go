// Package bus is everything that Paddock says on NATS: the embedded server, the streams, the subjects that the dispatcher answers, what
// workers ask of it, and the publishing of events. It imports jobs, and is the only package besides client and cmd that sees NATS.
package bus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus/access"
)

// EmbedConfig says how the embedded NATS server runs.
type EmbedConfig struct {
	// Listen is the address for clients ("127.0.0.1:4222"); empty serves this process only.
	Listen string
	// StoreDir holds JetStream's files.
	StoreDir string
	// LazySync leaves writes in the page cache for up to two minutes. The default is to sync each before it is acknowledged.
	LazySync bool
	// Credentials say who may connect and what each may do there; nil lets everybody do everything.
	Credentials *access.File
	// TLS is what clients speak; the zero value is plain TCP. Its CA, where it has one, has signed the certificates that clients must show.
	TLS TLS
	Log zerolog.Logger
}

// Server is an embedded NATS server.
type Server struct {
	s    *server.Server
	gate *gate // nil: open
	dir  string

	stop    context.CancelFunc
	keeping sync.WaitGroup
}

// maxPayload lets a spec that is too large through to where it gets an answer that says so.
const maxPayload = 2 << 20

// Embed starts a NATS server with JetStream in this process, and returns when it serves.
func Embed(c EmbedConfig) (*Server, error) {
	o := &server.Options{
		ServerName: "paddock", DontListen: c.Listen == "", NoSigs: true, NoLog: true,
		JetStream: true, StoreDir: c.StoreDir, SyncAlways: !c.LazySync, MaxPayload: maxPayload,
		// A dispatcher whose connection only seems to live is not given requests for long that are another's to answer by now.
		PingInterval: pingEvery, MaxPingsOut: pingsLost,
		JetStreamLimits: server.JSLimitOpts{DefaultMaxConsumers: 10_000},
	}
	if c.Listen != "" {
		host, port, err := net.SplitHostPort(c.Listen)
		if err != nil {
			return nil, fmt.Errorf("nats: listen on %q: %w", c.Listen, err)
		}
		n, err := strconv.Atoi(port)
		if err != nil {
			return nil, fmt.Errorf("nats: listen on %q: %w", c.Listen, err)
		}
		if n == 0 {
			n = server.RANDOM_PORT
		}
		if err := free(c.Listen); err != nil {
			return nil, fmt.Errorf("nats: %w: is another Paddock or NATS server there? choose another with --listen", err)
		}
		o.Host, o.Port = host, n
	}
	tlsConfig, err := c.TLS.Server()
	if err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	o.TLSConfig, o.TLSVerify, o.TLSTimeout, o.AuthTimeout = tlsConfig, c.TLS.CA != "", tlsWithin.Seconds(), greetWithin.Seconds()
	var g *gate
	if c.Credentials != nil {
		if g, err = newGate(c.Credentials, c.Log); err != nil {
			return nil, fmt.Errorf("nats: %w", err)
		}
		o.CustomClientAuthentication, o.AlwaysEnableNonce = g, true
	}
	s, err := server.NewServer(o)
	if err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	s.SetLoggerV2(logger{c.Log}, false, false, false)
	s.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		s.Shutdown()
		return nil, errors.New("nats: the embedded server did not come up within 30 s; its log says why")
	}
	ctx, stop := context.WithCancel(context.Background())
	e := &Server{s: s, gate: g, dir: c.StoreDir, stop: stop}
	if err := e.keepPromises(); err != nil {
		e.Close()
		return nil, fmt.Errorf("nats: %w", err)
	}
	e.keeping.Go(func() { e.keepStore(ctx, c.Log) })
	if g != nil {
		g.watch(s)
	}
	return e, nil
}

// free tells whether the address can be listened on: the server itself would only log that it cannot.
func free(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	return l.Close()
}

// URL is where clients connect.
func (s *Server) URL() string { return s.s.ClientURL() }

// Close ends the server, after its connections have been told.
func (s *Server) Close() {
	s.stop()
	s.keeping.Wait()
	if s.gate != nil {
		s.gate.close()
	}
	s.s.Shutdown()
	s.s.WaitForShutdown()
}

// logger passes the server's log on; what it calls a notice is our debug.
type logger struct{ zerolog.Logger }

func (l logger) Noticef(f string, v ...any) { l.Debug().Msgf("nats: "+f, v...) }
func (l logger) Warnf(f string, v ...any)   { l.Warn().Msgf("nats: "+f, v...) }
func (l logger) Errorf(f string, v ...any)  { l.Error().Msgf("nats: "+f, v...) }
func (l logger) Fatalf(f string, v ...any)  { l.Error().Msgf("nats: "+f, v...) }
func (l logger) Debugf(string, ...any)      {}
func (l logger) Tracef(string, ...any)      {}

var _ server.Logger = logger{}
