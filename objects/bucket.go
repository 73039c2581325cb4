package objects

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/jobs"
)

const (
	// maxBytes is what a tenant's objects may take. JetStream sets a stream's bound aside when it is made, so that nobody's objects take
	// the room of the events; minBytes is what is asked for where a server has less.
	maxBytes = 4 << 30
	minBytes = maxBytes >> 6
)

// bucket gives the tenant's bucket as it is, whoever made it and however, and makes it where there is none.
func (s Store) bucket(ctx context.Context) (jetstream.ObjectStore, error) {
	name := jobs.ObjectBucket(s.tenant)
	o, err := s.js.ObjectStore(ctx, name)
	if !errors.Is(err, jetstream.ErrBucketNotFound) {
		return o, err
	}
	for size := int64(maxBytes); size >= minBytes; size /= 2 {
		o, err = s.js.CreateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: name, TTL: kept, MaxBytes: size, Storage: jetstream.FileStorage})
		if !isRefusal(err, noRoom) {
			break
		}
	}
	if errors.Is(err, jetstream.ErrBucketExists) { // since a moment ago, from another
		return s.js.ObjectStore(ctx, name)
	}
	return o, err
}

// Refusals of JetStream (errors.json of nats-server).
const (
	// noRoom is JSStorageResourcesExceededErr: the server has not as much to set aside.
	noRoom jetstream.ErrorCode = 10047
	// notStored is JSStreamStoreFailedF, which says why in words only.
	notStored jetstream.ErrorCode = 10077
	// full are the words for a stream that is.
	full = "maximum bytes exceeded"
)

func isRefusal(err error, code jetstream.ErrorCode) bool {
	e := new(jetstream.APIError)
	return errors.As(err, &e) && e.ErrorCode == code
}

// fullRetryMS is when to look for room again. Objects go by themselves after a week, but anybody may delete some.
const fullRetryMS = 60_000

// failed gives what a caller can act on.
func (s Store) failed(ctx context.Context, what string, err error) error {
	e := new(jetstream.APIError)
	switch {
	case isRefusal(err, noRoom), errors.As(err, &e) && e.ErrorCode == notStored && e.Description == full:
		return &jobs.Error{Code: jobs.CodeQuota, Message: what + ": no room in " + jobs.ObjectBucket(s.tenant), RetryAfterMS: fullRetryMS}
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	return &jobs.Error{Code: jobs.CodeUnavailable, Message: fmt.Sprintf("%s: %v", what, err), RetryAfterMS: 1000}
}
