package objects

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
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
	if err == nil {
		s.restore(ctx, o, tenant)
	}
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
	for _, size := range sizes() {
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

// roomKey is the metadata of a bucket that has given back room: how much was set aside for it before, in bytes.
const roomKey = "paddock-room"

// idleRoom is how long nothing is in a bucket before it gives back room: who puts by the object store's own API does not have it taken again, and
// may have a pause.
const idleRoom = 7 * 24 * time.Hour

// giveBack gives back what JetStream has set aside for a bucket in which nothing is, nor has been for idleRoom before a time, but for minBytes: what
// tenants had who do not come any more would leave none for those who come. Of a bucket into which somebody just puts something nothing is lost: what
// it has no room for is refused. A size that is none of ours is its maker's own.
func (s *JetStream) giveBack(ctx context.Context, st jetstream.Stream, before time.Time) error {
	i, err := st.Info(ctx)
	if err != nil {
		return err
	}
	c, before := i.Config, before.Add(-idleRoom)
	if i.State.Msgs > 0 || i.State.LastTime.After(before) || i.Created.After(before) || !slices.Contains(sizes()[:len(sizes())-1], c.MaxBytes) {
		return nil
	}
	c.Metadata = maps.Clone(c.Metadata)
	if c.Metadata == nil {
		c.Metadata = map[string]string{}
	}
	c.Metadata[roomKey] = strconv.FormatInt(c.MaxBytes, 10)
	c.MaxBytes = minBytes
	_, err = s.js.UpdateStream(ctx, c)
	return err
}

// restore has a bucket that has given back room take it again, before something is put, as far as it is there. Where that fails, what is left of
// it may do; else the tenant is told.
func (s *JetStream) restore(ctx context.Context, o jetstream.ObjectStore, tenant string) {
	status, err := o.Status(ctx)
	if err != nil || status.Metadata()[roomKey] == "" {
		return
	}
	if s.maker != nil {
		_ = s.maker(ctx, tenant)
		return
	}
	st, err := s.js.Stream(ctx, streamOf(tenant))
	if err != nil {
		return
	}
	c := st.CachedInfo().Config
	had, err := strconv.ParseInt(c.Metadata[roomKey], 10, 64)
	if err != nil {
		return
	}
	c.Metadata = maps.Clone(c.Metadata)
	delete(c.Metadata, roomKey)
	for _, size := range sizes() {
		if size <= minBytes || size > had {
			continue
		}
		c.MaxBytes = size
		if _, err := s.js.UpdateStream(ctx, c); !isRefusal(err, noRoom) {
			return
		}
	}
}

// sizes are those of which a bucket of ours has one, the largest first.
func sizes() (all []int64) {
	for size := int64(maxBytes); size >= minBytes; size /= 2 {
		all = append(all, size)
	}
	return all
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
