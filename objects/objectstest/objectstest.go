// Package objectstest says what every objects.Store does. It imports objects and jobs.
package objectstest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
)

// Code is an error's, as callers see it.
func Code(err error) jobs.Code {
	if e, ok := errors.AsType[*jobs.Error](err); ok {
		return e.Code
	}
	return ""
}

// Digest is the name of what is stored.
func Digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Read reads an object whole.
func Read(ctx context.Context, s objects.Store, tenant, name string) ([]byte, error) {
	r, err := s.Get(ctx, tenant, name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

// Put puts, and fails the test where that fails.
func Put(t *testing.T, s objects.Store, tenant string, content []byte) string {
	t.Helper()
	ref, err := s.Put(t.Context(), tenant, bytes.NewReader(content))
	if want := (jobs.ObjectRef{Name: Digest(content), SHA256: Digest(content)}); err != nil || ref != want {
		t.Fatalf("put %d bytes: got %v, %v", len(content), ref, err)
	}
	return ref.Name
}

// Run runs the suite; open gives a store with nothing in it.
func Run(t *testing.T, open func(t *testing.T) objects.Store) {
	for name, test := range map[string]func(*testing.T, objects.Store){
		"put and get": putAndGet, "put as": putAs, "pieces": pieces, "tenants apart": apart, "delete": remove, "renew": renew, "at once": atOnce, "faults": faults,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func putAndGet(t *testing.T, s objects.Store) {
	if _, err := s.Get(t.Context(), "a", Digest(nil)); Code(err) != jobs.CodeNotFound {
		t.Errorf("before anything is there: got %v, want not_found", err)
	}
	if l, err := s.List(t.Context(), "a"); err != nil || len(l) > 0 {
		t.Errorf("list: %v, %v", l, err)
	}
	for _, content := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte("0123456789"), 100_000)} {
		for range 2 { // the second finds it there
			name := Put(t, s, "a", content)
			if got, err := Read(t.Context(), s, "a", name); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes came back as %d, %v", len(content), len(got), err)
			}
			if i, err := s.Stat(t.Context(), "a", name); err != nil || i.Name != name || i.Size != int64(len(content)) || time.Since(i.Stored) > time.Minute {
				t.Errorf("stat: got %+v, %v", i, err)
			}
		}
	}
	if l, err := s.List(t.Context(), "a"); err != nil || len(l) != 3 {
		t.Errorf("list: %v, %v", l, err)
	}
}

func putAs(t *testing.T, s objects.Store) {
	content := bytes.Repeat([]byte("x"), 300_000)
	wrong := Digest([]byte("another"))
	if err := s.PutAs(t.Context(), "a", wrong, int64(len(content)), bytes.NewReader(content)); Code(err) != jobs.CodeInvalid {
		t.Errorf("a wrong digest: got %v, want invalid", err)
	}
	if err := s.PutAs(t.Context(), "a", Digest(content), int64(len(content)), bytes.NewReader(content[1:])); err == nil {
		t.Error("too few bytes were taken")
	}
	if l, err := s.List(t.Context(), "a"); err != nil || len(l) > 0 {
		t.Errorf("something was left: %v, %v", l, err)
	}
	for range 2 {
		if err := s.PutAs(t.Context(), "a", Digest(content), int64(len(content)), bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Read(t.Context(), s, "a", Digest(content)); err != nil || !bytes.Equal(got, content) {
		t.Errorf("came back as %d bytes, %v", len(got), err)
	}
}

func pieces(t *testing.T, s objects.Store) {
	var b bytes.Buffer
	for i := range 100_000 {
		b.WriteString(strings.Repeat(string(rune('a'+i%26)), i%7))
	}
	content := b.Bytes()
	name := Put(t, s, "a", content)
	for _, at := range []struct{ offset, n int }{
		{0, 1}, {0, 131_072}, {131_071, 2}, {131_072, 131_072}, {1000, 290_000}, {len(content) - 1, 10}, {len(content), 10}, {len(content) + 5, 10}, {0, len(content) + 10},
	} {
		want := content[min(at.offset, len(content)):min(at.offset+at.n, len(content))]
		got, i, err := s.Piece(t.Context(), "a", name, int64(at.offset), at.n)
		if err != nil || !bytes.Equal(got, want) || i.Size != int64(len(content)) {
			t.Errorf("%d bytes from %d: got %d, %+v, %v", at.n, at.offset, len(got), i, err)
		}
	}
	empty := Put(t, s, "a", nil)
	if got, i, err := s.Piece(t.Context(), "a", empty, 0, 10); err != nil || len(got) > 0 || i.Size != 0 {
		t.Errorf("of nothing: got %q, %+v, %v", got, i, err)
	}
	if _, _, err := s.Piece(t.Context(), "a", Digest([]byte("none")), 0, 10); Code(err) != jobs.CodeNotFound {
		t.Errorf("of none: got %v, want not_found", err)
	}
}

func apart(t *testing.T, s objects.Store) {
	x, y := Put(t, s, "a", []byte("x")), Put(t, s, "b", []byte("y"))
	Put(t, s, "ab", []byte("z"))
	for tenant, name := range map[string]string{"a": y, "b": x, "ab": x} {
		if _, err := s.Get(t.Context(), tenant, name); Code(err) != jobs.CodeNotFound {
			t.Errorf("%s reads another's: got %v", tenant, err)
		}
		if _, err := s.Stat(t.Context(), tenant, name); Code(err) != jobs.CodeNotFound {
			t.Errorf("%s sees another's: got %v", tenant, err)
		}
	}
	for _, tenant := range []string{"a", "b", "ab"} {
		if l, err := s.List(t.Context(), tenant); err != nil || len(l) != 1 {
			t.Errorf("%s has %v, %v", tenant, l, err)
		}
	}
	l, err := s.Tenants(t.Context())
	if slices.Sort(l); err != nil || !slices.Equal(l, []string{"a", "ab", "b"}) {
		t.Errorf("tenants: %v, %v", l, err)
	}
}

func one(t *testing.T, s objects.Store) objects.Info {
	t.Helper()
	l, err := s.List(t.Context(), "a")
	if err != nil || len(l) != 1 {
		t.Fatalf("list: %v, %v", l, err)
	}
	return l[0]
}

func remove(t *testing.T, s objects.Store) {
	name := Put(t, s, "a", bytes.Repeat([]byte("x"), 300_000))
	i := one(t, s)
	if ok, err := s.Delete(t.Context(), "a", i); err != nil || !ok {
		t.Fatalf("got %v, %v", ok, err)
	}
	if _, err := s.Get(t.Context(), "a", name); Code(err) != jobs.CodeNotFound {
		t.Errorf("it is there: %v", err)
	}
	if ok, err := s.Delete(t.Context(), "a", i); err != nil || ok {
		t.Errorf("again: got %v, %v", ok, err)
	}
	if _, err := s.Renew(t.Context(), "a", name); Code(err) != jobs.CodeNotFound {
		t.Errorf("renewed: %v", err)
	}
	Put(t, s, "a", bytes.Repeat([]byte("x"), 300_000))
	if _, err := Read(t.Context(), s, "a", name); err != nil {
		t.Errorf("put again: %v", err)
	}
}

// An object that was renewed, or put again, since somebody has looked at it is not deleted by them.
func renew(t *testing.T, s objects.Store) {
	name := Put(t, s, "a", []byte("x"))
	for what, again := range map[string]func(){
		"renew": func() {
			if _, err := s.Renew(t.Context(), "a", name); err != nil {
				t.Error(err)
			}
		},
		"put":    func() { Put(t, s, "a", []byte("x")) },
		"put as": func() { _ = s.PutAs(t.Context(), "a", name, 1, strings.NewReader("x")) },
	} {
		i := one(t, s)
		time.Sleep(1100 * time.Millisecond) // S3 tells whole seconds
		again()
		if now := one(t, s); !now.Stored.After(i.Stored) {
			t.Errorf("%s: it was stored at %v, and still is", what, i.Stored)
		}
		if ok, err := s.Delete(t.Context(), "a", i); err != nil || ok {
			t.Errorf("%s: deleted %v, %v", what, ok, err)
		}
		if b, err := Read(t.Context(), s, "a", name); err != nil || string(b) != "x" {
			t.Errorf("%s: %q, %v", what, b, err)
		}
	}
}

// The same from many at once is one object.
func atOnce(t *testing.T, s objects.Store) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.Put(t.Context(), "a", strings.NewReader("the same")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	one(t, s)
}

// A source that fails is its own fault, as it said it, and leaves nothing.
func faults(t *testing.T, s objects.Store) {
	for _, fault := range []error{errors.New("the guest lied"), io.ErrUnexpectedEOF} {
		r, w := io.Pipe()
		go func() {
			_, _ = w.Write(make([]byte, 300_000))
			_ = w.CloseWithError(fault)
		}()
		if _, err := s.Put(t.Context(), "a", r); !errors.Is(err, fault) {
			t.Errorf("got %v, want %v", err, fault)
		}
	}
	if l, err := s.List(t.Context(), "a"); err != nil || len(l) > 0 {
		t.Errorf("something was left: %v, %v", l, err)
	}
}
