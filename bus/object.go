package bus

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
)

// openObjects opens the store of objects: this is where it is chosen. A worker may not make buckets, and has no key of S3.
func (b *Bus) openObjects(c Config) error {
	js, err := storeOf(b.nc)
	if err != nil {
		return err
	}
	switch {
	case c.Worker != "":
		if b.worker != "" {
			js = js.MadeBy(b.askForBucket)
		}
		b.lent = &lent{bus: b, js: js, name: c.Worker}
	case c.S3 != nil:
		b.store = c.S3
	default:
		b.store = js
	}
	return nil
}

// storedAnswer is how long JetStream is waited for that has up to 4 MiB to write before it answers, and others' beside.
const storedAnswer = 30 * time.Second

// storeOf gives the objects that are in JetStream.
func storeOf(nc *conn) (*objects.JetStream, error) {
	js, err := jetstream.New(nc.Conn, jetstream.WithDefaultTimeout(storedAnswer))
	if err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	return objects.NewJetStream(js), nil
}

// Objects is the store of objects, of a dispatcher.
func (b *Bus) Objects() objects.Store { return b.store }

// GetObject reads an object, as a stream. It is the caller who checks the digest, and closes.
func (b *Bus) GetObject(ctx context.Context, tenant string, ref jobs.ObjectRef) (io.ReadCloser, error) {
	if b.lent != nil {
		return b.lent.get(ctx, tenant, ref)
	}
	return b.store.Get(ctx, tenant, ref.Name)
}

// PutObject stores what r gives under its digest. Where r fails, its error is given.
func (b *Bus) PutObject(ctx context.Context, tenant string, r io.Reader) (jobs.ObjectRef, error) {
	if b.lent != nil {
		return b.lent.put(ctx, tenant, r)
	}
	return b.store.Put(ctx, tenant, r)
}

// bucketRequest asks for a tenant's bucket.
type bucketRequest struct {
	Worker string `json:"worker"`
	Tenant string `json:"tenant"`
}

func (b *Bus) askForBucket(ctx context.Context, tenant string) error {
	for try := 0; ; try++ {
		asking, cancel := context.WithTimeout(ctx, lendWithin)
		r, _, err := ask[failure](asking, b, b.fleet(access.BucketSubject), bucketRequest{b.worker, tenant})
		cancel()
		switch {
		case err == nil && r.Error == nil:
			return nil
		case err == nil:
			return r.Error
		case ctx.Err() != nil || try == lendTries:
			return err
		}
		pause(ctx, lendPause)
	}
}

// makeBucket makes a tenant's bucket for a worker.
func (s *serving) makeBucket(ctx context.Context, m *nats.Msg) any {
	q, err := read[bucketRequest](m)
	if err == nil {
		err = itself(m, q.Worker)
	}
	if err == nil {
		err = s.errorOf(jobs.ValidTenant(q.Tenant))
	}
	if err != nil {
		return failure{err}
	}
	store, makeErr := storeOf(s.bus.nc)
	if makeErr == nil {
		makeErr = store.Make(ctx, q.Tenant)
	}
	return failure{s.errorOf(ofObjects(makeErr))}
}
