package bus

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/jobs"
)

// Config says which server to use.
type Config struct {
	// Server is an embedded one; else URL is an external one's, or several, with commas between them.
	Server *Server
	URL    string
	// Name is this client's, for the server's lists.
	Name string
	// EventsAge and EventsBytes bound the events that are kept for replay; 0 means 72 h and 8 GiB.
	EventsAge   time.Duration
	EventsBytes int64
	Log         zerolog.Logger
}

// Bus is a connection to NATS, with the streams that Paddock needs. Its methods may be called concurrently.
type Bus struct {
	nc     *conn
	js     jetstream.JetStream
	log    zerolog.Logger
	events jetstream.Stream
	pub    *publisher
}

const (
	// minPayload is the NATS default. What workers and dispatchers write of their own stays below it.
	minPayload = 1 << 20
	// specPayload is what the largest specs need on their way to a worker.
	specPayload = jobs.MaxSpecBytes + headroom
)

// Connect connects, makes the streams, and reconnects for ever after. ctx bounds the first connection.
func Connect(ctx context.Context, c Config) (_ *Bus, err error) {
	b := &Bus{nc: newConn(), log: c.Log}
	first := &firstDial{ctx: ctx}
	opts := []nats.Option{
		nats.Name("paddock " + c.Name), nats.MaxReconnects(-1), nats.ReconnectWait(200 * time.Millisecond), nats.ReconnectJitter(100*time.Millisecond, 0),
		nats.SetCustomDialer(first),
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
	}
	if c.Server != nil {
		opts = append(opts, nats.InProcessServer(c.Server.s))
	}
	if b.nc.Conn, err = nats.Connect(c.URL, opts...); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("connect to NATS at %s: %w", c.URL, err)
	}
	first.over.Store(true)
	defer func() {
		if err != nil {
			b.nc.Close()
		}
	}()
	switch n := b.nc.MaxPayload(); {
	case n < minPayload:
		return nil, fmt.Errorf("NATS at %s takes messages of %d bytes; results and events need max_payload to be %d", b.nc.ConnectedUrlRedacted(), n, minPayload)
	case n < specPayload:
		c.Log.Warn().Int64("max_payload", n).Int64("largest_spec", n-headroom).Msg("nats: max_payload is too low for the largest specs; set it to 2 MiB")
	}
	if b.js, err = jetstream.New(b.nc.Conn); err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	if err := b.streams(ctx, c); err != nil {
		return nil, err
	}
	b.pub = newPublisher(b.nc) //nolint:contextcheck // it lives until Close
	return b, nil
}

// shortestWindow is the least that JetStream can be told: it knows ids by the stream, and one tenant's would hide another's spec. The
// ledger knows a tenant's keys, for longer, and tells a repeat from another spec under the same key.
const shortestWindow = 100 * time.Millisecond

// streams makes what is missing and brings the rest up to date.
func (b *Bus) streams(ctx context.Context, c Config) (err error) {
	age, size := c.EventsAge, c.EventsBytes
	if age == 0 {
		age = 72 * time.Hour
	}
	if size == 0 {
		size = 8 << 30
	}
	for _, s := range []jetstream.StreamConfig{
		{
			Name: jobs.StreamSubmit, Subjects: []string{jobs.EnqueueSubjects}, Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew,
			MaxBytes: 1 << 30, Duplicates: shortestWindow, Description: "job specs that nobody waits for",
		},
		{
			Name: jobs.StreamDLQ, Subjects: []string{jobs.DLQSubjects}, Discard: jetstream.DiscardOld, MaxAge: 14 * 24 * time.Hour, MaxBytes: 1 << 30,
			Duplicates: time.Hour, Description: "jobs that can never run, with the reason",
		},
		{
			Name: jobs.StreamEvents, Subjects: []string{jobs.EventSubjects}, MaxAge: age, MaxBytes: size, Discard: jetstream.DiscardOld, AllowDirect: true,
			AllowAtomicPublish: true, Duplicates: dedupeWindow, Description: "output, states and results of jobs",
		},
	} {
		if b.events, err = b.js.CreateOrUpdateStream(ctx, s); err != nil {
			return fmt.Errorf("nats: stream %s: %w", s.Name, err)
		}
	}
	return nil
}

// Close publishes what was handed in and disconnects.
func (b *Bus) Close() {
	b.pub.close()
	b.nc.Close()
}
