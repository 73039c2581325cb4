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
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/jobs"
)

const (
	// objectsKept is how long an object is kept.
	objectsKept = 7 * 24 * time.Hour
	// freshFor is how long an object is good for one more job; an older one is stored again.
	freshFor = objectsKept / 2
	// objectWithin bounds reading or writing one object where ctx does not: nats.go would allow 5 s.
	objectWithin = time.Hour
)

// PutObject stores a file's content for File.Object: what is too large to go inline. It is read twice, first for its digest, and kept
// for at least half a week.
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
	ctx, cancel := context.WithTimeout(ctx, objectWithin)
	defer cancel()
	o, err := c.js.ObjectStore(ctx, jobs.ObjectBucket(c.tenant))
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		o, err = c.js.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: jobs.ObjectBucket(c.tenant), TTL: objectsKept})
	}
	if err != nil {
		return ref, fmt.Errorf("open the object store: %w", err)
	}
	if info, err := o.GetInfo(ctx, sum); err == nil && time.Since(info.ModTime) < freshFor {
		return ref, nil // it is there, and stays long enough
	}
	if _, err := o.Put(ctx, jetstream.ObjectMeta{Name: sum}, &paced{r: f, settle: func() error { return c.settle(ctx) }}); err != nil {
		return ref, fmt.Errorf("store object: %w", err)
	}
	return ref, nil
}

// paced reads at the server's pace: it has room for 128 MiB that is not written yet, for all who write; what comes on top is refused, and
// nats.go, which itself would send 512 MiB ahead, gives up.
type paced struct {
	r      io.Reader
	sent   int          // since the server had caught up
	settle func() error // waits until it has
}

// settleAfter is how many bytes may wait to be written.
const settleAfter = 4 << 20

func (p *paced) Read(b []byte) (int, error) {
	if p.sent >= settleAfter {
		if err := p.settle(); err != nil {
			return 0, err
		}
		p.sent = 0
	}
	n, err := p.r.Read(b)
	p.sent += n
	return n, err
}

// settle waits until the server has stored what was sent: its answer to one more message, which asks to be refused, comes after them.
func (c *Client) settle(ctx context.Context) error {
	_, err := c.js.Publish(ctx, "$O."+jobs.ObjectBucket(c.tenant)+".C.settle", nil, jetstream.WithExpectStream("none"))
	if refused := new(jetstream.APIError); errors.As(err, &refused) {
		return nil
	}
	return err
}

// GetObject reads an object that an artifact names, as a stream, which the caller closes; an error at its end says that its digest is
// not the one named. One that is missing is a *jobs.Error, "not_found".
func (c *Client) GetObject(ctx context.Context, ref jobs.ObjectRef) (io.ReadCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, objectWithin)
	r, err := c.openObject(ctx, ref)
	if err != nil {
		cancel()
		return nil, err
	}
	return &object{r: r, ref: ref, digest: sha256.New(), cancel: cancel}, nil
}

func (c *Client) openObject(ctx context.Context, ref jobs.ObjectRef) (io.ReadCloser, error) {
	o, err := c.js.ObjectStore(ctx, jobs.ObjectBucket(c.tenant))
	if err == nil {
		var r jetstream.ObjectResult
		if r, err = o.Get(ctx, ref.Name); err == nil {
			return r, nil
		}
	}
	if errors.Is(err, jetstream.ErrBucketNotFound) || errors.Is(err, jetstream.ErrObjectNotFound) {
		return nil, &jobs.Error{Code: jobs.CodeNotFound, Message: fmt.Sprintf("no object %q in %s", ref.Name, jobs.ObjectBucket(c.tenant))}
	}
	return nil, fmt.Errorf("object %s: %w", ref.Name, err)
}

// object is one that is being read. The store checks its own digest; this checks the one that was promised.
type object struct {
	r      io.ReadCloser
	ref    jobs.ObjectRef
	digest hash.Hash
	cancel context.CancelFunc
}

func (o *object) Read(b []byte) (int, error) {
	n, err := o.r.Read(b)
	o.digest.Write(b[:n])
	if errors.Is(err, io.EOF) {
		if got := hex.EncodeToString(o.digest.Sum(nil)); got != o.ref.SHA256 {
			return n, fmt.Errorf("object %s has the digest %s, not %s", o.ref.Name, got, o.ref.SHA256)
		}
	}
	return n, err
}

func (o *object) Close() error {
	o.cancel()
	return o.r.Close()
}
