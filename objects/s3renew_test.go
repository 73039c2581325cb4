package objects_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
	"github.com/paddockvm/paddock/objects/objectstest"
	"github.com/paddockvm/paddock/test/harness"
)

// A dispatcher that does not lead any more may go on with what it was about to do, however late: an object that it had found old, and that
// the one who leads has renewed since, stays. Where its request comes to S3 before that is renewed, whoever renews hears that it is gone.
func TestS3Deposed(t *testing.T) {
	server := harness.StartS3(t)
	open := func(t *testing.T, endpoint, prefix string) *objects.S3 {
		t.Helper()
		s, err := objects.NewS3(objects.S3Config{
			Endpoint: endpoint, Bucket: server.Bucket, Prefix: prefix, Region: "us-east-1", Credentials: server.Credentials, PathStyle: true, Dir: t.TempDir(),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	}
	// deposed has a dispatcher delete the only object of a tenant, through a proxy that holds that up until the test lets it go.
	deposed := func(t *testing.T, prefix string) (leads *objects.S3, name string, letGo func(), over func() bool) {
		t.Helper()
		p := startProxy(t, server.Endpoint, httptest.NewServer)
		leads = open(t, server.Endpoint, prefix)
		was := open(t, p.URL, prefix)
		name = objectstest.Put(t, leads, "a", []byte("x"))
		l, err := was.List(t.Context(), "a")
		if err != nil || len(l) != 1 {
			t.Fatal(l, err)
		}
		held, going, ended := make(chan struct{}, 1), make(chan struct{}), make(chan bool)
		p.see(func(r *http.Request) {
			if r.Method == http.MethodDelete && strings.HasSuffix(r.URL.Path, name) {
				held <- struct{}{}
				<-going
			}
		})
		go func() {
			ok, err := was.Delete(t.Context(), "a", l[0])
			if ok != (err == nil) {
				t.Errorf("it was deleted %v, and %v", ok, err)
			}
			ended <- ok
		}()
		<-held
		return leads, name, func() { close(going) }, func() bool { return <-ended }
	}

	t.Run("late", func(t *testing.T) {
		t.Parallel()
		leads, name, letGo, over := deposed(t, "late/")
		time.Sleep(1100 * time.Millisecond) // S3 tells whole seconds
		if _, err := leads.Renew(t.Context(), "a", name); err != nil {
			t.Error(err)
		}
		letGo()
		if over() {
			t.Error("it says that it has deleted the object")
		}
		if b, err := objectstest.Read(t.Context(), leads, "a", name); err != nil || string(b) != "x" {
			t.Errorf("what was renewed is gone: %q, %v", b, err)
		}
	})
	t.Run("in time", func(t *testing.T) {
		t.Parallel()
		leads, name, letGo, over := deposed(t, "in-time/")
		renewed := make(chan error)
		go func() {
			_, err := leads.Renew(t.Context(), "a", name)
			renewed <- err
		}()
		select {
		case err := <-renewed:
			t.Fatalf("an object that is about to be deleted was renewed: %v", err)
		case <-time.After(500 * time.Millisecond):
		}
		letGo()
		if !over() {
			t.Error("it was not deleted")
		}
		if err := <-renewed; objectstest.Code(err) != jobs.CodeNotFound {
			t.Errorf("who renews it hears %v, want not_found", err)
		}
		objectstest.Put(t, leads, "a", []byte("x"))
		if b, err := objectstest.Read(t.Context(), leads, "a", name); err != nil || string(b) != "x" {
			t.Errorf("put again: %q, %v", b, err)
		}
	})
	t.Run("what is left", func(t *testing.T) { // of one that is gone; of one that is there, it is needed
		t.Parallel()
		p := startProxy(t, server.Endpoint, httptest.NewServer)
		s := open(t, p.URL, "left/")
		var deleted []string
		p.see(func(r *http.Request) {
			if r.Method == http.MethodDelete {
				deleted = append(deleted, r.URL.Path)
			}
		})
		gone, kept := objectstest.Put(t, s, "a", []byte("x")), objectstest.Put(t, s, "a", []byte("y"))
		for _, name := range []string{gone, kept} {
			if _, err := s.Renew(t.Context(), "a", name); err != nil {
				t.Fatal(err)
			}
		}
		i, err := s.Stat(t.Context(), "a", gone)
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := s.Delete(t.Context(), "a", i); err != nil || !ok {
			t.Fatal(ok, err)
		}
		if err := s.Sweep(t.Context(), "a", time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		at := "/" + server.Bucket + "/left/a/" + gone
		if want := []string{at, at + ".condemned", at + ".renewed"}; !slices.Equal(deleted, want) {
			t.Errorf("deleted were %v, want %v", deleted, want)
		}
	})
}
