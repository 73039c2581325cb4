package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher/api"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/leak"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

const (
	job  = "019a2b3c-4d5e-7f60-8123-456789abcdef"
	path = "/v1/jobs/" + job + "/events"
)

// source has jobs' events in memory, and behaves as dispatchers do with those of theirs.
type source struct {
	mu        sync.Mutex
	jobs      map[string][]jobs.Event // by tenant and job
	grown     chan struct{}           // closed when there is more
	down      error                   // what is answered instead
	following int
}

var _ api.Source = (*source)(nil)

func newSource() *source { return &source{jobs: map[string][]jobs.Event{}, grown: make(chan struct{})} }

// add adds events to a job, which is there from then on.
func (s *source) add(tenant string, events ...jobs.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jobs[tenant+" "+job] = append(s.jobs[tenant+" "+job], events...)
	close(s.grown)
	s.grown = make(chan struct{})
}

func (s *source) set(down error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

func (s *source) followers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.following
}

func (s *source) after(tenant, id string, p jobs.Position) (l []jobs.Event, more <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, known := s.jobs[tenant+" "+id]
	switch {
	case s.down != nil:
		return nil, nil, s.down
	case !known:
		return nil, nil, &jobs.Error{Code: jobs.CodeNotFound, Message: "no such job"}
	}
	for _, e := range all {
		if p.Before(e.Attempt, e.Seq) || e.Final {
			l = append(l, e)
		}
	}
	return l, s.grown, nil
}

// Replay implements api.Source.
func (s *source) Replay(ctx context.Context, tenant string, q jobs.ReplayRequest) (jobs.ReplayReply, error) {
	if ctx.Err() != nil {
		return jobs.ReplayReply{}, context.Cause(ctx)
	}
	l, _, err := s.after(tenant, q.Job, q.After)
	if len(l) > q.Limit {
		l = l[:q.Limit]
	}
	return jobs.ReplayReply{Events: l}, err
}

// Follow implements api.Source.
func (s *source) Follow(ctx context.Context, tenant, id string, p jobs.Position) iter.Seq2[jobs.Event, error] {
	return func(yield func(jobs.Event, error) bool) {
		s.mu.Lock()
		s.following++
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.following--
		}()
		for {
			l, more, err := s.after(tenant, id, p)
			if err != nil {
				yield(jobs.Event{}, err)
				return
			}
			for _, e := range l {
				if !yield(e, nil) || e.Final {
					return
				}
				p = jobs.Position{Attempt: e.Attempt, Seq: e.Seq}
			}
			if len(l) > 0 {
				continue
			}
			select {
			case <-more:
			case <-ctx.Done():
				yield(jobs.Event{}, context.Cause(ctx))
				return
			}
		}
	}
}

func output(attempt int, seq int64, text string) jobs.Event {
	return jobs.Event{Type: jobs.EventOutput, Job: job, Tenant: "default", Attempt: attempt, Seq: seq, Stream: jobs.Stdout, Content: jobs.Content{Text: text}}
}

func final(attempt int, seq int64) jobs.Event {
	return jobs.Event{
		Type: jobs.EventResult, Job: job, Tenant: "default", Attempt: attempt, Seq: seq, Final: true,
		Result: &jobs.Result{Ending: jobs.Exited, Class: jobs.ClassUser, Attempt: attempt},
	}
}

// pipes is a network within the process, with nothing between its ends: what is not read is not written.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// rig is a server, its source, and a client.
type rig struct {
	*testing.T
	source *source
	server *api.Server
	client *http.Client
	net    *pipes
	url    string
	stop   func() // ends the server, and waits for it
}

// serve starts a server on a network of its own.
func serve(t *testing.T, c api.Config) *rig {
	t.Helper()
	p := newPipes()
	r := serveOn(t, c, p)
	r.net = p
	r.client = &http.Client{Transport: &http.Transport{DialContext: p.dial, DisableKeepAlives: true}}
	r.url = "http://localhost"
	return r
}

// serveTCP starts one on loopback.
func serveTCP(t *testing.T, c api.Config) *rig {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := serveOn(t, c, l)
	r.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r.url = "http://" + l.Addr().String()
	return r
}

func serveOn(t *testing.T, c api.Config, l net.Listener) *rig {
	t.Helper()
	r := &rig{T: t, source: newSource()}
	c.Source, c.Log = r.source, zerolog.Nop()
	r.server = api.New(c)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.server.Run(ctx, l) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if n := r.source.followers(); n > 0 {
			t.Errorf("%d followers are left", n)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// answer is an http.Response whose body is closed when the test ends, at the latest.
type answer struct {
	Status, Proto          string
	StatusCode, ProtoMajor int
	Header                 http.Header
	Body                   io.ReadCloser
}

// get asks; the headers are pairs.
func (r *rig) get(target string, headers ...string) answer {
	r.Helper()
	q, err := http.NewRequestWithContext(r.Context(), http.MethodGet, r.url+target, nil)
	if err != nil {
		r.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		q.Header.Set(headers[i], headers[i+1])
	}
	if host := q.Header.Get("Host"); host != "" {
		q.Host = host
	}
	return r.do(q)
}

func (r *rig) do(q *http.Request) answer {
	r.Helper()
	a, err := r.client.Do(q)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { a.Body.Close() })
	return answer{a.Status, a.Proto, a.StatusCode, a.ProtoMajor, a.Header, a.Body}
}

// refused checks an answer that is an error.
func (r *rig) refused(what string, a answer, status int, code jobs.Code) *jobs.Error {
	r.Helper()
	var e jobs.Error
	err := json.NewDecoder(a.Body).Decode(&e)
	if a.StatusCode != status || err != nil || e.Code != code || e.Message == "" {
		r.Errorf("%s: %s %+v %v, want %d %s", what, a.Status, e, err, status, code)
	}
	if again := a.Header.Get("Retry-After"); (again != "") != (e.RetryAfterMS > 0) {
		r.Errorf("%s: Retry-After is %q, and in the error stands %d ms", what, again, e.RetryAfterMS)
	}
	return &e
}

// frame is one server-sent event.
type frame struct{ id, event, data string }

// frames reads a stream as the standard has it read: an event that is not whole is none.
func frames(in io.Reader) iter.Seq[frame] {
	return func(yield func(frame) bool) {
		var f frame
		var data []string
		for lines := bufio.NewReader(in); ; {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
			value = strings.TrimPrefix(value, " ")
			switch {
			case line == "\n":
				if data != nil {
					if f.data = strings.Join(data, "\n"); !yield(f) {
						return
					}
				}
				f, data = frame{id: f.id}, nil
			case name == "id":
				f.id = value
			case name == "event":
				f.event = value
			case name == "data":
				data = append(data, value)
			}
		}
	}
}

// ids are those of a stream's events, to its end.
func ids(in io.Reader) (l []string) {
	for f := range frames(in) {
		l = append(l, f.id)
	}
	return l
}

// people are let in by a table; checks counts who asks at once.
type people struct {
	mu    sync.Mutex
	by    map[string]api.Grant // by name and password
	hold  chan struct{}        // where not nil, an answer waits for it
	now   int
	most  int
	asked chan struct{} // where not nil, has one for each who has asked
}

// Authenticate implements api.Access.
func (p *people) Authenticate(user, password string) (api.Grant, error) {
	p.mu.Lock()
	p.now++
	p.most = max(p.most, p.now)
	g, known := p.by[user+" "+password]
	p.mu.Unlock()
	if p.asked != nil {
		p.asked <- struct{}{}
	}
	if p.hold != nil {
		<-p.hold
	}
	p.mu.Lock()
	p.now--
	p.mu.Unlock()
	switch {
	case !known:
		return g, fmt.Errorf("%s is nobody", user)
	case user == "worker":
		return g, &jobs.Error{Code: jobs.CodeForbidden, Message: "a worker watches no jobs"}
	}
	return g, nil
}
