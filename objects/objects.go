// Package objects keeps what is too large for a message: files that go into a machine and artifacts that come out, each tenant's apart,
// each under the sha256 of its content. JetStream's object store keeps them, or a store that speaks S3. Uploads gathers those that come in
// pieces, and Collector deletes those that nobody needs any more. It imports jobs.
package objects

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Store keeps tenants' objects. Errors are *jobs.Error, but for those of a reader and of a context that has ended; what is missing is
// "not_found". Methods may be called concurrently, and from several processes.
type Store interface {
	// Stat tells of an object.
	Stat(ctx context.Context, tenant, name string) (Info, error)
	// Get reads an object, as a stream. It is the caller who checks the digest, and closes.
	Get(ctx context.Context, tenant, name string) (io.ReadCloser, error)
	// Piece reads n bytes of an object from an offset on; fewer at its end.
	Piece(ctx context.Context, tenant, name string, offset int64, n int) ([]byte, Info, error)
	// Put stores what r gives under its digest, and gives that. One that is there already is renewed. Where r fails, its error is given;
	// where the tenant has no room for it, "quota_exceeded".
	Put(ctx context.Context, tenant string, r io.Reader) (jobs.ObjectRef, error)
	// PutAs is Put for what is there already, and known to have size bytes and a digest; where it has another, that is "invalid", and nothing
	// is stored. r may be read several times, and does not change meanwhile.
	PutAs(ctx context.Context, tenant, digest string, size int64, r io.ReaderAt) error
	// Renew makes an object as new.
	Renew(ctx context.Context, tenant, name string) (Info, error)
	// Delete deletes an object as it was when its Info was given: one that has been renewed since stays, which is no error.
	Delete(ctx context.Context, tenant string, i Info) (deleted bool, err error)
	// Tenants gives those who may have objects.
	Tenants(ctx context.Context) ([]string, error)
	// List gives a tenant's objects.
	List(ctx context.Context, tenant string) ([]Info, error)
	// Sweep deletes what of a tenant was begun to be stored before a time, and never was.
	Sweep(ctx context.Context, tenant string, before time.Time) error
}

// Info is what is known of an object.
type Info struct {
	Name string
	Size int64
	// Stored is when it was put or renewed last, by the store's clock.
	Stored time.Time

	version uint64 // of JetStream: changes with each renewal
}

const (
	// temporary begins the names of what is stored before its digest is known.
	temporary = "tmp-"
	// within bounds reading or writing one object where ctx does not: nats.go would allow 5 s.
	within = time.Hour
)

func notFound(tenant, name string) *jobs.Error {
	return &jobs.Error{Code: jobs.CodeNotFound, Message: fmt.Sprintf("the tenant %s has no object %.80q", tenant, name)}
}

func wrongDigest(want, got string) *jobs.Error {
	return &jobs.Error{Code: jobs.CodeInvalid, Message: fmt.Sprintf("the object has the digest %s, not %s", got, want)}
}

func isNotFound(err error) bool {
	e, ok := errors.AsType[*jobs.Error](err)
	return ok && e.Code == jobs.CodeNotFound
}
