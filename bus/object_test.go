package bus_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func TestObjects(t *testing.T) {
	s := bustest.Start(t)
	b := s.Connect()
	for _, content := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte("0123456789"), 100_000)} {
		for range 2 { // the second finds it there
			ref, err := b.PutObject(t.Context(), "default", bytes.NewReader(content))
			if err != nil || ref != (jobs.ObjectRef{Name: digest(content), SHA256: digest(content)}) {
				t.Fatalf("%d bytes: got %v, %v", len(content), ref, err)
			}
			r, err := b.GetObject(t.Context(), "default", ref)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes came back as %d, %v", len(content), len(got), err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	ref := jobs.ObjectRef{Name: digest([]byte("x")), SHA256: digest([]byte("x"))}
	if _, err := b.GetObject(t.Context(), "other", ref); code(err) != jobs.CodeNotFound {
		t.Errorf("another tenant's: got %v, want not_found", err)
	}
	if _, err := b.GetObject(t.Context(), "default", jobs.ObjectRef{Name: "no such"}); code(err) != jobs.CodeNotFound {
		t.Errorf("missing: got %v, want not_found", err)
	}
	names(t, s, 3)
}

// names fails unless the tenant's store holds n objects: nothing that was half put stays.
func names(t *testing.T, s *bustest.Server, n int) {
	t.Helper()
	js := bustest.JetStream(t, s.Plain())
	o, err := js.ObjectStore(t.Context(), jobs.ObjectBucket("default"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := o.List(t.Context())
	if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
		t.Fatal(err)
	}
	if len(l) != n {
		t.Errorf("%d objects are there, want %d", len(l), n)
		for _, i := range l {
			t.Log(i.Name)
		}
	}
}

// The same content from many at once is one object, and none is told of a fault.
func TestPutObjectAtOnce(t *testing.T) {
	s := bustest.Start(t)
	b := s.Connect()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := b.PutObject(t.Context(), "default", bytes.NewReader([]byte("the same"))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	names(t, s, 1)
}

// A source that fails is its own fault, as it said it, and leaves nothing.
func TestPutObjectFails(t *testing.T) {
	s := bustest.Start(t)
	b := s.Connect()
	for _, fault := range []error{errors.New("the guest lied"), io.ErrUnexpectedEOF} {
		r, w := io.Pipe()
		go func() {
			w.Write(make([]byte, 300_000))
			w.CloseWithError(fault)
		}()
		if _, err := b.PutObject(t.Context(), "default", r); !errors.Is(err, fault) {
			t.Errorf("got %v, want %v", err, fault)
		}
	}
	names(t, s, 0)
}

// noise is n bytes that are not kept anywhere.
func noise(n int64) io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{}), n) }

// meter looks at the heap while bytes pass.
type meter struct {
	n    int64
	peak uint64
}

func (m *meter) Write(b []byte) (int, error) {
	if m.n>>23 != (m.n+int64(len(b)))>>23 { // every 8 MiB
		var s runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&s)
		m.peak = max(m.peak, s.HeapAlloc)
	}
	m.n += int64(len(b))
	return len(b), nil
}

// A large object passes through; neither end, nor the server between them in this process, holds it.
func TestObjectLarge(t *testing.T) {
	const size = 160 << 20
	s := bustest.Start(t)
	b := s.Connect()
	in, out := &meter{}, &meter{}
	ref, err := b.PutObject(t.Context(), "default", io.TeeReader(noise(size), in))
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.GetObject(context.Background(), "default", ref)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(h, out), r); err != nil || out.n != size {
		t.Fatalf("%d bytes, %v", out.n, err)
	}
	if hex.EncodeToString(h.Sum(nil)) != ref.SHA256 {
		t.Error("it came back as another")
	}
	if in.peak > 64<<20 || out.peak > 140<<20 { // what flow control lets stand in two queues of this process
		t.Errorf("the heap grew to %d MiB going in and %d MiB coming out, of %d MiB", in.peak>>20, out.peak>>20, size>>20)
	}
	t.Logf("heap: %d MiB going in, %d MiB coming out", in.peak>>20, out.peak>>20)
}

// Whoever has enough of an object closes it, and nothing is left running.
func TestObjectClosedEarly(t *testing.T) {
	s := bustest.Start(t)
	b := s.Connect()
	ref, err := b.PutObject(t.Context(), "default", noise(4<<20))
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		r, err := b.GetObject(t.Context(), "default", ref)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// small makes a tenant's bucket, of a mebibyte.
func small(t *testing.T, nc *nats.Conn, tenant string) {
	t.Helper()
	js := bustest.JetStream(t, nc)
	if _, err := js.CreateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: jobs.ObjectBucket(tenant), MaxBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
}

// TestBucketAskedForAgain: a worker whose request for a bucket nobody answers, because its dispatcher has died with it or the answer is lost,
// asks again: what a job has to store is not given up for that.
func TestBucketAskedForAgain(t *testing.T) {
	s := bustest.StartGuarded(t)
	js := bustest.JetStream(t, s.As(s.Let(access.Operator, "op")))
	s.Dispatcher() // for the streams
	w := s.Worker("w1", s.Let(access.Worker, "w1"))
	dispatcher := s.As(s.Let(access.Operator, "dispatcher"))
	subscribe := func(subject string, answer func(m *nats.Msg)) {
		if _, err := dispatcher.Subscribe(access.FleetSubject(subject, "*"), answer); err != nil {
			t.Fatal(err)
		}
	}
	subscribe(access.LendSubject, func(m *nats.Msg) { _ = m.Respond([]byte(`{"jetstream": true}`)) })
	asked := 0
	subscribe(access.BucketSubject, func(m *nats.Msg) {
		if asked++; asked == 1 {
			return
		}
		if _, err := js.CreateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: jobs.ObjectBucket("acme"), MaxBytes: 1 << 20}); err != nil {
			t.Error(err)
		}
		_ = m.Respond([]byte(`{}`))
	})
	if err := dispatcher.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // as long as a worker has for it
	defer cancel()
	if _, err := w.PutObject(ctx, "acme", strings.NewReader("kept")); err != nil {
		t.Error(err)
	}
}
