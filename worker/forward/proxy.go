package forward

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	clients        = 2048 // connections to a proxy at once
	headerBytes    = 64 << 10
	headerWithin   = 10 * time.Second // for what a client asks; how long a guest takes to answer is for the client to say
	clientIdles    = time.Minute
	longestDomain  = 200 // with a port and a job before it, it is a name that DNS takes
	nothingIsThere = "nothing is here: a port of a job is at the host PORT-JOB.%s\n"
)

// Proxy leads HTTP to ports of guests, by the host that is asked for: PORT-NAME.DOMAIN is port PORT of the guest that is published as NAME.
// What it hears from clients and from guests is nobody's word for anything.
type Proxy struct {
	listener net.Listener
	domain   string
	server   *http.Server

	mu     sync.Mutex
	closed bool
	most   int // clients
	conns  map[net.Conn]bool
	guests map[string]*guest
	ended  sync.WaitGroup // requests
}

var domainRE = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// ValidDomain tells whether a Proxy can have a domain: one in lower case, without a dot at its end.
func ValidDomain(s string) bool { return len(s) <= longestDomain && domainRE.MatchString(s) }

// NewProxy serves nothing until Run is called, which closes the listener. bugs hears of panics, and of connections that cannot be accepted.
func NewProxy(l net.Listener, domain string, bugs *log.Logger) *Proxy {
	p := &Proxy{domain: domain, most: clients, conns: map[net.Conn]bool{}, guests: map[string]*guest{}}
	p.listener = accepting{l, p}
	p.server = &http.Server{
		Handler: p, ReadHeaderTimeout: headerWithin, IdleTimeout: clientIdles, MaxHeaderBytes: headerBytes, ErrorLog: bugs,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, clientKey{}, c) },
	}
	return p
}

// clientKey is where a request's context has the client's connection.
type clientKey struct{}

// Run serves until ctx ends; when it returns, all connections have ended, and all requests.
func (p *Proxy) Run(ctx context.Context) error {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		p.close()
	})
	err := p.server.Serve(p.listener)
	if stop() { // it failed by itself
		p.close()
	} else {
		<-closed
		err = nil
	}
	p.ended.Wait()
	return err
}

// close ends the connections that have been taken over from the server, too.
func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	conns := make([]net.Conn, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	p.mu.Unlock()
	_ = p.server.Close()
	for _, c := range conns {
		_ = c.Close()
	}
}

// Publish has the ports that are open by now reached under a name, in lower case and without a dot, until withdraw is called. What is under
// way then ends with the ports. Where two have a name it is the later one's.
func (p *Proxy) Publish(name string, ports *Ports) (withdraw func()) {
	g := newGuest(ports)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.guests[name] = g
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.guests[name] == g {
			delete(p.guests, name)
		}
	}
}

// URL is where a port is reached of the guest that is published as name.
func (p *Proxy) URL(name string, port uint16) string {
	url := fmt.Sprintf("http://%d-%s.%s", port, name, p.domain)
	if at := address(p.listener).Port(); at != 80 {
		url += ":" + strconv.Itoa(int(at))
	}
	return url
}

// ServeHTTP implements http.Handler, for the proxy's own server.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	port, name, ok := p.route(r.Host)
	if !ok {
		refuse(w, http.StatusNotFound, nothingIsThere, p.domain)
		return
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		panic(http.ErrAbortHandler) // its connection is closed
	}
	g := p.guests[name]
	p.ended.Add(1)
	p.mu.Unlock()
	defer p.ended.Done()
	if g == nil {
		refuse(w, http.StatusNotFound, "job %.80s has no ports here: it does not run on this worker, or lists none\n", name)
		return
	}
	g.serve(w, r, port)
}

// route reads PORT-NAME.DOMAIN, as clients may write it: in any case, with a dot at its end, with a port behind it.
func (p *Proxy) route(host string) (port uint16, name string, ok bool) {
	host = strings.ToLower(host)
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		if _, err := strconv.ParseUint(host[i+1:], 10, 16); err != nil && host[i+1:] != "" {
			return 0, "", false
		}
		host = host[:i]
	}
	label, ok := strings.CutSuffix(strings.TrimSuffix(host, "."), "."+p.domain)
	if !ok {
		return 0, "", false
	}
	digits, name, ok := strings.Cut(label, "-")
	n, err := strconv.ParseUint(digits, 10, 16)
	if !ok || err != nil || n == 0 || strconv.FormatUint(n, 10) != digits { // a port has one name
		return 0, "", false
	}
	return uint16(n), name, true
}

// refuse answers in the guest's place.
func refuse(w http.ResponseWriter, status int, format string, args ...any) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, "paddock: "+fmt.Sprintf(format, args...)) // else the client has gone
}

// accepting is a proxy's listener: it knows the connections that are open, and has no more of them than there may be.
type accepting struct {
	net.Listener
	p *Proxy
}

func (a accepting) Accept() (net.Conn, error) {
	for {
		c, err := a.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if kept := a.p.keep(c.(*net.TCPConn)); kept != nil {
			return kept, nil
		}
		_ = c.Close()
	}
}

// keep gives the connection as one that close ends; nil where there are too many, or it is late.
func (p *Proxy) keep(c *net.TCPConn) net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.conns) >= p.most {
		return nil
	}
	kept := &client{TCPConn: c, p: p}
	p.conns[kept] = true
	return kept
}

// client is a connection to a proxy.
type client struct {
	*net.TCPConn
	p *Proxy
}

func (c *client) Close() error {
	c.p.mu.Lock()
	delete(c.p.conns, c)
	c.p.mu.Unlock()
	return c.TCPConn.Close()
}
