package objects_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
)

func TestMain(m *testing.M) {
	// nats.go v1.55.0: where an object is stored so quickly that the Put's own context is cleaned up before this goroutine runs, it
	// waits on a channel that is nil by then.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/nats-io/nats.go/jetstream.(*jetStream).resetPendingAcksOnReconnect"))
}

func jetStream(t *testing.T) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(bustest.Start(t).Plain())
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func code(err error) jobs.Code {
	if e, ok := errors.AsType[*jobs.Error](err); ok {
		return e.Code
	}
	return ""
}

// bucket makes the tenant's bucket as an operator would.
func bucket(t *testing.T, js jetstream.JetStream, c jetstream.ObjectStoreConfig) {
	t.Helper()
	c.Bucket = jobs.ObjectBucket("default")
	if _, err := js.CreateObjectStore(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

// A bucket that somebody else has made is used as it is.
func TestBucketOfAnother(t *testing.T) {
	for name, c := range map[string]jetstream.ObjectStoreConfig{
		"in memory": {Storage: jetstream.MemoryStorage}, "small": {MaxBytes: 1 << 20}, "for ever": {}, "described": {Description: "mine", Compression: true},
	} {
		t.Run(name, func(t *testing.T) {
			js := jetStream(t)
			bucket(t, js, c)
			s := objects.Of(js, "default")
			ref, err := s.Put(t.Context(), strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			r, err := s.Get(t.Context(), ref.Name)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if b, err := io.ReadAll(r); err != nil || string(b) != "x" {
				t.Errorf("got %q, %v", b, err)
			}
			st, err := js.Stream(t.Context(), "OBJ_"+jobs.ObjectBucket("default"))
			if err != nil {
				t.Fatal(err)
			}
			if got := st.CachedInfo().Config; got.Storage != c.Storage || got.Description != c.Description || got.MaxAge != 0 {
				t.Errorf("it is another now: %+v", got)
			}
		})
	}
}

// What does not fit is refused with a code, leaves nothing, and does not hinder what does.
func TestFull(t *testing.T) {
	js := jetStream(t)
	bucket(t, js, jetstream.ObjectStoreConfig{MaxBytes: 1 << 20})
	s := objects.Of(js, "default")
	for _, size := range []int{1<<20 + 1, 12 << 20} { // the second at more than one pace
		_, err := s.Put(t.Context(), bytes.NewReader(make([]byte, size)))
		e, ok := errors.AsType[*jobs.Error](err)
		if !ok || e.Code != jobs.CodeQuota || e.RetryAfterMS == 0 {
			t.Fatalf("%d bytes: got %v, want quota_exceeded", size, err)
		}
	}
	if _, err := s.Put(t.Context(), bytes.NewReader(make([]byte, 600<<10))); err != nil {
		t.Errorf("what fits: %v", err)
	}
}

// Whoever ends the context is told so, not that something is wrong.
func TestContext(t *testing.T) {
	s := objects.Of(jetStream(t), "default")
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	r := io.MultiReader(strings.NewReader("x"), reader(func([]byte) (int, error) { cancel(enough); return 0, io.EOF }), strings.NewReader(strings.Repeat("x", 1<<20)))
	if _, err := s.Put(ctx, r); !errors.Is(err, enough) {
		t.Errorf("put: got %v", err)
	}
	if _, err := s.Get(ctx, "x"); !errors.Is(err, enough) {
		t.Errorf("get: got %v", err)
	}
	if _, err := s.Get(t.Context(), "x"); code(err) != jobs.CodeNotFound {
		t.Errorf("get: got %v, want not_found", err)
	}
}

type reader func([]byte) (int, error)

func (r reader) Read(b []byte) (int, error) { return r(b) }
