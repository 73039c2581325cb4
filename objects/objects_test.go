package objects_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
	"github.com/paddockvm/paddock/objects/objectstest"
	"github.com/paddockvm/paddock/test/leak"
)

func TestMain(m *testing.M) {
	leak.VerifyTestMain(m, leak.NATS()...)
}

func jetStream(t *testing.T) jetstream.JetStream {
	t.Helper()
	js := bustest.JetStream(t, bustest.Start(t).Plain())
	return js
}

func TestJetStream(t *testing.T) {
	objectstest.Run(t, func(t *testing.T) objects.Store { return objects.NewJetStream(jetStream(t)) })
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
			s := objects.NewJetStream(js)
			ref, err := s.Put(t.Context(), "default", strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			r, err := s.Get(t.Context(), "default", ref.Name)
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
	s := objects.NewJetStream(js)
	for _, size := range []int{1<<20 + 1, 12 << 20} { // the second at more than one pace
		_, err := s.Put(t.Context(), "default", bytes.NewReader(make([]byte, size)))
		e, ok := errors.AsType[*jobs.Error](err)
		if !ok || e.Code != jobs.CodeQuota || e.RetryAfterMS == 0 {
			t.Fatalf("%d bytes: got %v, want quota_exceeded", size, err)
		}
	}
	if _, err := s.Put(t.Context(), "default", bytes.NewReader(make([]byte, 600<<10))); err != nil {
		t.Errorf("what fits: %v", err)
	}
}

// Whoever ends the context is told so, not that something is wrong.
func TestContext(t *testing.T) {
	s := objects.NewJetStream(jetStream(t))
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	r := io.MultiReader(strings.NewReader("x"), reader(func([]byte) (int, error) { cancel(enough); return 0, io.EOF }), strings.NewReader(strings.Repeat("x", 1<<20)))
	if _, err := s.Put(ctx, "default", r); !errors.Is(err, enough) {
		t.Errorf("put: got %v", err)
	}
	if _, err := s.Get(ctx, "default", "x"); !errors.Is(err, enough) {
		t.Errorf("get: got %v", err)
	}
	if _, err := s.Get(t.Context(), "default", "x"); objectstest.Code(err) != jobs.CodeNotFound {
		t.Errorf("get: got %v, want not_found", err)
	}
}

type reader func([]byte) (int, error)

func (r reader) Read(b []byte) (int, error) { return r(b) }

// What lies under a digest and has another is none, and is put again.
func TestPoisoned(t *testing.T) {
	js := jetStream(t)
	s := objects.NewJetStream(js)
	name := objectstest.Put(t, s, "default", []byte("good"))
	o, err := js.ObjectStore(t.Context(), jobs.ObjectBucket("default"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.PutString(t.Context(), name, "poison"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stat(t.Context(), "default", name); objectstest.Code(err) != jobs.CodeNotFound {
		t.Errorf("stat: got %v, want not_found", err)
	}
	if _, _, err := s.Piece(t.Context(), "default", name, 0, 10); objectstest.Code(err) != jobs.CodeNotFound {
		t.Errorf("piece: got %v, want not_found", err)
	}
	objectstest.Put(t, s, "default", []byte("good"))
	if b, err := objectstest.Read(t.Context(), s, "default", name); err != nil || string(b) != "good" {
		t.Errorf("got %q, %v", b, err)
	}
}

// Links lead nowhere: neither to another tenant's object, nor to another name.
func TestLinks(t *testing.T) {
	js := jetStream(t)
	s := objects.NewJetStream(js)
	secret := objectstest.Put(t, s, "victim", []byte("secret"))
	objectstest.Put(t, s, "default", []byte("mine"))
	theirs, err := js.ObjectStore(t.Context(), jobs.ObjectBucket("victim"))
	if err != nil {
		t.Fatal(err)
	}
	mine, err := js.ObjectStore(t.Context(), jobs.ObjectBucket("default"))
	if err != nil {
		t.Fatal(err)
	}
	info, err := theirs.GetInfo(t.Context(), secret)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mine.AddLink(t.Context(), secret, info); err != nil {
		t.Fatal(err)
	}
	if _, err := mine.AddBucketLink(t.Context(), strings.Repeat("0", 64), theirs); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{secret, strings.Repeat("0", 64)} {
		if _, err := s.Get(t.Context(), "default", name); objectstest.Code(err) != jobs.CodeNotFound {
			t.Errorf("get: got %v, want not_found", err)
		}
		if _, _, err := s.Piece(t.Context(), "default", name, 0, 10); objectstest.Code(err) != jobs.CodeNotFound {
			t.Errorf("piece: got %v, want not_found", err)
		}
		if _, err := s.Stat(t.Context(), "default", name); objectstest.Code(err) != jobs.CodeNotFound {
			t.Errorf("stat: got %v, want not_found", err)
		}
	}
	objectstest.Put(t, s, "default", []byte("secret")) // its own, in place of the link
	if b, err := objectstest.Read(t.Context(), s, "default", secret); err != nil || string(b) != "secret" {
		t.Errorf("got %q, %v", b, err)
	}
}

// What was begun and never ended goes with Sweep, and nothing else.
func TestSweep(t *testing.T) {
	js := jetStream(t)
	s := objects.NewJetStream(js)
	name := objectstest.Put(t, s, "default", bytes.Repeat([]byte("kept"), 100_000))
	gone := objectstest.Put(t, s, "default", []byte("deleted"))
	i, err := s.Stat(t.Context(), "default", gone)
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := s.Delete(t.Context(), "default", i); !ok || err != nil {
		t.Fatal(ok, err)
	}
	bucket := jobs.ObjectBucket("default")
	o, err := js.ObjectStore(t.Context(), bucket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.PutString(t.Context(), "tmp-x", "never named"); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "$O."+bucket+".C.lost", []byte("of somebody who died")); err != nil {
		t.Fatal(err)
	}
	messages := func() uint64 {
		st, err := js.Stream(t.Context(), "OBJ_"+bucket)
		if err != nil {
			t.Fatal(err)
		}
		return st.CachedInfo().State.Msgs
	}
	before := messages()
	if err := s.Sweep(t.Context(), "default", time.Now().Add(-time.Hour)); err != nil || messages() != before {
		t.Errorf("what is new: %v, %d messages, and there were %d", err, messages(), before)
	}
	for range 2 { // the second finds the chunks of the temporary one
		if err := s.Sweep(t.Context(), "default", time.Now().Add(8*24*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if n := messages(); n != 5 { // four chunks of 128 KiB, and the name
		t.Errorf("%d messages are left, want 5", n)
	}
	if b, err := objectstest.Read(t.Context(), s, "default", name); err != nil || len(b) != 400_000 {
		t.Errorf("got %d bytes, %v", len(b), err)
	}
}

// The age that Paddock's buckets once had goes, so that it does not take what a job waits for; another stays.
func TestFormerAge(t *testing.T) {
	for age, want := range map[time.Duration]time.Duration{7 * 24 * time.Hour: 0, 24 * time.Hour: 24 * time.Hour} {
		js := jetStream(t)
		bucket(t, js, jetstream.ObjectStoreConfig{TTL: age})
		s := objects.NewJetStream(js)
		objectstest.Put(t, s, "default", []byte("x"))
		objectstest.Put(t, s, "default", []byte("x"))
		if _, err := s.List(t.Context(), "default"); err != nil {
			t.Fatal(err)
		}
		st, err := js.Stream(t.Context(), "OBJ_"+jobs.ObjectBucket("default"))
		if err != nil {
			t.Fatal(err)
		}
		if got := st.CachedInfo().Config.MaxAge; got != want {
			t.Errorf("an age of %v has become %v, want %v", age, got, want)
		}
	}
}

// What was set aside for a tenant who has nothing any more is there for others; who comes back has it again, as far as it is.
func TestRoomOfWhoIsGone(t *testing.T) {
	const mib = 1 << 20
	srv, err := server.NewServer(&server.Options{
		DontListen: true, NoLog: true, NoSigs: true, JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 4<<30 + 32*mib,
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	nc, err := nats.Connect("", nats.InProcessServer(srv), nats.Timeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js := bustest.JetStream(t, nc)
	s := objects.NewJetStream(js)
	room := func(when, tenant string, want int64) {
		t.Helper()
		st, err := js.Stream(t.Context(), "OBJ_"+jobs.ObjectBucket(tenant))
		if err != nil {
			t.Fatal(err)
		}
		if got := st.CachedInfo().Config.MaxBytes; got != want {
			t.Errorf("%s: %d MiB are set aside for %s, want %d", when, got/mib, tenant, want/mib)
		}
	}
	sweep := func(before time.Time) {
		t.Helper()
		if err := s.Sweep(t.Context(), "a", before); err != nil {
			t.Fatal(err)
		}
	}
	collect := objects.NewCollector(s, (&needed{}).named, 0, nil)

	name := objectstest.Put(t, s, "a", []byte("x"))
	sweep(time.Now().Add(8 * 24 * time.Hour))
	room("with an object", "a", 4<<30)
	if _, err := s.Put(t.Context(), "b", strings.NewReader("y")); objectstest.Code(err) != jobs.CodeQuota {
		t.Fatalf("there is room beside it: %v", err)
	}
	if err := collect.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stat(t.Context(), "a", name); objectstest.Code(err) != jobs.CodeNotFound {
		t.Fatalf("it is there: %v", err)
	}
	sweep(time.Now().Add(6 * 24 * time.Hour))
	room("just after", "a", 4<<30)
	sweep(time.Now().Add(8 * 24 * time.Hour))
	room("when nothing has been there for a while", "a", 64*mib)

	objectstest.Put(t, s, "b", []byte("y"))
	room("with what was another's", "b", 2<<30)
	objectstest.Put(t, s, "a", []byte("z"))
	room("back again", "a", 2<<30)
	sweep(time.Now().Add(8 * 24 * time.Hour))
	room("with an object again", "a", 2<<30)
}

// Whoever gives back room of a bucket that has come to have something meanwhile, because it was held up, loses nothing of that.
func TestRoomGivenBackLate(t *testing.T) {
	js := jetStream(t)
	s := objects.NewJetStream(js)
	content := bytes.Repeat([]byte("x"), 300_000)
	name := objectstest.Put(t, s, "default", content)
	st, err := js.Stream(t.Context(), "OBJ_"+jobs.ObjectBucket("default"))
	if err != nil {
		t.Fatal(err)
	}
	c := st.CachedInfo().Config
	c.MaxBytes = 1000
	if _, err := js.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if b, err := objectstest.Read(t.Context(), s, "default", name); err != nil || !bytes.Equal(b, content) {
		t.Errorf("%d bytes of it are there: %v", len(b), err)
	}
}

// A bucket whose maker has chosen its size keeps that, whatever is in it.
func TestRoomOfAnother(t *testing.T) {
	js := jetStream(t)
	bucket(t, js, jetstream.ObjectStoreConfig{MaxBytes: 100 << 20})
	if err := objects.NewJetStream(js).Sweep(t.Context(), "default", time.Now().Add(8*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	st, err := js.Stream(t.Context(), "OBJ_"+jobs.ObjectBucket("default"))
	if err != nil {
		t.Fatal(err)
	}
	if got := st.CachedInfo().Config.MaxBytes; got != 100<<20 {
		t.Errorf("it has %d bytes now", got)
	}
}
