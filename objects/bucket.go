package objects

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/jobs"
)

const (
	// maxBytes is what a tenant's objects may take. JetStream sets a stream's bound aside when it is made, so that nobody's objects take
	// the room of the events; minBytes is what is asked for where a server has less.
	maxBytes = 4 << 30
	minBytes = maxBytes >> 6
	// formerAge is what Paddock's buckets had for their messages' age, before it was Collector that deletes what is old.
	formerAge = 7 * 24 * time.Hour
)

// bucket gives the tenant's bucket as it is, whoever made it and however, and makes it where there is none.
func (s *JetStream) bucket(ctx context.Context, tenant string) (jetstream.ObjectStore, error) {
	o, err := s.js.ObjectStore(ctx, jobs.ObjectBucket(tenant))
	if !errors.Is(err, jetstream.ErrBucketNotFound) {
		return o, err
	}
	if s.maker != nil {
		err = s.maker(ctx, tenant)
	} else {
		err = s.create(ctx, tenant)
	}
	if err == nil {
		err = s.reach(ctx, tenant)
	}
	if err != nil {
		return nil, err
	}
	return s.js.ObjectStore(ctx, jobs.ObjectBucket(tenant))
}

// create makes a tenant's bucket, unless another has since a moment ago.
func (s *JetStream) create(ctx context.Context, tenant string) (err error) {
	replicas := s.replicas(ctx)
	for size := int64(maxBytes); size >= minBytes; size /= 2 {
		_, err = s.js.CreateObjectStore(ctx, jetstream.ObjectStoreConfig{
			Bucket: jobs.ObjectBucket(tenant), MaxBytes: size, Storage: jetstream.FileStorage, Replicas: replicas,
		})
		if !isRefusal(err, noRoom) {
			break
		}
	}
	if errors.Is(err, jetstream.ErrBucketExists) {
		return nil
	}
	return err
}

const (
	// reachTries and reachPause are how long a cluster may take until what is published to a new bucket finds it: its servers choose who
	// leads it, and tell each other.
	reachTries = 100
	reachPause = 100 * time.Millisecond
	// never is a sequence that no stream comes to.
	never = 1 << 62
)

// reach waits until a new bucket takes what is published to it: by something that it refuses.
func (s *JetStream) reach(ctx context.Context, tenant string) error {
	_, err := s.js.PublishMsg(ctx, nats.NewMsg(chunkSubject(tenant, "none")),
		jetstream.WithExpectLastSequence(never), jetstream.WithRetryAttempts(reachTries), jetstream.WithRetryWait(reachPause))
	if isChanged(err) {
		return nil
	}
	return err
}

// Make makes a tenant's bucket, where there is none.
func (s *JetStream) Make(ctx context.Context, tenant string) error {
	ctx = asking(ctx)
	_, err := s.bucket(ctx, tenant)
	if err != nil {
		return failed(ctx, tenant, "make a bucket", err)
	}
	return nil
}

// ageless takes the age from a bucket that Paddock has given it. Another is its maker's own rule, and stays.
func (s *JetStream) ageless(ctx context.Context, st jetstream.Stream) error {
	c := st.CachedInfo().Config
	if c.MaxAge != formerAge {
		return nil
	}
	c.MaxAge = 0
	_, err := s.js.UpdateStream(ctx, c)
	return err
}

// replicas gives as many as the events of jobs have.
func (s *JetStream) replicas(ctx context.Context) int {
	st, err := s.js.Stream(ctx, jobs.StreamEvents)
	if err != nil {
		return 1 // there are no events, or a server that lets us make no bucket either
	}
	return st.CachedInfo().Config.Replicas
}

// Refusals of JetStream (errors.json of nats-server).
const (
	// noRoom is JSStorageResourcesExceededErr: the server has not as much to set aside.
	noRoom jetstream.ErrorCode = 10047
	// notStored is JSStreamStoreFailedF, which says why in words only.
	notStored jetstream.ErrorCode = 10077
	// changedCode is JSStreamWrongLastSequenceErrF, and changedReplicas the same of a stream with replicas: not what was there any more.
	changedCode     jetstream.ErrorCode = 10071
	changedReplicas jetstream.ErrorCode = 10164
	// full are the words for a stream that is.
	full = "maximum bytes exceeded"
)

func isRefusal(err error, codes ...jetstream.ErrorCode) bool {
	e := new(jetstream.APIError)
	return errors.As(err, &e) && slices.Contains(codes, e.ErrorCode)
}

// fullRetryMS is when to look for room again. Objects go by themselves when they are old, but anybody may delete some.
const fullRetryMS = 60_000

// isChanged tells that what was to be changed has become something else meanwhile.
func isChanged(err error) bool { return isRefusal(err, changedCode, changedReplicas) }

// failed gives what a caller can act on.
func failed(ctx context.Context, tenant, what string, err error) error {
	e := new(jetstream.APIError)
	if typed, ok := errors.AsType[*jobs.Error](err); ok { // of who made the bucket
		return typed
	}
	switch {
	case isRefusal(err, noRoom), errors.As(err, &e) && e.ErrorCode == notStored && e.Description == full:
		return noRoomFor(tenant, what)
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	return &jobs.Error{Code: jobs.CodeUnavailable, Message: fmt.Sprintf("%s: %v", what, err), RetryAfterMS: 1000}
}

func noRoomFor(tenant, what string) *jobs.Error {
	return &jobs.Error{Code: jobs.CodeQuota, Message: what + ": the tenant " + tenant + " has no room for it", RetryAfterMS: fullRetryMS}
}
