package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
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
	nc     *nats.Conn
	js     jetstream.JetStream
	log    zerolog.Logger
	events jetstream.Stream
	pub    *publisher

	mu      sync.Mutex
	buckets map[string]jetstream.ObjectStore
}

// Connect connects, makes the streams, and reconnects for ever after. ctx bounds the first connection.
func Connect(ctx context.Context, c Config) (_ *Bus, err error) {
	opts := []nats.Option{
		nats.Name("paddock " + c.Name), nats.MaxReconnects(-1), nats.ReconnectWait(200 * time.Millisecond), nats.ReconnectJitter(100*time.Millisecond, 0),
		nats.ReconnectBufSize(-1), // what cannot be sent now fails now, and is tried again by whoever knows what it is worth
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { c.Log.Warn().Err(err).Msg("nats: disconnected") }),
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
	b := &Bus{log: c.Log, buckets: map[string]jetstream.ObjectStore{}}
	if b.nc, err = nats.Connect(c.URL, opts...); err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w", c.URL, err)
	}
	defer func() {
		if err != nil {
			b.nc.Close()
		}
	}()
	if b.js, err = jetstream.New(b.nc); err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	if err := b.streams(ctx, c); err != nil {
		return nil, err
	}
	b.pub = newPublisher(b.nc)
	return b, nil
}

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
			MaxBytes: 1 << 30, Duplicates: 5 * time.Minute, Description: "job specs that nobody waits for",
		},
		{
			Name: jobs.StreamDLQ, Subjects: []string{jobs.DLQSubjects}, MaxAge: 14 * 24 * time.Hour, Description: "jobs that can never run, with the reason",
		},
		{
			Name: jobs.StreamEvents, Subjects: []string{jobs.EventSubjects}, MaxAge: age, MaxBytes: size, Discard: jetstream.DiscardOld, AllowDirect: true,
			AllowAtomicPublish: true, Duplicates: 2 * time.Minute, Description: "output, states and results of jobs",
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

// LastSeq gives the Seq of the last event of a job's attempt; 0 where that has none.
func (b *Bus) LastSeq(ctx context.Context, tenant, job string, attempt int) (int64, error) {
	m, err := b.events.GetLastMsgForSubject(ctx, jobs.EventSubject(tenant, job))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, unavailable("read the last event", err)
	}
	e, err := decodeEvent(m.Data)
	if err != nil || e.Attempt != attempt {
		return 0, err
	}
	return e.Seq, nil
}
