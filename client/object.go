package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
)

// PutObject stores a file's content for File.Object: what is too large to go inline. It is read for its digest first, and again where no
// such object is there; what the reference names is what was sent, should the file change meanwhile. It is kept for at least half a
// week. Where the tenant's objects have no room for it the error is "quota_exceeded".
func (c *Client) PutObject(ctx context.Context, f *os.File) (jobs.ObjectRef, error) {
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return jobs.ObjectRef{}, err
	}
	store, sum := objects.Of(c.js, c.tenant), hex.EncodeToString(h.Sum(nil))
	if store.Has(ctx, sum) {
		return jobs.ObjectRef{Name: sum, SHA256: sum}, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return jobs.ObjectRef{}, err
	}
	return store.Put(ctx, f)
}

// GetObject reads an object that an artifact names, as a stream, which the caller closes; an error at its end says that its digest is
// not the one named. One that is missing is a *jobs.Error, "not_found".
func (c *Client) GetObject(ctx context.Context, ref jobs.ObjectRef) (io.ReadCloser, error) {
	r, err := objects.Of(c.js, c.tenant).Get(ctx, ref.Name)
	if err != nil {
		return nil, err
	}
	return &object{r, ref, sha256.New()}, nil
}

// object is one that is being read. The store checks its own digest; this checks the one that was promised.
type object struct {
	io.ReadCloser
	ref    jobs.ObjectRef
	digest hash.Hash
}

func (o *object) Read(b []byte) (int, error) {
	n, err := o.ReadCloser.Read(b)
	o.digest.Write(b[:n])
	if errors.Is(err, io.EOF) {
		if got := hex.EncodeToString(o.digest.Sum(nil)); got != o.ref.SHA256 {
			return n, fmt.Errorf("object %s has the digest %s, not %s", o.ref.Name, got, o.ref.SHA256)
		}
	}
	return n, err
}
