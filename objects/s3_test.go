package objects_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
	"github.com/paddockvm/paddock/objects/objectstest"
	"github.com/paddockvm/paddock/test/harness"
)

// openS3 gives stores of one server, each with a prefix of its own.
func openS3(t *testing.T) func(t *testing.T, change func(*objects.S3Config)) *objects.S3 {
	t.Helper()
	server := harness.StartS3(t)
	var n atomic.Int64
	return func(t *testing.T, change func(*objects.S3Config)) *objects.S3 {
		t.Helper()
		c := objects.S3Config{
			Endpoint: server.Endpoint, Bucket: server.Bucket, Prefix: "paddock/" + strings.Repeat("x", int(n.Add(1))), Region: "us-east-1",
			Credentials: server.Credentials, PathStyle: true, Dir: t.TempDir(),
		}
		change(&c)
		s, err := objects.NewS3(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			s.Close()
			if c.Dir == "" {
				return
			}
			if l, err := os.ReadDir(c.Dir); err != nil || len(l) > 0 {
				t.Errorf("left behind: %v, %v", l, err)
			}
		})
		return s
	}
}

// counting counts what is read.
type counting struct {
	io.ReaderAt

	n atomic.Int64
}

func (c *counting) ReadAt(b []byte, at int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(b, at)
	c.n.Add(int64(n))
	return n, err
}

func TestS3(t *testing.T) {
	open := openS3(t)
	as := func(*objects.S3Config) {}
	objectstest.Run(t, func(t *testing.T) objects.Store { return open(t, as) })

	t.Run("collect", func(t *testing.T) {
		s := open(t, as)
		kept, gone := objectstest.Put(t, s, "a", []byte("x")), objectstest.Put(t, s, "a", []byte("y"))
		n := &needed{list: map[string][]string{"a": {kept}}}
		c := objects.NewCollector(s, n.named, 0, nil)
		if err := c.Collect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Stat(t.Context(), "a", kept); err != nil {
			t.Error(err)
		}
		if _, err := s.Stat(t.Context(), "a", gone); objectstest.Code(err) != jobs.CodeNotFound {
			t.Errorf("it is there: %v", err)
		}
	})
	t.Run("full", func(t *testing.T) {
		s := open(t, func(c *objects.S3Config) { c.TenantBytes = 1000 })
		objectstest.Put(t, s, "a", make([]byte, 600))
		if _, err := s.Put(t.Context(), "a", bytes.NewReader(make([]byte, 601))); objectstest.Code(err) != jobs.CodeQuota {
			t.Errorf("got %v, want quota_exceeded", err)
		}
		objectstest.Put(t, s, "a", make([]byte, 600)) // is there
		objectstest.Put(t, s, "a", make([]byte, 400))
		objectstest.Put(t, s, "b", make([]byte, 601))
	})
	t.Run("large", func(t *testing.T) { // in parts
		s := open(t, as)
		content := bytes.Repeat([]byte("0123456789abcdef"), 5<<20/2)
		name := objectstest.Put(t, s, "a", content)
		if b, err := objectstest.Read(t.Context(), s, "a", name); err != nil || !bytes.Equal(b, content) {
			t.Errorf("%d bytes came back, %v", len(b), err)
		}
		if err := s.Sweep(t.Context(), "a", time.Now().Add(time.Hour)); err != nil {
			t.Error(err)
		}
		if _, err := s.Stat(t.Context(), "a", name); err != nil {
			t.Error(err)
		}
	})
	t.Run("gathered already", func(t *testing.T) { // is not gathered again: it is read for its digest, and to be sent
		s := open(t, func(c *objects.S3Config) { c.Dir = "" })
		t.Setenv("TMPDIR", "/no/such/directory")
		for _, content := range [][]byte{[]byte("x"), bytes.Repeat([]byte("0123456789abcdef"), 5<<20/4)} {
			r := &counting{ReaderAt: bytes.NewReader(content)}
			if err := s.PutAs(t.Context(), "a", objectstest.Digest(content), int64(len(content)), r); err != nil {
				t.Error(err)
			}
			if n := r.n.Load(); n > 2*int64(len(content)) {
				t.Errorf("%d bytes were read of %d", n, len(content))
			}
			if b, err := objectstest.Read(t.Context(), s, "a", objectstest.Digest(content)); err != nil || !bytes.Equal(b, content) {
				t.Errorf("%d bytes came back, %v", len(b), err)
			}
		}
	})
	t.Run("wrong key", func(t *testing.T) {
		s := open(t, func(c *objects.S3Config) {
			c.Credentials = t.TempDir() + "/c"
			if err := os.WriteFile(c.Credentials, []byte("[default]\naws_access_key_id = paddock-test\naws_secret_access_key = not the one\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		})
		_, err := s.Put(t.Context(), "a", strings.NewReader("x"))
		if objectstest.Code(err) != jobs.CodeUnavailable || strings.Contains(err.Error(), "not the one") {
			t.Errorf("got %v, want unavailable, and no secret", err)
		}
	})
	t.Run("context", func(t *testing.T) {
		s := open(t, as)
		ctx, cancel := context.WithCancelCause(t.Context())
		enough := errors.New("enough")
		cancel(enough)
		if _, err := s.Put(ctx, "a", strings.NewReader("x")); !errors.Is(err, enough) {
			t.Errorf("got %v, want %v", err, enough)
		}
	})
	t.Run("urls", func(t *testing.T) {
		s := open(t, as)
		content := []byte("of a worker")
		put, err := s.PutURL(t.Context(), "a", objectstest.Digest(content), int64(len(content)))
		if err != nil || put == nil {
			t.Fatal(put, err)
		}
		if err := put.Put(t.Context(), bytes.NewReader([]byte("of a workeR")), int64(len(content))); objectstest.Code(err) != jobs.CodeUnavailable {
			t.Errorf("others' bytes: got %v, want them refused", err)
		}
		if err := put.Put(t.Context(), bytes.NewReader(content), int64(len(content))); err != nil {
			t.Fatal(err)
		}
		if again, err := s.PutURL(t.Context(), "a", objectstest.Digest(content), int64(len(content))); err != nil || again != nil {
			t.Errorf("what is there: got %v, %v", again, err)
		}
		get, err := s.GetURL(t.Context(), "a", objectstest.Digest(content))
		if err != nil {
			t.Fatal(err)
		}
		r, err := get.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		b := make([]byte, 100)
		if n, _ := r.Read(b); string(b[:n]) != string(content) {
			t.Errorf("got %q", b[:n])
		}
		get.URL = strings.Replace(get.URL, "/a/", "/b/", 1) // another tenant's
		if _, err := get.Get(t.Context()); err == nil {
			t.Error("the URL is good for another object")
		}
		if _, err := s.GetURL(t.Context(), "a", objectstest.Digest([]byte("none"))); objectstest.Code(err) != jobs.CodeNotFound {
			t.Errorf("of none: got %v, want not_found", err)
		}
	})
	http.DefaultClient.CloseIdleConnections()
}

func TestS3Config(t *testing.T) {
	for what, c := range map[string]objects.S3Config{
		"no endpoint": {Bucket: "b"}, "no scheme": {Endpoint: "s3.example", Bucket: "b"}, "a path": {Endpoint: "http://s3.example/b", Bucket: "b"},
		"no bucket": {Endpoint: "http://s3.example"}, "no CA": {Endpoint: "https://s3.example", Bucket: "b", CA: "/no/such/file"},
		"no key": {Endpoint: "https://s3.example", Bucket: "b", AccessKey: "-"},
	} {
		if c.AccessKey == "" {
			c.AccessKey, c.SecretKey = "a", "b"
		}
		if s, err := objects.NewS3(c); err == nil {
			s.Close()
			t.Errorf("%s is taken", what)
		}
	}
}
