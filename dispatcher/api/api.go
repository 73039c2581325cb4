// Package api is Paddock over HTTP. So far that is one thing: to watch a job, as server-sent events (docs/http.md). It says who may, asks a
// Source, and writes; it knows no NATS and no credentials. It imports jobs.
package api

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	stdlog "log"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/jobs"
)

// Source is where jobs' events are. Its errors are *jobs.Error where a client may know them.
type Source interface {
	// Replay gives events that have been.
	Replay(ctx context.Context, tenant string, q jobs.ReplayRequest) (jobs.ReplayReply, error)
	// Follow gives a job's events after a position, those that have been and those that come, each once and in order, to the final one. It
	// ends with an error where it cannot go on, or ctx ends.
	Follow(ctx context.Context, tenant, job string, after jobs.Position) iter.Seq2[jobs.Event, error]
}

// Access says who may watch.
type Access interface {
	// Authenticate gives what somebody may see who shows a name and a password: a *jobs.Error where that is nothing, and any other error
	// where it is nobody. It may take its time: so many ask at once as there is room for.
	Authenticate(user, password string) (Grant, error)
}

// Grant is what somebody may see.
type Grant struct {
	// Tenant is whose jobs; empty is every tenant's.
	Tenant string
	// Until is when it ends; the zero time is never.
	Until time.Time
	// Holds tells whether it still is in force; nil is always. Server.Recheck asks it again.
	Holds func() bool
}

// Config says what is served, and to whom. Source is required.
type Config struct {
	Source Source
	// Access is nil where everybody may see everything.
	Access Access
	// TLS is what clients speak; nil is plain HTTP.
	TLS *tls.Config
	// Viewers is how many may watch at once, and TenantViewers how many of them jobs of one tenant; 0 means 1000, and 250. Of connections there
	// may be twice as many.
	Viewers, TenantViewers int
	Registerer             prometheus.Registerer
	Log                    zerolog.Logger
}

const (
	// headersWithin and idleWithin end connections on which nothing is asked.
	headersWithin = 10 * time.Second
	idleWithin    = time.Minute
	// maxHeader has room for a name, a password, and what proxies add.
	maxHeader = 16 << 10
	// endWithin is how long streams may take to end whole, when the server does; after that their connections are broken.
	endWithin = time.Second
	// maxWaiting bounds who waits for a place to have a password checked.
	maxWaiting = 256
)

// Server serves HTTP.
type Server struct {
	c       Config
	mux     *http.ServeMux
	metrics metrics
	// checking has a place for each password that is checked: that costs 50 ms of a processor, and half of them are left to the rest of the
	// process. waiting has one for each that is checked or is to be.
	checking, waiting chan struct{}
	writeWithin       time.Duration
	local             bool // the listener is this host's alone

	mu      sync.Mutex
	over    bool
	busy    int           // requests that are being answered
	idle    chan struct{} // closed when over, and none is
	viewers map[*viewer]bool
	of      map[string]int // viewers, by tenant
}

// New makes a server, for one Run.
func New(c Config) *Server {
	c.Viewers, c.TenantViewers = cmp.Or(c.Viewers, 1000), cmp.Or(c.TenantViewers, 250)
	s := &Server{
		c: c, mux: http.NewServeMux(), metrics: newMetrics(c.Registerer), writeWithin: writeWithin, idle: make(chan struct{}),
		checking: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)), waiting: make(chan struct{}, maxWaiting),
		viewers: map[*viewer]bool{}, of: map[string]int{},
	}
	s.handle("/v1/jobs/{id}/events", s.events)
	s.handle("/", func(_ http.ResponseWriter, r *http.Request) error {
		return refuse(http.StatusNotFound, jobs.CodeNotFound, fmt.Sprintf("nothing is at %.200q", r.URL.Path))
	})
	return s
}

// handle has requests answered by do, or with its error.
func (s *Server) handle(pattern string, do func(http.ResponseWriter, *http.Request) error) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if !s.begin() {
			abort()
		}
		defer s.done()
		if r.ContentLength != 0 { // what is not read is waited for, to the end
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(headersWithin))
			s.fail(w, r, &jobs.Error{Code: jobs.CodeInvalid, Message: "a request here has no body"})
			return
		}
		if err := do(w, r); err != nil {
			s.fail(w, r, err)
		}
	})
}

// abort breaks the connection, as net/http has it. An EventSource comes back then, as soon as there is somebody, and after an error it never
// does.
func abort() { panic(http.ErrAbortHandler) }

// Run serves what connects to the listener until ctx ends. It returns when nothing of it is left.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	s.local = loopback(l.Addr())
	streams, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var conns sync.WaitGroup
	var open atomic.Int64
	h := &http.Server{
		Handler: s.mux, ReadHeaderTimeout: headersWithin, IdleTimeout: idleWithin, MaxHeaderBytes: maxHeader,
		BaseContext: func(net.Listener) context.Context { return streams },
		ConnState: func(c net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				conns.Add(1)
				if open.Add(1) > int64(2*s.c.Viewers) {
					_ = c.Close()
				}
			case http.StateClosed, http.StateHijacked:
				open.Add(-1)
				conns.Done()
			}
		},
		ErrorLog: stdlog.New(logger{s.c.Log}, "", 0),
	}
	served := make(chan error, 1)
	go func() {
		if s.c.TLS == nil {
			served <- h.Serve(l)
			return
		}
		h.TLSConfig = s.c.TLS.Clone()
		served <- h.ServeTLS(l, "", "")
	}()
	var err error
	select {
	case err = <-served: // the listener is broken
	case <-ctx.Done():
	}
	s.stop()
	end()
	soon, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
	defer cancel()
	if h.Shutdown(soon) != nil {
		_ = h.Close() // who does not read is not waited for
	}
	if err == nil {
		err = <-served
	}
	conns.Wait()
	<-s.idle
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("http: %w", err)
}

func loopback(a net.Addr) bool {
	t, ok := a.(*net.TCPAddr)
	return ok && t.IP.IsLoopback()
}

// begin counts a request; false: it comes too late.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return false
	}
	s.busy++
	return true
}

func (s *Server) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy--; s.over && s.busy == 0 {
		close(s.idle)
	}
}

// stop has no request begin any more.
func (s *Server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over = true; s.busy == 0 {
		close(s.idle)
	}
}

// logger takes what net/http says: that a handshake has failed, or that a handler has panicked.
type logger struct{ zerolog.Logger }

func (l logger) Write(b []byte) (int, error) {
	l.Warn().Msgf("http: %s", b)
	return len(b), nil
}

type metrics struct {
	viewers prometheus.Gauge
	refused *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		viewers: prometheus.NewGauge(prometheus.GaugeOpts{Name: "paddock_http_viewers", Help: "Streams of jobs' events over HTTP that are open."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "paddock_http_refused_total", Help: "Requests over HTTP that were answered with an error."}, []string{"code"}),
	}
	if r != nil {
		r.MustRegister(m.viewers, m.refused)
	}
	return m
}
