package objects

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/paddockvm/paddock/jobs"
)

// S3Config says where a store is that speaks S3.
type S3Config struct {
	// Endpoint is its URL, http or https, without the bucket. Workers reach it too.
	Endpoint string
	Bucket   string
	// Prefix begins all keys; one that is no empty one ends in a slash.
	Prefix string
	Region string
	// Credentials is a file as the AWS tools write it, with a profile "default"; where it is empty, AccessKey and SecretKey, and Token where
	// the key is for a while, are the key.
	Credentials                 string
	AccessKey, SecretKey, Token string
	// CA is a file of the authorities that are trusted, here and by those who are let at an object; empty is each one's system's.
	CA string
	// PathStyle puts the bucket into the path, not into the host's name.
	PathStyle bool
	// TenantBytes bounds what a tenant's objects may take; 0 is no bound.
	TenantBytes int64
	// Dir is for what is gathered before it is sent; empty is the system's for temporary files.
	Dir string
}

// S3 keeps objects in a bucket of a store that speaks S3, under <prefix><tenant>/<sha256>. S3 cannot make an object as new without copying
// it, so that <sha256>.renewed, which is empty, says when it was renewed, and <sha256>.condemned when it was to be deleted (see Renew).
type S3 struct {
	c         *minio.Core
	config    S3Config
	transport *http.Transport
	ca        string // the authorities that are trusted, in PEM; empty is the system's

	ctx      context.Context //nolint:containedctx // until Close, for counts that nobody may be waiting for
	stop     context.CancelFunc
	counting sync.WaitGroup

	mu    sync.Mutex
	usage map[string]*usage // by tenant
}

var _ Store = (*S3)(nil)

const (
	// partBytes and partsAtOnce bound the memory that one upload takes.
	partBytes   = 16 << 20
	partsAtOnce = 2
)

// NewS3 gives the store; it asks nothing of it yet.
func NewS3(c S3Config) (*S3, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("objects: the endpoint %q: want a URL like https://s3.eu-central-1.amazonaws.com", c.Endpoint)
	}
	if c.Bucket == "" {
		return nil, errors.New("objects: S3 needs a bucket")
	}
	if c.Prefix != "" && !strings.HasSuffix(c.Prefix, "/") {
		c.Prefix += "/"
	}
	o := minio.Options{Creds: credentials.NewStaticV4(c.AccessKey, c.SecretKey, c.Token), Secure: u.Scheme == "https", Region: c.Region, MaxRetries: 3}
	switch {
	case c.Credentials != "":
		o.Creds = credentials.NewFileAWSCredentials(c.Credentials, "default")
	case c.AccessKey == "" || c.SecretKey == "":
		return nil, errors.New("objects: S3 needs a key")
	}
	if c.PathStyle {
		o.BucketLookup = minio.BucketLookupPath
	}
	t, err := minio.DefaultTransport(o.Secure)
	if err != nil {
		return nil, fmt.Errorf("objects: %w", err)
	}
	var ca []byte
	if c.CA != "" {
		if ca, err = os.ReadFile(c.CA); err == nil {
			t.TLSClientConfig, err = trusting(ca)
		}
		if err != nil {
			return nil, fmt.Errorf("objects: the authorities for S3 in %s: %w", c.CA, err)
		}
	}
	o.Transport = t
	core, err := minio.NewCore(u.Host, &o)
	if err != nil {
		return nil, fmt.Errorf("objects: %w", err)
	}
	s := &S3{c: core, config: c, transport: t, ca: string(ca), usage: map[string]*usage{}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// trusting gives what trusts the authorities of some certificates, in PEM, and no others.
func trusting(ca []byte) (*tls.Config, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("there is no certificate")
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// Close ends what is being counted, and the connections that wait for further requests.
func (s *S3) Close() {
	s.stop()
	s.counting.Wait()
	s.transport.CloseIdleConnections()
}

func (s *S3) key(tenant, name string) string { return s.config.Prefix + tenant + "/" + name }

// failed gives what a caller can act on.
func (s *S3) failed(ctx context.Context, tenant, name, what string, err error) error {
	if err == nil {
		return nil
	}
	e := minio.ToErrorResponse(err)
	switch {
	case e.Code == "NoSuchKey" || e.StatusCode == http.StatusNotFound && e.Code != "NoSuchBucket":
		return notFound(tenant, name)
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	return &jobs.Error{Code: jobs.CodeUnavailable, Message: fmt.Sprintf("%s: S3: %v", what, err), RetryAfterMS: 1000}
}

// Stat implements Store.
func (s *S3) Stat(ctx context.Context, tenant, name string) (Info, error) {
	i, err := s.stat(ctx, tenant, name)
	if err != nil {
		return i, err
	}
	again, err := s.marked(ctx, tenant, name, renewedSuffix)
	if isNotFound(err) {
		return i, nil
	}
	if again.After(i.Stored) { // it may be that of one that was here before
		i.Stored = again
	}
	return i, err
}

// stat is Stat, without a look at when it was renewed.
func (s *S3) stat(ctx context.Context, tenant, name string) (Info, error) {
	if !jobs.IsDigest(name) {
		return Info{}, notFound(tenant, name)
	}
	o, err := s.c.StatObject(ctx, s.config.Bucket, s.key(tenant, name), minio.StatObjectOptions{})
	if err != nil {
		return Info{}, s.failed(ctx, tenant, name, "look for object", err)
	}
	return Info{Name: name, Size: o.Size, Stored: o.LastModified}, nil
}

// Get implements Store.
func (s *S3) Get(ctx context.Context, tenant, name string) (io.ReadCloser, error) {
	if !jobs.IsDigest(name) {
		return nil, notFound(tenant, name)
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	r, _, _, err := s.c.GetObject(ctx, s.config.Bucket, s.key(tenant, name), minio.GetObjectOptions{})
	if err != nil {
		cancel()
		return nil, s.failed(ctx, tenant, name, "read object", err)
	}
	return &body{r, cancel}, nil
}

// body is an answer that is being read.
type body struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *body) Close() error {
	b.cancel()
	return b.ReadCloser.Close()
}

// Piece implements Store.
func (s *S3) Piece(ctx context.Context, tenant, name string, offset int64, n int) ([]byte, Info, error) {
	i, err := s.stat(ctx, tenant, name)
	end := min(offset+int64(n), i.Size)
	if err != nil || offset >= end {
		return nil, i, err
	}
	var o minio.GetObjectOptions
	if err := o.SetRange(offset, end-1); err != nil {
		return nil, i, err
	}
	r, _, _, err := s.c.GetObject(ctx, s.config.Bucket, s.key(tenant, name), o)
	if err != nil {
		return nil, i, s.failed(ctx, tenant, name, "read object", err)
	}
	defer r.Close() // what was read is there
	b := make([]byte, end-offset)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, i, s.failed(ctx, tenant, name, "read object", err)
	}
	return b, i, nil
}

// Put implements Store: what r gives is gathered in a file first, for an object is whole, and has its name, from its first moment on.
func (s *S3) Put(ctx context.Context, tenant string, r io.Reader) (ref jobs.ObjectRef, err error) {
	f, size, sum, err := Gather(s.config.Dir, r)
	if err != nil {
		return ref, err
	}
	defer f.Close() // it has no name
	return jobs.ObjectRef{Name: sum, SHA256: sum}, s.store(ctx, tenant, sum, size, f)
}

// Gather copies what r gives into a file without a name, which the caller closes, at its beginning, and tells its size and its digest.
func Gather(dir string, r io.Reader) (_ *os.File, size int64, sum string, err error) {
	f, err := os.CreateTemp(dir, "gather-")
	if err != nil {
		return nil, 0, "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, 0, "", err
	}
	h := sha256.New()
	if size, err = io.Copy(io.MultiWriter(f, h), r); err != nil {
		return nil, 0, "", err
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, size, hex.EncodeToString(h.Sum(nil)), err
}

// PutAs implements Store: r is read for its digest first, for an object that is in parts S3 knows none of the whole.
func (s *S3) PutAs(ctx context.Context, tenant, digest string, size int64, r io.ReaderAt) error {
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(r, 0, size))
	if err != nil {
		return err
	}
	if sum := hex.EncodeToString(h.Sum(nil)); sum != digest || n != size {
		return wrongDigest(digest, sum)
	}
	return s.store(ctx, tenant, digest, size, r)
}

// store stores what has been gathered, unless it is there.
func (s *S3) store(ctx context.Context, tenant, digest string, size int64, r io.ReaderAt) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if _, err := s.Renew(ctx, tenant, digest); !isNotFound(err) {
		return err
	}
	if err := s.room(ctx, tenant, digest, size); err != nil {
		return err
	}
	_, err := s.c.Client.PutObject(ctx, s.config.Bucket, s.key(tenant, digest), io.NewSectionReader(r, 0, size), size, minio.PutObjectOptions{
		ContentType: "application/octet-stream", PartSize: partBytes, NumThreads: partsAtOnce,
	})
	if err != nil {
		s.gone(tenant, digest, size)
	}
	return s.failed(ctx, tenant, digest, "write object", err)
}

// Tenants implements Store.
func (s *S3) Tenants(ctx context.Context) (list []string, err error) {
	for o := range s.c.ListObjectsIter(ctx, s.config.Bucket, minio.ListObjectsOptions{Prefix: s.config.Prefix}) {
		if o.Err != nil {
			return nil, s.failed(ctx, "", "", "list tenants", o.Err)
		}
		tenant, is := strings.CutSuffix(strings.TrimPrefix(o.Key, s.config.Prefix), "/")
		if is && jobs.ValidTenant(tenant) == nil {
			list = append(list, tenant)
		}
	}
	return list, nil
}

// List implements Store.
func (s *S3) List(ctx context.Context, tenant string) ([]Info, error) {
	begun := s.beginCount(tenant)
	list, marks, err := s.list(ctx, tenant)
	if err != nil {
		return nil, err
	}
	s.endCount(tenant, begun, list)
	renewed := map[string]time.Time{}
	for _, m := range marks {
		if m.suffix == renewedSuffix {
			renewed[m.of] = m.at
		}
	}
	for n, i := range list {
		if at, ok := renewed[i.Name]; ok && at.After(i.Stored) {
			list[n].Stored = at
		}
	}
	return list, nil
}

// mark stands beside an object, or beside where it was.
type mark struct {
	of, suffix string
	at         time.Time
}

func (s *S3) list(ctx context.Context, tenant string) (all []Info, marks []mark, err error) {
	prefix := s.key(tenant, "")
	for o := range s.c.ListObjectsIter(ctx, s.config.Bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if o.Err != nil {
			return nil, nil, s.failed(ctx, tenant, "", "list objects", o.Err)
		}
		name := strings.TrimPrefix(o.Key, prefix)
		if jobs.IsDigest(name) {
			all = append(all, Info{Name: name, Size: o.Size, Stored: o.LastModified})
			continue
		}
		for _, suffix := range []string{renewedSuffix, condemnedSuffix} {
			if of, is := strings.CutSuffix(name, suffix); is && jobs.IsDigest(of) {
				marks = append(marks, mark{of, suffix, o.LastModified})
			}
		}
	}
	return all, marks, nil
}

// Sweep implements Store: of uploads in parts, and of what stands beside an object that is gone. While the object is there, nobody's mark is
// taken away, which somebody may just be going to look for.
func (s *S3) Sweep(ctx context.Context, tenant string, before time.Time) error {
	for u := range s.c.ListIncompleteUploads(ctx, s.config.Bucket, s.key(tenant, ""), true) {
		err := u.Err
		if err == nil && u.Initiated.Before(before) {
			err = s.c.RemoveIncompleteUpload(ctx, s.config.Bucket, u.Key)
		}
		if err != nil {
			return s.failed(ctx, tenant, "", "sweep", err)
		}
	}
	all, marks, err := s.list(ctx, tenant)
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(all))
	for _, i := range all {
		there[i.Name] = true
	}
	for _, m := range marks {
		if there[m.of] || !m.at.Before(before) {
			continue
		}
		if err := s.c.RemoveObject(ctx, s.config.Bucket, s.key(tenant, m.of)+m.suffix, minio.RemoveObjectOptions{}); err != nil {
			return s.failed(ctx, tenant, m.of, "sweep", err)
		}
	}
	return nil
}
