package bus

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
	// objectsKept is how long an object is kept. Package client, which cannot import this one, says the same.
	objectsKept = 7 * 24 * time.Hour
	// freshFor is how long an object is good for one more job; an older one is stored again.
	freshFor = objectsKept / 2
	// objectWithin bounds reading or writing one object where ctx does not: nats.go would allow 5 s.
	objectWithin = time.Hour
)

// bucket gives a tenant's object store, and makes it where it is missing.
func (b *Bus) bucket(ctx context.Context, tenant string) (jetstream.ObjectStore, error) {
	b.mu.Lock()
	o := b.buckets[tenant]
	b.mu.Unlock()
	if o != nil {
		return o, nil
	}
	o, err := b.js.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: jobs.ObjectBucket(tenant), TTL: objectsKept})
	if err != nil {
		return nil, unavailable("open the object store", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buckets[tenant] = o
	return o, nil
}

// GetObject reads an object, as a stream. It is the caller who checks the digest, and closes.
func (b *Bus) GetObject(ctx context.Context, tenant string, ref jobs.ObjectRef) (io.ReadCloser, error) {
	o, err := b.bucket(ctx, tenant)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, objectWithin)
	r, err := o.Get(ctx, ref.Name)
	switch {
	case errors.Is(err, jetstream.ErrObjectNotFound):
		cancel()
		return nil, &jobs.Error{Code: jobs.CodeNotFound, Message: fmt.Sprintf("no object %q in %s", ref.Name, jobs.ObjectBucket(tenant))}
	case err != nil:
		cancel()
		return nil, unavailable("read object", err)
	}
	return &object{r, cancel}, nil
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

// PutObject stores what r gives under its digest. Where r fails, its error is given.
func (b *Bus) PutObject(ctx context.Context, tenant string, r io.Reader) (ref jobs.ObjectRef, err error) {
	o, err := b.bucket(ctx, tenant)
	if err != nil {
		return ref, err
	}
	ctx, cancel := context.WithTimeout(ctx, objectWithin)
	defer cancel()
	h := sha256.New()
	source := &source{r: io.TeeReader(r, h), settle: func() error { return b.settle(ctx, jobs.ObjectBucket(tenant)) }}
	tmp := "tmp-" + nuid.Next() // the name is known when all has been read
	if _, err := o.Put(ctx, jetstream.ObjectMeta{Name: tmp}, source); err != nil {
		if source.err != nil {
			return ref, source.err
		}
		return ref, unavailable("write object", err)
	}
	sum := hex.EncodeToString(h.Sum(nil))
	if err := b.rename(ctx, o, tmp, sum); err != nil {
		return ref, errors.Join(unavailable("name object", err), o.Delete(ctx, tmp))
	}
	return jobs.ObjectRef{Name: sum, SHA256: sum}, nil
}

// rename gives an object its name, unless one of that name is there and will be for a while.
func (b *Bus) rename(ctx context.Context, o jetstream.ObjectStore, from, to string) error {
	if info, err := o.GetInfo(ctx, to); err == nil {
		if time.Since(info.ModTime) < freshFor {
			return o.Delete(ctx, from)
		}
		if err := o.Delete(ctx, to); err != nil {
			return err
		}
	}
	err := o.UpdateMeta(ctx, from, jetstream.ObjectMeta{Name: to})
	if errors.Is(err, jetstream.ErrObjectAlreadyExists) { // in this moment, from another
		return o.Delete(ctx, from)
	}
	return err
}

// source reads for the object store: it fills the chunks, keeps the server's pace, and keeps its reader's error, which the store does not
// tell from its own.
type source struct {
	r      io.Reader
	err    error
	sent   int          // since the server had caught up
	settle func() error // waits until it has
}

// settleAfter is how many bytes may wait to be written. The server has room for 128 MiB of a stream, for all who write; what comes on top
// is refused, and nats.go, which itself would send 512 MiB ahead, gives up.
const settleAfter = 4 << 20

func (s *source) Read(b []byte) (int, error) {
	if s.sent >= settleAfter {
		if err := s.settle(); err != nil {
			return 0, err
		}
		s.sent = 0
	}
	n, err := 0, error(nil)
	for n < len(b) && err == nil { // not io.ReadFull, which hides a reader's own ErrUnexpectedEOF
		var m int
		m, err = s.r.Read(b[n:])
		n += m
	}
	s.sent += n
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// settle waits until the server has stored what was sent to a bucket: its answer to one more message, which asks to be refused, comes
// after them.
func (b *Bus) settle(ctx context.Context, bucket string) error {
	_, err := b.js.Publish(ctx, "$O."+bucket+".C.settle", nil, jetstream.WithExpectStream("none"))
	if refused := new(jetstream.APIError); errors.As(err, &refused) {
		return nil
	}
	return err
}
