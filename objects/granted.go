package objects

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Granted is a URL that is good for one object, for a while, without a key: it lets a worker at an object that its dispatcher has let it at.
type Granted struct {
	URL string `json:"url"`
	// SHA256 is whose bytes alone are taken, in base64, as S3 has it in a header.
	SHA256 string `json:"sha256,omitempty"`
	// CA are the authorities, in PEM, of which one has signed S3's certificate; empty is the system's. Who says what to ask says whom to trust.
	CA string `json:"ca,omitempty"`
}

// grantedFor is how long a URL is good: as long as reading or writing may take.
const grantedFor = within

// checksumHeader has S3 refuse what has another digest (where it knows of that; what was put is looked at by who gets it, too).
const checksumHeader = "X-Amz-Checksum-Sha256"

// PutURL lets somebody put an object; nil where it is there already, and as new now.
func (s *S3) PutURL(ctx context.Context, tenant, digest string, size int64) (*Granted, error) {
	sum, err := hex.DecodeString(digest)
	if err != nil || !jobs.IsDigest(digest) {
		return nil, &jobs.Error{Code: jobs.CodeInvalid, Message: "that is no digest"}
	}
	if size > jobs.MaxObjectBytes {
		return nil, &jobs.Error{Code: jobs.CodeTooLarge, Message: fmt.Sprintf("the object has %d bytes, and may have %d", size, int64(jobs.MaxObjectBytes))}
	}
	if _, err := s.Renew(ctx, tenant, digest); !isNotFound(err) {
		return nil, err
	}
	if err := s.room(ctx, tenant, digest, size); err != nil {
		return nil, err
	}
	g := &Granted{CA: s.ca, SHA256: base64.StdEncoding.EncodeToString(sum)}
	u, err := s.c.PresignHeader(ctx, http.MethodPut, s.config.Bucket, s.key(tenant, digest), grantedFor, nil, http.Header{checksumHeader: {g.SHA256}})
	if err != nil {
		return nil, s.failed(ctx, tenant, digest, "let put an object", err)
	}
	g.URL = u.String()
	return g, nil
}

// GetURL lets somebody get an object.
func (s *S3) GetURL(ctx context.Context, tenant, digest string) (*Granted, error) {
	if _, err := s.stat(ctx, tenant, digest); err != nil {
		return nil, err
	}
	u, err := s.c.PresignedGetObject(ctx, s.config.Bucket, s.key(tenant, digest), grantedFor, nil)
	if err != nil {
		return nil, s.failed(ctx, tenant, digest, "let get an object", err)
	}
	return &Granted{CA: s.ca, URL: u.String()}, nil
}

// Put puts what r gives, size bytes.
func (g *Granted) Put(ctx context.Context, r io.Reader, size int64) error {
	if size == 0 {
		r = http.NoBody
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodPut, g.URL, io.NopCloser(r))
	if err != nil {
		return err
	}
	q.ContentLength = size
	if size == 0 {
		q.Body = http.NoBody
	}
	q.Header.Set(checksumHeader, g.SHA256)
	answer, err := g.do(q, "write object")
	if err != nil {
		return err
	}
	return answer.Body.Close()
}

// Get gets the object, as a stream.
func (g *Granted) Get(ctx context.Context) (io.ReadCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, g.URL, http.NoBody)
	if err == nil {
		var answer *http.Response
		if answer, err = g.do(q, "read object"); err == nil { //nolint:bodyclose // whoever reads it closes it
			return &body{answer.Body, cancel}, nil
		}
	}
	cancel()
	return nil, err
}

// maxComplaint is how much is read of what S3 says of a failure.
const maxComplaint = 1 << 10

// do sends a request. What it says of a failure does not have the URL in it, which is a key for as long as it is good.
func (g *Granted) do(q *http.Request, what string) (*http.Response, error) {
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, ResponseHeaderTimeout: time.Minute, TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: false,
	}
	if g.CA != "" {
		trust, err := trusting([]byte(g.CA))
		if err != nil {
			return nil, fmt.Errorf("%s: the authorities that the dispatcher names: %w", what, err)
		}
		t.TLSClientConfig = trust
	}
	c := http.Client{Transport: t}
	answer, err := c.Do(q)
	if err != nil {
		if q.Context().Err() != nil {
			return nil, fmt.Errorf("%s: %w", what, context.Cause(q.Context()))
		}
		why := "cannot be reached from here"
		if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			why = "is not trusted here: " + e.Error()
		}
		return nil, &jobs.Error{Code: jobs.CodeUnavailable, Message: what + ": S3 at " + q.URL.Host + " " + why, RetryAfterMS: 1000}
	}
	if answer.StatusCode/100 == 2 {
		return answer, nil
	}
	said, _ := io.ReadAll(io.LimitReader(answer.Body, maxComplaint))
	_ = answer.Body.Close()
	if answer.StatusCode == http.StatusNotFound {
		return nil, &jobs.Error{Code: jobs.CodeNotFound, Message: "no such object"}
	}
	return nil, &jobs.Error{Code: jobs.CodeUnavailable, Message: fmt.Sprintf("%s: S3: %s: %s", what, answer.Status, said), RetryAfterMS: 1000}
}
