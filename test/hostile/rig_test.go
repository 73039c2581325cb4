package hostile_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
	"github.com/paddockvm/paddock/dispatcher/webhook"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/jobs/schema"
	"github.com/paddockvm/paddock/test/hostile"
)

// site is what many runs share: a NATS server, connections, an empty ledger, schemas.
type site struct {
	bus, worker *bus.Bus // a dispatcher's and a worker's
	nc          *nats.Conn
	dir         string
	empty       []byte // a ledger without jobs
	http        string // where events are served, to who reads them there

	mu      sync.Mutex
	schemas map[string]*jsonschema.Schema
}

func newSite(f *testing.F) *site {
	f.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "paddock-test-*") // there is no fsync to wait for
	if err != nil {
		dir = f.TempDir()
	}
	f.Cleanup(func() { _ = os.RemoveAll(dir) })
	f.Setenv("TMPDIR", dir) // the server's streams too
	server := bustest.Start(f)
	s := &site{bus: server.Connect(), worker: server.Connect(), nc: server.Plain(), dir: dir, schemas: map[string]*jsonschema.Schema{}}
	file := filepath.Join(dir, "empty.db")
	l, err := sqlite.Open(f.Context(), file)
	if err == nil {
		err = l.Close()
	}
	if err == nil {
		s.empty, err = os.ReadFile(file)
	}
	if err != nil {
		f.Fatal(err)
	}
	return s
}

// fits holds an answer against its schema: "submit_reply", or "requests#/$defs/GetReply".
func (s *site) fits(name string, answer []byte) error {
	sch, err := s.schema(name)
	if err != nil {
		return err
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(answer))
	if err != nil {
		return err
	}
	return sch.Validate(v)
}

func (s *site) schema(name string) (*jsonschema.Schema, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.schemas[name]; known != nil {
		return known, nil
	}
	file, _, _ := strings.Cut(name, "#")
	b, err := schema.Files.ReadFile(file + ".json")
	if err != nil {
		return nil, err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(file, doc); err != nil {
		return nil, err
	}
	s.schemas[name], err = c.Compile(name)
	return s.schemas[name], err
}

// run is a Paddock with a ledger of its own, and a tenant who asks.
type run struct {
	*testing.T
	*site
	*hostile.Bytes
	tenant  string
	fresh   *strings.Replacer // the examples' ids by this run's
	file    string
	log     syncBuffer
	life    *life
	session int64
	said    []string // what was asked and answered, for who looks at a failure
	taken   map[string]bool
	learned []string // ids in answers
}

// life is a dispatcher's.
type life struct {
	*dispatcher.Dispatcher
	hooks *webhook.Service
	end   func()
	close func() error // the ledger, afterwards
}

// Webhook implements bus.Webhooks.
func (l *life) Webhook(ctx context.Context, tenant, op string, body []byte) (jobs.WebhookReply, error) {
	return l.hooks.Webhook(ctx, tenant, op, body)
}

// Lease waits for less than a worker may want.
func (l *life) Lease(ctx context.Context, r jobs.LeaseRequest) (jobs.LeaseReply, error) {
	r.WaitMS = min(r.WaitMS, 5)
	return l.Dispatcher.Lease(ctx, r)
}

// syncBuffer is a log that several goroutines write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *site) run(t *testing.T, decisions []byte) *run {
	r := &run{T: t, site: s, Bytes: hostile.Of(decisions), tenant: "t" + strings.ReplaceAll(jobs.NewID(), "-", ""), taken: map[string]bool{}}
	var ids []string
	for _, id := range hostile.IDs {
		ids = append(ids, id, jobs.NewID())
	}
	r.fresh = strings.NewReplacer(append(ids, "default.tenant", r.tenant)...)
	r.file = filepath.Join(s.dir, r.tenant+".db")
	if err := os.WriteFile(r.file, s.empty, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, more := range []string{"", "-wal", "-shm", ".lock"} {
			_ = os.Remove(r.file + more)
		}
	})
	return r
}

// begin begins a dispatcher's life.
func (r *run) begin() {
	r.Helper()
	log := zerolog.New(&r.log).Level(zerolog.WarnLevel)
	ctx, cancel := context.WithCancel(log.WithContext(context.Background()))
	store, err := sqlite.Open(ctx, r.file)
	if err != nil {
		r.Fatal(err)
	}
	hooks, err := webhook.New(webhook.Config{Store: store, Guard: webhook.Guard{HTTP: true}, Transport: receiver{r}})
	if err != nil {
		r.Fatal(err)
	}
	d, err := dispatcher.New(dispatcher.Config{Store: store, Events: r.bus, RetryBase: time.Millisecond, Callback: hooks.CheckURL})
	if err != nil {
		r.Fatal(err)
	}
	l := &life{Dispatcher: d, hooks: hooks, close: store.Close}
	var running sync.WaitGroup
	serve := func(what string, do func() error) {
		running.Go(func() {
			if err := do(); err != nil {
				r.Errorf("%s: %v", what, err)
			}
		})
	}
	ready := make(chan struct{})
	serve("dispatcher", func() error { return d.Run(ctx) })
	serve("webhooks", func() error { return hooks.Run(ctx) })
	serve("bus", func() error { return r.bus.ServeDispatcher(ctx, l, func() { close(ready) }) })
	l.end = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	r.Cleanup(func() {
		l.end()
		_ = l.close()
	})
	r.life = l
	select {
	case <-ready:
	case <-time.After(patience):
		r.Fatal("it does not begin to serve")
	}
}

// receiver takes webhooks, and holds each against the contract.
type receiver struct{ *run }

func (r receiver) RoundTrip(q *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(q.Body)
	if err != nil || len(body) > jobs.MaxHookBytes || !json.Valid(body) {
		r.Errorf("a webhook of %d bytes, %v: %.300s", len(body), err, body)
	}
	if q.Header.Get("Content-Type") == "application/json" {
		if err := r.fits("requests#/$defs/Hook", body); err != nil {
			r.Errorf("a webhook that does not fit its schema: %v\n%s", err, body)
		}
	}
	if q.URL.Port() != "" {
		return nil, errors.New("not there")
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody}, nil
}

const patience = time.Minute

// ask sends a request as any client does, and gives the answer; false where there is none that can be sent.
func (r *run) ask(subject string, header nats.Header, body string) ([]byte, bool) {
	r.Helper()
	body = r.fresh.Replace(body)
	subject = r.fresh.Replace(subject)
	if int64(len(body)+len(subject)+4096) > r.nc.MaxPayload() {
		return nil, false
	}
	m, err := r.nc.RequestMsg(&nats.Msg{Subject: subject, Header: header, Data: []byte(body)}, patience)
	if errors.Is(err, nats.ErrBadSubject) || errors.Is(err, nats.ErrNoResponders) {
		return nil, false
	}
	if err != nil {
		r.fail("no answer to %s: %v", subject, err)
	}
	answer := m.Data
	if h := m.Header.Get(jobs.ObjectHeader); h != "" {
		answer = []byte(h)
	}
	r.said = append(r.said, fmt.Sprintf("%s %v %.3000s\n  %.3000s", subject, header, body, answer))
	return answer, true
}

// fail ends the run with all that was said.
func (r *run) fail(format string, args ...any) {
	r.Helper()
	r.Fatalf("%s\n\n%s\n\nlog:\n%s", fmt.Sprintf(format, args...), strings.Join(r.said, "\n"), &r.log)
}

// typed checks what every answer keeps to, and gives its error's code.
func (r *run) typed(name string, answer []byte) jobs.Code {
	r.Helper()
	var a struct{ Error *jobs.Error }
	if err := json.Unmarshal(answer, &a); err != nil {
		r.fail("an answer that is none: %v", err)
	}
	if name != "" {
		if err := r.fits(name, answer); err != nil {
			r.fail("an answer that does not fit its schema %s: %v", name, err)
		}
	}
	e := a.Error
	switch {
	case e == nil:
		return ""
	case e.Code == "" || e.Message == "":
		r.fail("an error without a code or a message: %+v", e)
	case e.Code == jobs.CodeInternal, strings.HasPrefix(e.Message, "the ledger cannot be"):
		r.fail("our own fault: %v", e)
	}
	return e.Code
}
