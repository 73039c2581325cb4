package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/jobs"
)

// PutObject stores a file's content for File.Object: what is too large to go inline. It is read twice, first for its digest.
func (c *Client) PutObject(ctx context.Context, f *os.File) (jobs.ObjectRef, error) {
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return jobs.ObjectRef{}, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return jobs.ObjectRef{}, err
	}
	sum := hex.EncodeToString(h.Sum(nil))
	ref := jobs.ObjectRef{Name: sum, SHA256: sum}
	o, err := c.js.ObjectStore(ctx, jobs.ObjectBucket(c.tenant))
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		o, err = c.js.CreateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: jobs.ObjectBucket(c.tenant)})
	}
	if err != nil {
		return ref, fmt.Errorf("open the object store: %w", err)
	}
	if _, err := o.GetInfo(ctx, sum); err == nil {
		return ref, nil // it is there
	}
	if _, err := o.Put(ctx, jetstream.ObjectMeta{Name: sum}, f); err != nil {
		return ref, fmt.Errorf("store object: %w", err)
	}
	return ref, nil
}

// GetObject reads an object that an artifact names; an error at its end says that its digest is not the one named.
func (c *Client) GetObject(ctx context.Context, ref jobs.ObjectRef) (io.ReadCloser, error) {
	o, err := c.js.ObjectStore(ctx, jobs.ObjectBucket(c.tenant))
	if err != nil {
		return nil, fmt.Errorf("open the object store: %w", err)
	}
	r, err := o.Get(ctx, ref.Name)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", ref.Name, err)
	}
	return r, nil
}
