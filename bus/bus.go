package bus

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
)

// Config says which server to use.
type Config struct {
	// Server is an embedded one; else URL is an external one's, or several, with commas between them.
	Server *Server
	URL    string
	// Name is this client's, for the server's lists.
	Name string
	// Creds names a file that lets in on an external server: the seed of an NKEY, or what NATS calls a credentials file. Empty is for those that
	// are open, or that take a name and password in URL.
	Creds string
	// TLS is what is spoken to an external server whose URL begins with tls://, and where it demands it; the zero value trusts the system's CAs.
	TLS TLS
	// Worker is a worker's name, where this is the connection of one alone: streams then are left to dispatchers, and waited for.
	Worker string
	// Replicas is how many servers of a cluster keep each stream: 1, 3 or 5. 0 is 3 where the server is one of at least so many, else 1, and
	// never less than a stream has. Tags are of servers that may keep them; empty is any.
	Replicas int
	Tags     []string
	// EventsAge and EventsBytes bound the events that are kept for replay; 0 means 72 h and 8 GiB.
	EventsAge   time.Duration
	EventsBytes int64
	// S3 keeps objects, where JetStream does not. Workers are not told: they ask their dispatcher.
	S3 *objects.S3
	// Spool is a directory for what is on its way into the store of objects; empty is the system's for temporary files.
	Spool string
	Log   zerolog.Logger
}

// Bus is a connection to NATS, with the streams that Paddock needs. Its methods may be called concurrently.
type Bus struct {
	nc     *conn
	js     jetstream.JetStream
	log    zerolog.Logger
	worker string // as which it asks dispatchers; empty where the server does not know who asks
	guards bool   // requests are taken from those only who may send them
	events jetstream.Stream
	pub    *publisher
	store  objects.Store // a dispatcher's
	lent   *lent         // a worker's, who has none
	spool  string
	bugs   atomic.Int64 // requests that found one
}

const (
	// pingEvery and pingsLost are how a server is noticed that says nothing any more on a connection that seems to live, because its host
	// has lost its power or its network: in 12 s at most, less than a lease has. What nats.go does by itself takes 6 minutes.
	pingEvery = 3 * time.Second
	pingsLost = 2
	// minPayload is the NATS default. What workers and dispatchers write of their own stays below it.
	minPayload = 1 << 20
	// specPayload is what the largest specs need on their way to a worker.
	specPayload = jobs.MaxSpecBytes + headroom
)

// Connect connects, makes the streams, and reconnects for ever after. ctx bounds the first connection.
func Connect(ctx context.Context, c Config) (_ *Bus, err error) {
	b := &Bus{nc: newConn(), log: c.Log, spool: c.Spool}
	first := &firstDial{ctx: ctx}
	at, err := jobs.Servers(c.URL)
	if err != nil {
		return nil, err
	}
	opts, err := b.identify(c)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w", at, err)
	}
	opts = append(opts,
		nats.Name("paddock "+c.Name), nats.PingInterval(pingEvery), nats.MaxPingsOutstanding(pingsLost), nats.MaxReconnects(-1), nats.ReconnectWait(200*time.Millisecond), nats.ReconnectJitter(100*time.Millisecond, 0),
		nats.IgnoreAuthErrorAbort(), // a credential may be renewed, and who decides of it may be away
		nats.SetCustomDialer(first), nats.Timeout(greetWithin),
		nats.ReconnectBufSize(-1), // what cannot be sent now fails now, and is tried again by whoever knows what it is worth
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			b.nc.lost()
			if err != nil { // else we closed it
				c.Log.Warn().Err(err).Msg("nats: disconnected")
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { c.Log.Info().Msg("nats: connected again") }),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			e := c.Log.Error().Err(err)
			if s != nil {
				e = e.Str("subject", s.Subject)
			}
			e.Msg("nats: error")
		}),
	)
	if b.nc.Conn, err = nats.Connect(c.URL, opts...); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("connect to NATS at %s: %w", at, err)
	}
	first.over.Store(true)
	defer func() {
		if err != nil {
			b.nc.Close()
		}
	}()
	switch n := b.nc.MaxPayload(); {
	case n < minPayload:
		return nil, fmt.Errorf("NATS at %s takes messages of %d bytes; results and events need max_payload to be %d", at, n, minPayload)
	case n < specPayload:
		c.Log.Warn().Int64("max_payload", n).Int64("largest_spec", n-headroom).Msg("nats: max_payload is too low for the largest specs; set it to 2 MiB")
	}
	if b.js, err = jetstream.New(b.nc.Conn); err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	if err := b.openObjects(c); err != nil {
		return nil, err
	}
	if err := b.streams(ctx, c); err != nil {
		return nil, err
	}
	b.pub = newPublisher(b.nc) //nolint:contextcheck // it lives until Close
	return b, nil
}

// Collector counts requests in which this process found a bug of its own.
func (b *Bus) Collector() prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "paddock_request_bugs_total", Help: "Requests that could not be read because of a bug; the log has its stack.",
	}, func() float64 { return float64(b.bugs.Load()) })
}

// errorOf gives what a client may know of an error, and logs the rest.
func (b *Bus) errorOf(err error) *jobs.Error {
	e := jobs.ErrorOf(err)
	if e != nil && e.Code == jobs.CodeInternal {
		b.log.Error().Err(err).Msg("internal error")
	}
	if _, bug := errors.AsType[*jobs.BugError](err); bug {
		b.bugs.Add(1)
	}
	return e
}

// Connected tells whether there is a connection to a server at the moment.
func (b *Bus) Connected() bool { return b.nc.IsConnected() }

// Dial makes a connection of its own as this one is, for who speaks to dispatchers beside the bus. The caller closes it.
func (b *Bus) Dial(name string) (*nats.Conn, error) {
	c, err := b.nc.another(name)
	if err != nil {
		return nil, fmt.Errorf("nats: connect for %s: %w", name, err)
	}
	return c.Conn, nil
}

// Close publishes what was handed in and disconnects.
func (b *Bus) Close() {
	b.pub.close()
	b.nc.Close()
}
