package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/jobs"
)

// shortestWindow is the least that JetStream can be told: it knows ids by the stream, and one tenant's would hide another's spec. The
// ledger knows a tenant's keys, for longer, and tells a repeat from another spec under the same key.
const shortestWindow = 100 * time.Millisecond

// configured gives the streams as they are to be.
func configured(c Config) []jetstream.StreamConfig {
	age, size := c.EventsAge, c.EventsBytes
	if age == 0 {
		age = 72 * time.Hour
	}
	if size == 0 {
		size = 8 << 30
	}
	return []jetstream.StreamConfig{
		{
			Name: jobs.StreamSubmit, Subjects: []string{jobs.EnqueueSubjects}, Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew,
			MaxBytes: 1 << 30, Duplicates: shortestWindow, Description: "job specs that nobody waits for",
		},
		{
			Name: jobs.StreamDLQ, Subjects: []string{jobs.DLQSubjects}, Discard: jetstream.DiscardOld, MaxAge: 14 * 24 * time.Hour, MaxBytes: 1 << 30,
			Duplicates: time.Hour, Description: "jobs that can never run, with the reason",
		},
		{
			Name: jobs.StreamEvents, Subjects: []string{jobs.EventSubjects, jobs.BatchEventSubjects}, MaxAge: age, MaxBytes: size, Discard: jetstream.DiscardOld, AllowDirect: true,
			AllowAtomicPublish: true, Duplicates: dedupeWindow, Description: "output, states and results of jobs",
		},
	}
}

// streams makes what is missing and brings the rest up to date. A worker waits for its dispatcher to have done it.
func (b *Bus) streams(ctx context.Context, c Config) (err error) {
	if c.Worker != "" {
		return b.awaitEvents(ctx)
	}
	for _, s := range configured(c) {
		if b.events, err = b.stream(ctx, c, s); isRefusal(err, noRoom) {
			return fmt.Errorf("nats: stream %s: %w: the server has less than the %d GiB that it may take; of a disk JetStream uses three quarters of what is free when it begins. "+
				"Free some, or take less for events with --events-gib", s.Name, err, s.MaxBytes>>30)
		}
		if err != nil {
			return fmt.Errorf("nats: stream %s: %w", s.Name, err)
		}
	}
	if n := b.events.CachedInfo().Config.Replicas; n > 1 || c.Replicas > 0 {
		b.buckets(ctx, n)
	}
	return nil
}

// defaultReplicas is what survives the loss of one server.
const defaultReplicas = 3

// stream makes one stream, or brings it up to date, with as many replicas as are configured; where that is left to us, with as many as the
// cluster can give.
func (b *Bus) stream(ctx context.Context, c Config, s jetstream.StreamConfig) (jetstream.Stream, error) {
	if len(c.Tags) > 0 {
		s.Placement = &jetstream.Placement{Tags: c.Tags}
	}
	s.Replicas = c.Replicas
	if c.Replicas > 0 {
		return b.settled(ctx, s)
	}
	has, err := b.replicasOf(ctx, s.Name)
	if err != nil {
		return nil, err
	}
	s.Replicas = max(has, 1)
	if b.nc.ConnectedClusterName() == "" || has >= defaultReplicas {
		return b.settled(ctx, s)
	}
	s.Replicas = defaultReplicas
	st, err := b.settled(ctx, s)
	if !isRefusal(err, noPeers, notClustered) {
		return st, err
	}
	s.Replicas = max(has, 1)
	b.log.Warn().Err(err).Str("stream", s.Name).Int("replicas", s.Replicas).Msg("nats: the cluster cannot keep the stream on 3 servers; the next start tries again")
	return b.settled(ctx, s)
}

// replicasOf gives a stream's; 0 where there is none.
func (b *Bus) replicasOf(ctx context.Context, name string) (n int, err error) {
	err = patiently(ctx, func(ctx context.Context) error {
		st, err := b.js.Stream(ctx, name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return nil
		}
		if err == nil {
			n = st.CachedInfo().Config.Replicas
		}
		return err
	})
	return n, err
}

func (b *Bus) settled(ctx context.Context, s jetstream.StreamConfig) (st jetstream.Stream, err error) {
	err = patiently(ctx, func(ctx context.Context) error {
		st, err = b.js.CreateOrUpdateStream(ctx, s)
		return err
	})
	return st, err
}

// awaitEvents waits for the stream of events.
func (b *Bus) awaitEvents(ctx context.Context) error {
	for told := false; ; told = true {
		err := patiently(ctx, func(ctx context.Context) (err error) {
			b.events, err = b.js.Stream(ctx, jobs.StreamEvents)
			if errors.Is(err, nats.ErrNoResponders) { // a leaf node's server that has not reached the others yet
				err = fmt.Errorf("no JetStream here, nor beyond: %w", nats.ErrTimeout)
			}
			return err
		})
		if !errors.Is(err, jetstream.ErrStreamNotFound) {
			if err != nil {
				err = fmt.Errorf("nats: stream %s: %w", jobs.StreamEvents, err)
			}
			return err
		}
		if !told {
			b.log.Info().Msg("nats: waiting for a dispatcher to make the streams")
		}
		if pause(ctx, clusterPause); ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// buckets brings the replicas of tenants' objects up to date. What cannot be moved now is left for the next start.
func (b *Bus) buckets(ctx context.Context, replicas int) {
	l := b.js.ListStreams(ctx, jetstream.WithStreamListSubject("$O.>"))
	for info := range l.Info() {
		s := info.Config
		if !strings.HasPrefix(s.Name, "OBJ_"+jobs.ObjectBucket("")) || s.Replicas == replicas {
			continue
		}
		s.Replicas = replicas
		if _, err := b.js.UpdateStream(ctx, s); err != nil {
			b.log.Warn().Err(err).Str("stream", s.Name).Msg("nats: the bucket keeps its replicas")
		}
	}
	if err := l.Err(); err != nil {
		b.log.Warn().Err(err).Msg("nats: list buckets")
	}
}

const (
	// patience is how long a cluster may take to have leaders, each try included: after a start of all its servers, seconds.
	patience = time.Minute
	// clusterPause is between the tries.
	clusterPause = 500 * time.Millisecond
)

// patiently tries again what a cluster could not do yet.
func patiently(ctx context.Context, try func(context.Context) error) error {
	for end := time.Now().Add(patience); ; {
		err := try(ctx)
		if err == nil || ctx.Err() != nil || time.Now().After(end) || !notYet(err) {
			return err
		}
		pause(ctx, clusterPause)
	}
}

func notYet(err error) bool {
	return isRefusal(err, notAvailable, notLeader) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded)
}

// Refusals of JetStream (errors.json of nats-server).
const (
	noPeers      jetstream.ErrorCode = 10005
	notAvailable jetstream.ErrorCode = 10008
	notLeader    jetstream.ErrorCode = 10009
	noRoom       jetstream.ErrorCode = 10047
	notClustered jetstream.ErrorCode = 10074
)

func isRefusal(err error, codes ...jetstream.ErrorCode) bool {
	e, ok := errors.AsType[*jetstream.APIError](err)
	if !ok {
		return false
	}
	for _, code := range codes {
		if e.ErrorCode == code {
			return true
		}
	}
	return false
}
