package bus_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
	"github.com/paddockvm/paddock/test/harness"
)

// Where S3 keeps objects, a worker without a key of it, and a tenant with nothing but its credential, put and get them, each what the
// other has put; nothing is in JetStream.
func TestObjectsInS3(t *testing.T) {
	server := harness.StartS3(t)
	store, err := objects.NewS3(objects.S3Config{
		Endpoint: server.Endpoint, Bucket: server.Bucket, Region: "us-east-1", Credentials: server.Credentials, PathStyle: true, Dir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	s := bustest.StartGuarded(t)
	d, err := bus.Connect(t.Context(), bus.Config{Server: s.Server, Name: "dispatcher", S3: store, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	bustest.Serve(t, d, &bustest.Brain{})
	w := s.Worker("w1", s.Let(access.Worker, "w1"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	of := func(ref jobs.ObjectRef, get func(context.Context, string, jobs.ObjectRef) (io.ReadCloser, error)) string {
		t.Helper()
		r, err := get(ctx, "acme", ref)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	acme := &tenantOf{t, s.As(s.Let(access.Tenant, "acme"), nats.CustomInboxPrefix("_INBOX_acme")), "acme"}
	for _, content := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte("0123456789"), 500_000)} {
		for range 2 {
			ref, err := w.PutObject(ctx, "acme", bytes.NewReader(content))
			if err != nil || ref.SHA256 != digest(content) {
				t.Fatalf("%d bytes: %v, %v", len(content), ref, err)
			}
			if got := of(ref, w.GetObject); got != string(content) {
				t.Errorf("%d bytes came back as %d", len(content), len(got))
			}
		}
		_, piece := acme.ask("get", "", fmt.Appendf(nil, `{"sha256":%q,"max_bytes":100}`, digest(content)))
		if !bytes.Equal(piece, content[:min(100, len(content))]) {
			t.Errorf("the tenant got %q", piece)
		}
	}
	content := []byte("of the tenant")
	if r := acme.put(digest(content), len(content), 0, content); r.Error != nil || !r.Stored {
		t.Fatalf("put: %+v", r)
	}
	ref := jobs.ObjectRef{Name: digest(content), SHA256: digest(content)}
	if got := of(ref, w.GetObject); got != string(content) {
		t.Errorf("the worker got %q", got)
	}
	if got := of(ref, d.GetObject); got != string(content) {
		t.Errorf("the dispatcher got %q", got)
	}
	if _, err := w.GetObject(ctx, "other", ref); code(err) != jobs.CodeNotFound {
		t.Errorf("another tenant's: got %v, want not_found", err)
	}
	js := bustest.JetStream(t, s.As(s.Let(access.Operator, "ada")))
	if _, err := js.ObjectStore(ctx, jobs.ObjectBucket("acme")); err == nil {
		t.Error("JetStream has a bucket of the tenant")
	}
}
