// Package objects keeps what is too large for a message in JetStream's object store, one bucket a tenant: files that go into a machine
// and artifacts that come out. Clients and workers use it alike. It imports jobs and nats.go.
package objects

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/paddockvm/paddock/jobs"
)

const (
	// kept is how long an object is kept.
	kept = 7 * 24 * time.Hour
	// freshFor is how long an object is good for one more job; an older one is stored again.
	freshFor = kept / 2
	// within bounds reading or writing one object where ctx does not: nats.go would allow 5 s.
	within = time.Hour
)

// Store is a tenant's objects. Errors are *jobs.Error, but for those of a reader and of a context that has ended.
type Store struct {
	js     jetstream.JetStream
	tenant string
}

// Of gives a tenant's store; the bucket is made when the first object is put.
func Of(js jetstream.JetStream, tenant string) Store { return Store{js, tenant} }

// Get reads an object, as a stream. It is the caller who checks the digest, and closes. One that is missing is "not_found".
func (s Store) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	o, err := s.js.ObjectStore(ctx, jobs.ObjectBucket(s.tenant))
	var r jetstream.ObjectResult
	if err == nil {
		r, err = o.Get(ctx, name)
	}
	if err == nil {
		return &object{r, cancel}, nil
	}
	defer cancel()
	if errors.Is(err, jetstream.ErrBucketNotFound) || errors.Is(err, jetstream.ErrObjectNotFound) {
		return nil, &jobs.Error{Code: jobs.CodeNotFound, Message: fmt.Sprintf("no object %q in %s", name, jobs.ObjectBucket(s.tenant))}
	}
	return nil, s.failed(ctx, "read object", err)
}

// object is one that is being read.
type object struct {
	jetstream.ObjectResult
	cancel context.CancelFunc
}

func (o *object) Close() error {
	o.cancel()
	return o.ObjectResult.Close()
}

// Has tells whether there is an object with a digest, under that name, that will be there for half a week.
func (s Store) Has(ctx context.Context, digest string) bool {
	o, err := s.js.ObjectStore(ctx, jobs.ObjectBucket(s.tenant))
	return err == nil && has(ctx, o, digest)
}

func has(ctx context.Context, o jetstream.ObjectStore, digest string) bool {
	info, err := o.GetInfo(ctx, digest)
	if err != nil || time.Since(info.ModTime) >= freshFor {
		return false
	}
	stored, err := jetstream.DecodeObjectDigest(info.Digest)
	return err == nil && hex.EncodeToString(stored) == digest // else another has put something under its name
}

// Put stores what r gives under its digest, which is taken as it is sent. Where r fails, its error is given; where the tenant's objects
// have no room for it, "quota_exceeded".
func (s Store) Put(ctx context.Context, r io.Reader) (ref jobs.ObjectRef, err error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	o, err := s.bucket(ctx)
	if err != nil {
		return ref, s.failed(ctx, "open the object store", err)
	}
	h := sha256.New()
	source := &source{r: io.TeeReader(r, h), settle: func() error { return s.settle(ctx) }}
	tmp := "tmp-" + nuid.Next() // the name is known when all has been read
	if _, err := o.Put(ctx, jetstream.ObjectMeta{Name: tmp}, source); err != nil {
		if source.err != nil {
			return ref, source.err
		}
		return ref, s.failed(ctx, "write object", err)
	}
	sum := hex.EncodeToString(h.Sum(nil))
	if err := rename(ctx, o, tmp, sum); err != nil {
		_ = o.Delete(context.WithoutCancel(ctx), tmp) // its age does it too
		return ref, s.failed(ctx, "name object", err)
	}
	return jobs.ObjectRef{Name: sum, SHA256: sum}, nil
}

// rename gives an object its digest for a name, unless one is there that will do.
func rename(ctx context.Context, o jetstream.ObjectStore, from, digest string) error {
	if has(ctx, o, digest) {
		return o.Delete(ctx, from)
	}
	if err := o.Delete(ctx, digest); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
		return err
	}
	err := o.UpdateMeta(ctx, from, jetstream.ObjectMeta{Name: digest})
	if errors.Is(err, jetstream.ErrObjectAlreadyExists) { // in this moment, from another
		return o.Delete(ctx, from)
	}
	return err
}
