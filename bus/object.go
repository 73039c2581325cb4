package bus

import (
	"context"
	"io"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
)

// GetObject reads an object, as a stream. It is the caller who checks the digest, and closes.
func (b *Bus) GetObject(ctx context.Context, tenant string, ref jobs.ObjectRef) (io.ReadCloser, error) {
	return objects.Of(b.js, tenant).Get(ctx, ref.Name)
}

// PutObject stores what r gives under its digest. Where r fails, its error is given.
func (b *Bus) PutObject(ctx context.Context, tenant string, r io.Reader) (jobs.ObjectRef, error) {
	return objects.Of(b.js, tenant).Put(ctx, r)
}
