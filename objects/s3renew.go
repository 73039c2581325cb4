package objects

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/paddockvm/paddock/jobs"
)

// Two dispatchers may believe to lead for a while, and one that was held up does afterwards what it was about to do: it may delete what the
// other has renewed meanwhile. S3 has no deletion that asks whether another object, which says when this one was renewed, has changed. But it
// looks at its clock: a signed URL is good until a time. So whoever deletes condemns first: an empty <sha256>.condemned says so, from its time
// on there is deleteWithin to look whether the object has been renewed and to delete it, and the request itself is worth nothing later.
// Whoever renews writes that, and looks whether the object is condemned then. If not, whoever condemns it later sees what was written; and if
// it is, it is known after deleteWithin whether the object is there or gone. Whoever is to put an object that is not there waits likewise.

const (
	// renewedSuffix and condemnedSuffix end the names of what says when an object was renewed, or was to be deleted.
	renewedSuffix   = ".renewed"
	condemnedSuffix = ".condemned"
	// deleteWithin is how long after an object was condemned S3 deletes it. It is less than a request of a client may take.
	deleteWithin = 5 * time.Second
	// rounding is for the times that S3 tells, which are whole seconds, both of them.
	rounding = 2 * time.Second
)

// Renew implements Store. Where somebody is about to delete the object, it takes as long as that may.
func (s *S3) Renew(ctx context.Context, tenant, name string) (Info, error) {
	if !jobs.IsDigest(name) {
		return Info{}, notFound(tenant, name)
	}
	i, err := s.stat(ctx, tenant, name)
	if err != nil && !isNotFound(err) {
		return i, err
	}
	if err == nil {
		if err := s.mark(ctx, tenant, name, renewedSuffix); err != nil {
			return i, err
		}
		i.Stored = time.Now()
	}
	condemned, markErr := s.marked(ctx, tenant, name, condemnedSuffix)
	switch {
	case isNotFound(markErr):
		return i, err
	case markErr != nil:
		return i, markErr
	}
	if err := s.outlast(ctx, tenant, name, condemned); err != nil {
		return i, err
	}
	if i, err = s.stat(ctx, tenant, name); err == nil {
		i.Stored = time.Now()
	}
	return i, err
}

// mark writes one of what stands beside an object; marked tells when that was, by S3's clock.
func (s *S3) mark(ctx context.Context, tenant, name, suffix string) error {
	_, err := s.c.Client.PutObject(ctx, s.config.Bucket, s.key(tenant, name)+suffix, strings.NewReader(""), 0, minio.PutObjectOptions{})
	return s.failed(ctx, tenant, name, "mark object"+suffix, err)
}

func (s *S3) marked(ctx context.Context, tenant, name, suffix string) (time.Time, error) {
	o, err := s.c.StatObject(ctx, s.config.Bucket, s.key(tenant, name)+suffix, minio.StatObjectOptions{})
	return o.LastModified, s.failed(ctx, tenant, name, "look for object"+suffix, err)
}

// outlast waits until nobody can delete the object who had condemned it at a time. What it is now by S3's clock, only something that is
// written can tell.
func (s *S3) outlast(ctx context.Context, tenant, name string, condemned time.Time) error {
	if err := s.mark(ctx, tenant, name, renewedSuffix); err != nil {
		return err
	}
	now, err := s.marked(ctx, tenant, name, renewedSuffix)
	if err != nil {
		return err
	}
	left := min(condemned.Add(deleteWithin+rounding).Sub(now), deleteWithin+rounding)
	if left <= 0 {
		return nil
	}
	pause(ctx, left)
	return s.failed(ctx, tenant, name, "wait until an object is deleted", ctx.Err())
}

// Delete implements Store.
func (s *S3) Delete(ctx context.Context, tenant string, i Info) (bool, error) {
	if old, err := s.old(ctx, tenant, i); err != nil || !old {
		return false, err
	}
	if err := s.mark(ctx, tenant, i.Name, condemnedSuffix); err != nil {
		return false, err
	}
	condemned, err := s.marked(ctx, tenant, i.Name, condemnedSuffix)
	if err != nil {
		return false, err
	}
	if old, err := s.old(ctx, tenant, i); err != nil || !old {
		return false, err
	}
	if err := s.deleteBefore(ctx, tenant, i.Name, condemned.Add(deleteWithin)); err != nil {
		return false, err
	}
	s.gone(tenant, i.Name, i.Size)
	return true, nil
}

// old tells whether an object is there as it was.
func (s *S3) old(ctx context.Context, tenant string, i Info) (bool, error) {
	now, err := s.Stat(ctx, tenant, i.Name)
	if isNotFound(err) {
		return false, nil
	}
	return err == nil && !now.Stored.Truncate(time.Second).After(i.Stored), err // heads of answers have whole seconds
}

// deleteBefore deletes an object unless S3's clock is past a time when it gets to do it. What stands beside the object is Sweep's.
func (s *S3) deleteBefore(ctx context.Context, tenant, name string, end time.Time) error {
	const what = "delete object"
	late := &jobs.Error{Code: jobs.CodeUnavailable, Message: what + ": it took too long, or this host's clock is ahead of that of S3", RetryAfterMS: 1000}
	left := time.Until(end).Truncate(time.Second)
	if left < time.Second {
		return late
	}
	u, err := s.c.Presign(ctx, http.MethodDelete, s.config.Bucket, s.key(tenant, name), left, nil)
	if err != nil {
		return s.failed(ctx, tenant, name, what, err)
	}
	// It is good from when it was signed on, which may be later than it was a line before.
	signed, err := time.Parse("20060102T150405Z", u.Query().Get("X-Amz-Date"))
	if err != nil || u.Query().Get("X-Amz-Expires") != strconv.Itoa(int(left/time.Second)) {
		return &jobs.Error{Code: jobs.CodeInternal, Message: what + ": the signature does not say until when it is good"}
	}
	if signed.Add(left).After(end) {
		return late
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodDelete, u.String(), http.NoBody)
	if err != nil {
		return err
	}
	c := http.Client{Transport: s.transport}
	answer, err := c.Do(q)
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // without the URL, which is a key for as long as it is good
	}
	if err != nil {
		return s.failed(ctx, tenant, name, what, err)
	}
	defer answer.Body.Close() // it has been read, or is of no use
	said, _ := io.ReadAll(io.LimitReader(answer.Body, maxComplaint))
	if answer.StatusCode/100 != 2 && answer.StatusCode != http.StatusNotFound {
		return &jobs.Error{Code: jobs.CodeUnavailable, Message: fmt.Sprintf("%s: S3: %s: %s", what, answer.Status, said), RetryAfterMS: 1000}
	}
	return nil
}
