package objects_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
	"github.com/paddockvm/paddock/objects/objectstest"
	"github.com/paddockvm/paddock/test/bubble"
)

// memory is a store that has nothing but what a map has, and fails as it is told.
type memory struct {
	objects.Store // the rest is not asked for

	mu      sync.Mutex
	content map[string][]byte // by tenant and digest
	failing error
	slow    time.Duration // what is stored or renewed takes so long
	renewed int
}

func (m *memory) Renew(_ context.Context, tenant, name string) (objects.Info, error) {
	time.Sleep(m.slow)
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.content[tenant+"/"+name]
	if !ok {
		return objects.Info{}, &jobs.Error{Code: jobs.CodeNotFound, Message: "none"}
	}
	m.renewed++
	return objects.Info{Name: name, Size: int64(len(b))}, nil
}

func (m *memory) PutAs(_ context.Context, tenant, digest string, size int64, r io.ReaderAt) error {
	time.Sleep(m.slow)
	b, err := io.ReadAll(io.NewSectionReader(r, 0, size))
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failing != nil {
		return m.failing
	}
	if objectstest.Digest(b) != digest {
		return &jobs.Error{Code: jobs.CodeInvalid, Message: "another digest"}
	}
	if m.content == nil {
		m.content = map[string][]byte{}
	}
	m.content[tenant+"/"+digest] = b
	return nil
}

// gathering is an Uploads that runs until the test's end.
func gathering(t *testing.T, s objects.Store) (*objects.Uploads, string) {
	t.Helper()
	dir := t.TempDir()
	u := objects.NewUploads(s, dir, time.Minute)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := u.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if l, err := os.ReadDir(dir); err != nil || len(l) > 0 {
			t.Errorf("left behind: %v, %v", l, err)
		}
	})
	return u, dir
}

type piece struct {
	offset, end int
	next        int64
	stored      bool
	code        jobs.Code
}

func send(t *testing.T, u *objects.Uploads, tenant string, content []byte, pieces ...piece) {
	t.Helper()
	for _, p := range pieces {
		next, stored, err := u.Put(t.Context(), tenant, objectstest.Digest(content), int64(len(content)), int64(p.offset), content[p.offset:p.end])
		if next != p.next || stored != p.stored || objectstest.Code(err) != p.code {
			t.Errorf("%d to %d: got %d, %v, %v, want %+v", p.offset, p.end, next, stored, err, p)
		}
	}
}

// Pieces come in any order, again and again, and in other sizes.
func TestUpload(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 10)
	m := &memory{}
	u, _ := gathering(t, m)
	send(t, u, "a", content,
		piece{0, 0, 0, false, ""}, // nothing is there
		piece{50, 60, 0, false, ""}, piece{0, 20, 20, false, ""}, piece{0, 20, 20, false, ""}, piece{10, 30, 30, false, ""}, piece{5, 25, 30, false, ""},
		piece{30, 50, 60, false, ""}, piece{0, 0, 60, false, ""}, piece{80, 100, 60, false, ""}, piece{55, 85, 100, true, ""},
		piece{55, 85, 100, true, ""}, piece{0, 0, 100, true, ""})
	if got := m.content["a/"+objectstest.Digest(content)]; !bytes.Equal(got, content) {
		t.Errorf("stored %q", got)
	}
	if m.renewed != 2 {
		t.Errorf("what was stored already was renewed %d times, want 2", m.renewed)
	}
	send(t, u, "b", content, piece{0, 0, 0, false, ""}) // another's is none of b's
	send(t, u, "a", nil, piece{0, 0, 0, true, ""})
}

// What has another digest is refused, and all of it forgotten; what the store has no place for at the moment is kept, and tried again.
func TestUploadRefused(t *testing.T) {
	content := []byte("0123456789")
	m := &memory{}
	u, _ := gathering(t, m)
	if _, _, err := u.Put(t.Context(), "a", objectstest.Digest([]byte("another")), 10, 0, content); objectstest.Code(err) != jobs.CodeInvalid {
		t.Errorf("got %v, want invalid", err)
	}
	if next, _, err := u.Put(t.Context(), "a", objectstest.Digest([]byte("another")), 10, 0, nil); next != 0 || err != nil {
		t.Errorf("it is not forgotten: %d, %v", next, err)
	}
	m.failing = &jobs.Error{Code: jobs.CodeUnavailable, Message: "not now"}
	send(t, u, "a", content, piece{0, 5, 5, false, ""}, piece{5, 10, 10, false, jobs.CodeUnavailable})
	m.failing = nil
	send(t, u, "a", content, piece{0, 0, 10, true, ""})
	m.failing = &jobs.Error{Code: jobs.CodeQuota, Message: "full"}
	content = []byte("x")
	send(t, u, "a", content, piece{0, 1, 1, false, jobs.CodeQuota}, piece{0, 0, 0, false, ""})
	m.failing = nil
	for what, q := range map[jobs.Code]struct{ size, offset int64 }{jobs.CodeTooLarge: {jobs.MaxObjectBytes + 1, 0}, jobs.CodeInvalid: {5, 1}} {
		if _, _, err := u.Put(t.Context(), "a", objectstest.Digest(content), q.size, q.offset, []byte("12345")); objectstest.Code(err) != what {
			t.Errorf("%+v: got %v, want %s", q, err, what)
		}
	}
}

// A tenant's uploads are bounded, in number and in bytes; another's do not count.
func TestUploadsBounded(t *testing.T) {
	u, _ := gathering(t, &memory{})
	begin := func(tenant, name string, size int64) error {
		_, _, err := u.Put(t.Context(), tenant, objectstest.Digest([]byte(name)), size, 0, []byte("x"))
		return err
	}
	n := 0
	for ; n < 100; n++ {
		if err := begin("a", strings.Repeat("x", n), 10); err != nil {
			if objectstest.Code(err) != jobs.CodeQuota {
				t.Errorf("got %v, want quota_exceeded", err)
			}
			break
		}
	}
	if n != 16 {
		t.Errorf("%d uploads were let begin, want 16", n)
	}
	if err := begin("b", "x", jobs.MaxObjectBytes); err != nil {
		t.Error(err)
	}
	if err := begin("b", "y", 10); objectstest.Code(err) != jobs.CodeQuota {
		t.Errorf("more than the tenant's bytes: got %v, want quota_exceeded", err)
	}
	if err := begin("a", "", 10); err != nil {
		t.Errorf("one that has begun: %v", err)
	}
}

// What a tenant says that it will send takes no room from the others.
func TestUploadsOfNothing(t *testing.T) {
	u, _ := gathering(t, &memory{})
	for _, tenant := range []string{"a", "b", "c", "d", "e", "f"} {
		if _, _, err := u.Put(t.Context(), tenant, objectstest.Digest(nil), jobs.MaxObjectBytes, 0, []byte("x")); err != nil {
			t.Errorf("%s: %v", tenant, err)
		}
	}
	send(t, u, "g", []byte("another"), piece{0, 7, 7, true, ""})
}

// large is what a tenant uploads in TestUploadsTogether, mebibyte by mebibyte.
type large struct {
	tenant  string
	content []byte
	next    int64
	stored  bool
	code    jobs.Code // of the last answer
	pieces  int       // that were taken
}

func newLarge(tenant string, mib int) *large {
	return &large{tenant: tenant, content: bytes.Repeat([]byte(tenant), mib<<20)}
}

// step sends one piece, and tells whether it was taken.
func (l *large) step(t *testing.T, u *objects.Uploads) bool {
	t.Helper()
	next, stored, err := u.Put(t.Context(), l.tenant, objectstest.Digest(l.content), int64(len(l.content)), l.next, l.content[l.next:min(l.next+1<<20, int64(len(l.content)))])
	l.code = objectstest.Code(err)
	if err != nil {
		return false
	}
	l.next, l.stored = next, stored
	l.pieces++
	return true
}

// Uploads that are too much together each wait for their turn, lose nothing, and end; meanwhile who brings little is served at once.
func TestUploadsTogether(t *testing.T) {
	u, _ := gathering(t, &memory{})
	u.SetRoom(16 << 20)
	var all []*large
	for _, tenant := range []string{"a", "b", "c", "d", "e", "f"} {
		all = append(all, newLarge(tenant, 4))
	}
	for done, round := 0, 0; done < len(all); round++ {
		if done = 0; round > 100 {
			t.Fatal("they do not end")
		}
		for _, l := range all {
			was := l.next
			if !l.stored && !l.step(t, u) && l.code != jobs.CodeUnavailable {
				t.Fatalf("%s: %s", l.tenant, l.code)
			}
			if l.next < was {
				t.Errorf("%s had %d bytes, and has %d", l.tenant, was, l.next)
			}
			if l.stored {
				done++
			}
		}
		small := fmt.Appendf(nil, "%03d", round)
		send(t, u, "small", small, piece{0, 3, 3, true, ""})
	}
}

// While others are refused, who does not go on for a minute loses what it has, though it asks; who was refused does not.
func TestUploadsHeldUp(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		u := objects.NewUploads(&memory{}, t.TempDir(), time.Minute)
		u.SetRoom(8 << 20)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = u.Run(ctx) }()
		silent, b, c := newLarge("a", 8), newLarge("b", 4), newLarge("c", 4)
		for _, l := range []*large{silent, silent, b, c, silent, silent} { // the last two are what the oldest alone gets
			if !l.step(t, u) {
				t.Fatalf("%s has %d bytes, and is refused: %s", l.tenant, l.next, l.code)
			}
		}
		for range 7 {
			send(t, u, "a", silent.content, piece{0, 0, silent.next, false, ""})
			for _, l := range []*large{b, c} {
				if l.step(t, u) || l.code != jobs.CodeUnavailable {
					t.Fatalf("%s has %d bytes, %q", l.tenant, l.next, l.code)
				}
			}
			time.Sleep(8 * time.Second)
		}
		time.Sleep(8 * time.Second)
		for _, l := range []*large{b, c} {
			for l.step(t, u) && !l.stored {
			}
			if !l.stored {
				t.Errorf("%s has %d bytes, and is refused: %s", l.tenant, l.next, l.code)
			}
		}
		if b.pieces != 4 || c.pieces != 4 {
			t.Errorf("%d and %d pieces were taken for 4 each", b.pieces, c.pieces)
		}
		send(t, u, "a", silent.content, piece{0, 0, 0, false, ""})
		cancel()
		<-done
	})
}

// What nobody goes on with is forgotten, and its file is gone, though somebody asks for it; what comes on slowly is not.
func TestUploadAbandoned(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		u := objects.NewUploads(&memory{}, t.TempDir(), time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = u.Run(ctx) }()
		kept, gone := newLarge("a", 6), []byte("gone before that")
		kept.step(t, u)
		send(t, u, "a", gone, piece{0, 5, 5, false, ""})
		if n := open(t); n != 2 {
			t.Errorf("%d files are open, want 2", n)
		}
		for range 2 {
			time.Sleep(4 * time.Minute)
			kept.step(t, u)
			send(t, u, "a", gone, piece{0, 0, 5, false, ""})
		}
		time.Sleep(4 * time.Minute)
		if kept.step(t, u); kept.next != 4<<20 {
			t.Errorf("%d bytes are there", kept.next)
		}
		send(t, u, "a", gone, piece{0, 0, 0, false, ""})
		if n := open(t); n != 1 {
			t.Errorf("%d files are open, want 1", n)
		}
		cancel()
		<-done
		if n := open(t); n != 0 {
			t.Errorf("%d files are open in the end", n)
		}
	})
}

// A store may take longer than who brings the last piece is let wait: who asks again hears what came of it, the store's no too, though nobody
// waited when that came. What was refused and nobody asks about is forgotten.
func TestUploadTakesLong(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := &memory{slow: time.Second}
		u := objects.NewUploads(m, t.TempDir(), 100*time.Millisecond)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = u.Run(ctx) }()
		content := []byte("0123456789")
		send(t, u, "a", content, piece{0, 0, 0, false, ""}, piece{0, 10, 10, false, ""}, piece{0, 0, 10, false, ""})
		time.Sleep(2 * time.Second)
		send(t, u, "a", content, piece{0, 0, 10, true, ""})
		if m.renewed != 1 {
			t.Errorf("renewed %d times, want once", m.renewed)
		}
		m.failing = &jobs.Error{Code: jobs.CodeQuota, Message: "full"}
		send(t, u, "b", content, piece{0, 10, 10, false, ""})
		send(t, u, "c", content, piece{0, 10, 10, false, ""})
		time.Sleep(2 * time.Second)
		send(t, u, "b", content, piece{0, 0, 10, false, jobs.CodeQuota}, piece{0, 0, 0, false, ""})
		if n := open(t); n != 1 {
			t.Errorf("%d files are open, want that of who has not asked", n)
		}
		time.Sleep(12 * time.Minute)
		if n := open(t); n != 0 {
			t.Errorf("%d files are open, want none", n)
		}
		send(t, u, "c", content, piece{0, 0, 0, false, ""})
		cancel()
		<-done
	})
}

// open counts the files that uploads have open in this process.
func open(t *testing.T) (n int) {
	t.Helper()
	l, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range l {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.Contains(to, "/upload-") {
			n++
		}
	}
	return n
}

// Many bring the same at once, in pieces of their own.
func TestUploadAtOnce(t *testing.T) {
	s := objects.NewJetStream(jetStream(t))
	u, _ := gathering(t, s)
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	name := objectstest.Digest(content)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			n := 100_000 + i*7_777
			for from := 0; ; {
				next, stored, err := u.Put(t.Context(), "a", name, int64(len(content)), int64(from), content[from:min(from+n, len(content))])
				if objectstest.Code(err) == jobs.CodeUnavailable { // it was stored in this moment
					continue
				}
				if err != nil {
					t.Error(err)
				}
				if stored || err != nil {
					return
				}
				from = int(next)
			}
		})
	}
	wg.Wait()
	if b, err := objectstest.Read(t.Context(), s, "a", name); err != nil || !bytes.Equal(b, content) {
		t.Errorf("got %d bytes, %v", len(b), err)
	}
	if l, err := s.List(t.Context(), "a"); err != nil || len(l) != 1 {
		t.Errorf("list: %v, %v", l, err)
	}
}
