package objects_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
	"github.com/paddockvm/paddock/objects/objectstest"
	"github.com/paddockvm/paddock/test/harness"
)

// What a tenant's objects take is counted once, not for each that is put or deleted, and known then.
func TestS3Usage(t *testing.T) {
	server := harness.StartS3(t)
	p := startProxy(t, server.Endpoint, httptest.NewServer)
	var lists atomic.Int64
	p.see(func(r *http.Request) {
		if r.Method == http.MethodGet && r.URL.Query().Has("list-type") {
			lists.Add(1)
		}
	})
	open := func(t *testing.T, prefix string) *objects.S3 {
		t.Helper()
		s, err := objects.NewS3(objects.S3Config{
			Endpoint: p.URL, Bucket: server.Bucket, Prefix: prefix, Region: "us-east-1", Credentials: server.Credentials, PathStyle: true, Dir: t.TempDir(), TenantBytes: 1000,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	}
	of := func(n, what int) []byte { return bytes.Repeat([]byte{byte(what)}, n) }
	full := func(t *testing.T, s *objects.S3, n int) {
		t.Helper()
		if _, err := s.Put(t.Context(), "a", bytes.NewReader(of(n, 'z'))); objectstest.Code(err) != jobs.CodeQuota {
			t.Errorf("%d bytes more: got %v, want quota_exceeded", n, err)
		}
	}

	t.Run("put and delete", func(t *testing.T) {
		s := open(t, "delete/")
		objectstest.Put(t, s, "a", of(300, 'x'))
		before := lists.Load()
		for i := range 5 {
			name := objectstest.Put(t, s, "a", of(600, i))
			full(t, s, 101)
			info, err := s.Stat(t.Context(), "a", name)
			if err != nil {
				t.Fatal(err)
			}
			if ok, err := s.Delete(t.Context(), "a", info); err != nil || !ok {
				t.Fatal(ok, err)
			}
		}
		if n := lists.Load() - before; n > 0 {
			t.Errorf("all objects were listed %d times", n)
		}
		full(t, open(t, "delete/"), 701) // by who comes after
	})
	t.Run("at once", func(t *testing.T) {
		s := open(t, "at-once/")
		before := lists.Load()
		var wg sync.WaitGroup
		var taken atomic.Int64
		for i := range 12 {
			wg.Go(func() {
				if _, err := s.Put(t.Context(), "a", bytes.NewReader(of(300, i))); err == nil {
					taken.Add(1)
				} else if objectstest.Code(err) != jobs.CodeQuota {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := lists.Load() - before; taken.Load() != 3 || n != 1 {
			t.Errorf("%d of 300 bytes were taken, want 3; all were listed %d times, want once", taken.Load(), n)
		}
	})
	t.Run("lent", func(t *testing.T) { // to a worker that asks again and again for the same, and then never puts another
		s := open(t, "lent/")
		grant := func(content []byte) {
			t.Helper()
			for range 4 {
				if _, err := s.PutURL(t.Context(), "a", objectstest.Digest(content), int64(len(content))); err != nil {
					t.Fatal(err)
				}
			}
		}
		grant(of(400, 'x'))
		grant(of(400, 'y'))
		full(t, s, 300)
		if _, err := s.List(t.Context(), "a"); err != nil { // as Collector does
			t.Fatal(err)
		}
		objectstest.Put(t, s, "a", of(1000, 'x'))
	})
	t.Run("fails", func(t *testing.T) {
		s := open(t, "fails/")
		for i := range 5 {
			name := objectstest.Digest(of(600, i))
			if err := s.PutAs(t.Context(), "a", name, 600, bytes.NewReader(of(600, 'x'))); objectstest.Code(err) != jobs.CodeInvalid {
				t.Errorf("got %v, want invalid", err)
			}
		}
		objectstest.Put(t, s, "a", of(1000, 'x'))
	})
	t.Run("counted meanwhile", func(t *testing.T) { // some are put while they are counted
		s := open(t, "many/")
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				if _, err := s.Put(t.Context(), "a", bytes.NewReader(fmt.Append(nil, "object ", i))); err != nil {
					t.Error(err)
				}
				if _, err := s.List(t.Context(), "a"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		l, err := s.List(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		left := 1000
		for _, i := range l {
			left -= int(i.Size)
		}
		full(t, s, left+1)
		objectstest.Put(t, s, "a", of(left, 'z'))
	})
}
