package client_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/bus/access"
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
	if _, err := c.PutObject(t.Context(), file(t, nil)); code(err) != jobs.CodeUnavailable {
		t.Errorf("nobody serves: got %v, want unavailable", err)
	}
	bustest.Serve(t, b, &bustest.Brain{})
	missing := jobs.ObjectRef{Name: strings.Repeat("0", 64), SHA256: strings.Repeat("0", 64)}
	if _, err := c.GetObject(t.Context(), missing); code(err) != jobs.CodeNotFound {
		t.Errorf("no store yet: got %v, want not_found", err)
	}
	if _, err := c.GetObject(t.Context(), jobs.ObjectRef{Name: "x", SHA256: "x"}); code(err) != jobs.CodeInvalid {
		t.Errorf("no digest: got %v, want invalid", err)
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
	if _, err := c.GetObject(t.Context(), missing); code(err) != jobs.CodeNotFound {
		t.Errorf("missing: got %v, want not_found", err)
	}
}

// What lies under a digest and has another is not taken for it, neither by a client nor by a worker: it is stored again.
func TestObjectPoisoned(t *testing.T) {
	s := bustest.Start(t)
	c, b := connect(t, s), s.Connect()
	bustest.Serve(t, b, &bustest.Brain{})
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

// A file that changes while it is put is not stored under the digest that it had. (This one is another each time it is read.)
func TestObjectChanges(t *testing.T) {
	f, err := os.Open("/proc/sys/kernel/random/uuid")
	if err != nil {
		t.Skipf("no file that changes here: %v", err)
	}
	defer f.Close()
	s := bustest.Start(t)
	bustest.Serve(t, s.Connect(), &bustest.Brain{})
	c := connect(t, s)
	if ref, err := c.PutObject(t.Context(), f); code(err) != jobs.CodeInvalid {
		t.Errorf("got %v, %v, want invalid", ref, err)
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
	js := bustest.JetStream(t, s.Plain())
	o, err := js.ObjectStore(t.Context(), jobs.ObjectBucket("default"))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// With a tenant's credential, which gives nothing of JetStream, a client puts and gets what is large, and a batch that no message carries.
func TestObjectsWithCredentials(t *testing.T) {
	s := bustest.StartGuarded(t)
	d := s.Dispatcher()
	bustest.Serve(t, d, &bustest.Brain{})
	seed := s.Let(access.Tenant, "acme")
	c := connect(t, s, client.Tenant("acme"), client.Credentials(seed))
	content := bytes.Repeat([]byte("0123456789"), 1<<20)
	ref, err := c.PutObject(t.Context(), file(t, content))
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, c, ref); got != string(content) {
		t.Errorf("%d bytes came back as %d", len(content), len(got))
	}
	theirs, err := d.PutObject(t.Context(), "victim", strings.NewReader("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.GetObject(t.Context(), theirs); code(err) != jobs.CodeNotFound {
		t.Errorf("another's: got %v, want not_found", err)
	}
	other := connect(t, s, client.Tenant("victim"), client.Credentials(seed)) // says it is another
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if r, err := other.GetObject(ctx, theirs); err == nil {
		r.Close()
		t.Error("a tenant reads as another")
	}
	var list []json.RawMessage
	for range 4 {
		list = append(list, json.RawMessage(`{"language":"python","source":"`+strings.Repeat("#", 900<<10)+`"}`))
	}
	if _, err := c.SubmitBatch(t.Context(), &jobs.BatchRequest{Jobs: list}); code(err) == jobs.CodeTooLarge || code(err) == jobs.CodeNotFound {
		t.Errorf("a large batch: %v", err)
	}
}

// A dispatcher that comes after another knows nothing of its uploads: the client begins again, by itself.
func TestObjectLeaderChanges(t *testing.T) {
	s := bustest.Start(t)
	first, second := s.Connect(), s.Connect()
	stop := bustest.Serve(t, first, &bustest.Brain{})
	change := &onceSent{after: 20 << 20, do: func() {
		stop()
		bustest.Serve(t, second, &bustest.Brain{})
	}}
	c := connect(t, s, client.NATS(nats.SetCustomDialer(change)))
	f := file(t, bytes.Repeat([]byte("0123456789abcdef"), 4<<20))
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		t.Fatal(err)
	}
	// Pieces pass by here.
	pieces := make(chan *nats.Msg, 1000)
	nc := s.Plain()
	if _, err := nc.ChanSubscribe(jobs.ObjectSubject("default", "put"), pieces); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	ref, err := c.PutObject(t.Context(), f)
	if err != nil || ref.SHA256 != hex.EncodeToString(sum.Sum(nil)) {
		t.Fatalf("got %v, %v", ref, err)
	}
	if n := len(read(t, c, ref)); n != 64<<20 {
		t.Errorf("%d bytes came back", n)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	// 64 MiB are 35 pieces of a server whose messages have 2 MiB; what the first dispatcher got was sent again.
	if sent := len(pieces); sent < 40 {
		t.Errorf("%d messages were sent: the change came too late", sent)
	}
}

// onceSent is a dialer on whose connection something is done when so many bytes were sent; nothing more is sent until it is done.
type onceSent struct {
	after int64
	do    func()
	sent  atomic.Int64
	once  sync.Once
}

func (d *onceSent) Dial(network, address string) (net.Conn, error) {
	c, err := net.Dial(network, address) //nolint:noctx // as nats.go's own
	return &sendingConn{c, d}, err
}

type sendingConn struct {
	net.Conn
	d *onceSent
}

func (c *sendingConn) Write(b []byte) (int, error) {
	if c.d.sent.Add(int64(len(b))) > c.d.after {
		c.d.once.Do(c.d.do)
	}
	return c.Conn.Write(b)
}
