package client_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

func file(t *testing.T, content []byte) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestObjects(t *testing.T) {
	s := bustest.Start(t)
	c, b := connect(t, s), s.Connect()
	if _, err := c.GetObject(t.Context(), jobs.ObjectRef{Name: "x"}); code(err) != jobs.CodeNotFound {
		t.Errorf("no store yet: got %v, want not_found", err)
	}
	for _, content := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte("0123456789"), 2<<20)} {
		sum := sha256.Sum256(content)
		want := jobs.ObjectRef{Name: hex.EncodeToString(sum[:]), SHA256: hex.EncodeToString(sum[:])}
		for range 2 { // the second finds it there
			if ref, err := c.PutObject(t.Context(), file(t, content)); err != nil || ref != want {
				t.Fatalf("%d bytes: got %v, %v", len(content), ref, err)
			}
		}
		// What a client puts a worker gets, and the other way round.
		if ref, err := b.PutObject(t.Context(), "default", bytes.NewReader(content)); err != nil || ref != want {
			t.Errorf("%d bytes: got %v, %v", len(content), ref, err)
		}
		for _, get := range []func() (io.ReadCloser, error){
			func() (io.ReadCloser, error) { return c.GetObject(t.Context(), want) },
			func() (io.ReadCloser, error) { return b.GetObject(t.Context(), "default", want) },
		} {
			r, err := get()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes came back as %d, %v", len(content), len(got), err)
			}
			r.Close()
		}
	}
	if _, err := c.GetObject(t.Context(), jobs.ObjectRef{Name: "x"}); code(err) != jobs.CodeNotFound {
		t.Errorf("missing: got %v, want not_found", err)
	}
}

// An object that is not what was promised is an error at its end, although the store finds it whole.
func TestObjectDigest(t *testing.T) {
	s := bustest.Start(t)
	c := connect(t, s)
	ref, err := c.PutObject(t.Context(), file(t, []byte("one")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bucket(t, s).PutBytes(t.Context(), ref.Name, []byte("another")); err != nil {
		t.Fatal(err)
	}
	r, err := c.GetObject(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadAll(r); err == nil || !strings.Contains(err.Error(), ref.SHA256) {
		t.Errorf("got %v, want an error that names the digest", err)
	}
}

// What lies under a digest and has another is not taken for it, neither by a client nor by a worker: it is stored again.
func TestObjectPoisoned(t *testing.T) {
	s := bustest.Start(t)
	c, b := connect(t, s), s.Connect()
	for name, put := range map[string]func(string) (jobs.ObjectRef, error){
		"client": func(v string) (jobs.ObjectRef, error) { return c.PutObject(t.Context(), file(t, []byte(v))) },
		"worker": func(v string) (jobs.ObjectRef, error) {
			return b.PutObject(t.Context(), "default", strings.NewReader(v))
		},
	} {
		ref, err := put(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bucket(t, s).PutBytes(t.Context(), ref.Name, []byte("poison")); err != nil {
			t.Fatal(err)
		}
		if again, err := put(name); err != nil || again != ref {
			t.Errorf("%s: got %v, %v", name, again, err)
		}
		if got := read(t, c, ref); got != name {
			t.Errorf("%s: %q is under the digest", name, got)
		}
	}
}

// A file that changes while it is put is named by what was sent. (This one is another each time it is read.)
func TestObjectChanges(t *testing.T) {
	f, err := os.Open("/proc/sys/kernel/random/uuid")
	if err != nil {
		t.Skipf("no file that changes here: %v", err)
	}
	defer f.Close()
	c := connect(t, bustest.Start(t))
	ref, err := c.PutObject(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(read(t, c, ref)))
	if got := hex.EncodeToString(sum[:]); got != ref.SHA256 || got != ref.Name {
		t.Errorf("%v names what has the digest %s", ref, got)
	}
}

func read(t *testing.T, c *client.Client, ref jobs.ObjectRef) string {
	t.Helper()
	r, err := c.GetObject(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// bucket is the tenant's, as any client of NATS has it.
func bucket(t *testing.T, s *bustest.Server) jetstream.ObjectStore {
	t.Helper()
	js, err := jetstream.New(s.Plain())
	if err != nil {
		t.Fatal(err)
	}
	o, err := js.ObjectStore(t.Context(), jobs.ObjectBucket("default"))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// Whoever comes first makes the store, and it is the same store.
func TestObjectStoreIsOne(t *testing.T) {
	s := bustest.Start(t)
	made, b := connect(t, s, client.Tenant("client")), s.Connect()
	if _, err := made.PutObject(t.Context(), file(t, []byte("x"))); err != nil {
		t.Fatal(err)
	}
	if _, err := b.PutObject(t.Context(), "worker", strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(s.Plain())
	if err != nil {
		t.Fatal(err)
	}
	config := func(tenant string) jetstream.StreamConfig {
		st, err := js.Stream(t.Context(), "OBJ_"+jobs.ObjectBucket(tenant))
		if err != nil {
			t.Fatal(err)
		}
		return st.CachedInfo().Config
	}
	diff := cmp.Diff(config("client"), config("worker"), cmpopts.IgnoreFields(jetstream.StreamConfig{}, "Name", "Subjects", "Metadata"))
	if diff != "" {
		t.Error(diff)
	}
	if c := config("client"); c.MaxAge <= 0 || c.MaxBytes <= 0 {
		t.Error("objects are kept for ever, or without end")
	}
}
