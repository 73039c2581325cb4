package forward_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/paddockvm/paddock/worker/forward"
)

const job = "019a2b3c-4d5e-7f60-8123-456789abcdef"

// front is a proxy, and what a client does with it.
type front struct {
	*testing.T
	*forward.Proxy
	at   string // its address
	bugs bytes.Buffer
	http *http.Client
	stop func()
}

func newFront(t *testing.T) *front {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &front{T: t, at: l.Addr().String()}
	f.Proxy = forward.NewProxy(l, "localhost", log.New(&f.bugs, "", 0))
	transport := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { // of every name
		return new(net.Dialer).DialContext(ctx, "tcp", f.at)
	}}
	f.http = &http.Client{Transport: transport, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- f.Proxy.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error("Run:", err)
		}
	})
	t.Cleanup(func() {
		f.stop()
		transport.CloseIdleConnections()
		if f.bugs.Len() > 0 {
			t.Errorf("bugs: %s", f.bugs.String())
		}
	})
	return f
}

// publish opens port 80 of a guest for the job.
func (f *front) publish(dial func(context.Context, uint16) (net.Conn, error)) *forward.Ports {
	f.Helper()
	p := forward.New(func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }, dial)
	if _, err := p.Open(80); err != nil {
		f.Fatal(err)
	}
	withdraw := f.Publish(job, p)
	f.Cleanup(func() {
		withdraw()
		if err := p.Close(); err != nil {
			f.Error(err)
		}
	})
	return p
}

// serve is publish with a guest that serves HTTP.
func (f *front) serve(h http.HandlerFunc) *forward.Ports {
	f.Helper()
	s := httptest.NewServer(h)
	f.Cleanup(s.Close)
	return f.publish(to(s.Listener.Addr()))
}

// says is publish with a guest that says the same in answer to everything.
func (f *front) says(answer string) {
	f.Helper()
	g := newGuest(f.T)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := g.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				_, _ = http.ReadRequest(bufio.NewReader(c))
				_, _ = io.WriteString(c, answer)
			})
		}
	})
	f.Cleanup(func() { g.Close(); all.Wait() })
	f.publish(g.dial)
}

func to(at net.Addr) func(context.Context, uint16) (net.Conn, error) {
	return func(ctx context.Context, _ uint16) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", at.String())
	}
}

func (f *front) url(path string) string { return f.URL(job, 80) + path }

// get gives what comes of a request for /.
func (f *front) get(host string) (status int, body string) {
	f.Helper()
	r, err := http.NewRequestWithContext(f.Context(), http.MethodGet, f.url("/"), nil)
	if err != nil {
		f.Fatal(err)
	}
	r.Host = host
	return f.do(r)
}

func (f *front) do(r *http.Request) (status int, body string) {
	f.Helper()
	a, err := f.http.Do(r)
	if err != nil {
		f.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		f.Fatal(err)
	}
	return a.StatusCode, string(b)
}

// dial is a connection of the test's own to the proxy, on which it has said something.
func (f *front) dial(say string) (*net.TCPConn, *bufio.Reader) {
	f.Helper()
	c, err := net.Dial("tcp", f.at)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		f.Fatal(err)
	}
	if _, err := io.WriteString(c, say); err != nil {
		f.Fatal(err)
	}
	return c.(*net.TCPConn), bufio.NewReader(c)
}

// answer reads an answer, with its body.
func (f *front) answer(r *bufio.Reader) (status int, header http.Header) {
	f.Helper()
	a, err := http.ReadResponse(r, nil)
	if err != nil {
		f.Fatal(err)
	}
	_, err = io.Copy(io.Discard, a.Body)
	if err := errors.Join(err, a.Body.Close()); err != nil {
		f.Fatal(err)
	}
	return a.StatusCode, a.Header
}

func TestProxyRoutes(t *testing.T) {
	f := newFront(t)
	f.serve(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "inside, for ", r.Host) })
	port := f.at[strings.LastIndex(f.at, ":"):]
	if want := "http://80-" + job + ".localhost" + port; f.URL(job, 80) != want {
		t.Errorf("the URL is %s, want %s", f.URL(job, 80), want)
	}
	name := "80-" + job + ".localhost"
	for _, host := range []string{name, name + port, name + ":1", name + ":", name + ".", name + "." + port, strings.ToUpper(name) + port} {
		if status, body := f.get(host); status != 200 || body != "inside, for "+host {
			t.Errorf("%s: %d %q", host, status, body)
		}
	}
	other := strings.Replace(job, "019a", "019b", 1)
	for host, want := range map[string]string{
		"localhost":                   "nothing is here: a port of a job is at the host PORT-JOB.localhost",
		"127.0.0.1" + port:            "nothing is here",
		"[::1]" + port:                "nothing is here",
		"[" + name + "]":              "nothing is here",
		name + "..":                   "nothing is here",
		name + ":80:80":               "nothing is here",
		name + ":http":                "nothing is here",
		name + ":99999":               "nothing is here",
		"80-" + job + ".example":      "nothing is here",
		"80-" + job + "localhost":     "nothing is here",
		"80-" + job:                   "nothing is here",
		"." + name:                    "nothing is here",
		"x." + name:                   "nothing is here",
		job + ".localhost":            "nothing is here", // its first part is not a port
		"80.localhost":                "nothing is here",
		"80" + job + ".localhost":     "nothing is here",
		"0-" + job + ".localhost":     "nothing is here",
		"080-" + job + ".localhost":   "nothing is here",
		"+80-" + job + ".localhost":   "nothing is here",
		"65616-" + job + ".localhost": "nothing is here", // 80 in 16 bits
		"80-.localhost":               "job  has no ports here",
		"80-x." + job + ".localhost":  "has no ports here",
		"80-" + other + ".localhost":  "job " + other + " has no ports here",
		"81-" + job + ".localhost":    "the job's spec does not list port 81: network.ports",
	} {
		status, body := f.get(host)
		if status != 404 || !strings.HasPrefix(body, "paddock: ") || !strings.Contains(body, want) {
			t.Errorf("%s: %d %q, want 404 and %q", host, status, body, want)
		}
	}
	// What no client of ours would send: no host at all, one in the request's own line, a way to anywhere.
	for say, want := range map[string]string{
		"GET / HTTP/1.0\r\n\r\n":                                            "HTTP/1.0 404 ",
		"GET http://" + name + "/ HTTP/1.1\r\nHost: x\r\n\r\n":              "HTTP/1.1 200 ",
		"GET http://x/ HTTP/1.1\r\nHost: " + name + "\r\n\r\n":              "HTTP/1.1 404 ",
		"CONNECT " + name + ":80 HTTP/1.1\r\nHost: " + name + ":80\r\n\r\n": "HTTP/1.1 405 ",
	} {
		_, r := f.dial(say)
		if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, want) {
			t.Errorf("%q: %q %v, want %s", say, line, err, want)
		}
	}
}

// TestProxyPasses: the request arrives as it was sent, but for what only a proxy may say, and so does the answer.
func TestProxyPasses(t *testing.T) {
	f := newFront(t)
	f.serve(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || string(body) != "question" || r.RequestURI != "/a%2fb//c?x=1;y=%zz" || r.Method != http.MethodPut {
			t.Errorf("%s %s %q %v", r.Method, r.RequestURI, body, err)
		}
		got := map[string]string{}
		for k, v := range r.Header {
			got[k] = strings.Join(v, ", ")
		}
		host := "80-" + job + ".localhost" + f.at[strings.LastIndex(f.at, ":"):]
		want := map[string]string{
			"Connection": "close", "Content-Length": "8", "Origin": "http://x", "Cookie": "a=b",
			"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": host, "X-Forwarded-Proto": "http",
		}
		if r.Host != host || !maps.Equal(got, want) {
			t.Errorf("host %s, headers\n%v\nwant\n%v", r.Host, got, want)
		}
		w.Header().Add("Set-Cookie", "a=1")
		w.Header().Add("Set-Cookie", "b=2")
		w.Header().Set("Location", "/there")
		w.WriteHeader(http.StatusFound)
		fmt.Fprint(w, "answer")
	})
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, f.url("/"), strings.NewReader("question"))
	if err != nil {
		t.Fatal(err)
	}
	r.URL.Opaque = "/a%2fb//c"
	r.URL.RawQuery = "x=1;y=%zz"
	r.Header = http.Header{
		"Origin": {"http://x"}, "Cookie": {"a=b"}, "User-Agent": {""}, "Connection": {"X-Secret"}, "X-Secret": {"x"},
		"X-Forwarded-For": {"1.1.1.1"}, "X-Forwarded-Host": {"evil"}, "X-Forwarded-Proto": {"https"}, "Forwarded": {"for=1.1.1.1"},
		"X-Forwarded-Port": {"443"}, "X-Forwarded-Prefix": {"/evil"}, "X-Real-Ip": {"1.1.1.1"}, "X_Forwarded_For": {"1.1.1.1"},
	}
	a, err := f.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	body, err := io.ReadAll(a.Body)
	if err != nil || a.StatusCode != http.StatusFound || string(body) != "answer" || a.Header.Get("Location") != "/there" || !slices.Equal(a.Header["Set-Cookie"], []string{"a=1", "b=2"}) {
		t.Errorf("%v %q %v", a, body, err)
	}
}

// TestProxyStreams: what the guest says reaches the client before it says more.
func TestProxyStreams(t *testing.T) {
	f := newFront(t)
	next := make(chan struct{})
	f.serve(func(w http.ResponseWriter, r *http.Request) {
		for n := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", n)
			http.NewResponseController(w).Flush()
			select {
			case <-next:
			case <-r.Context().Done():
				return
			}
		}
	})
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.url("/"), nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := f.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	for n := range 3 {
		want := fmt.Sprintf("data: %d\n\n", n)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(a.Body, got); err != nil || string(got) != want {
			t.Fatalf("%q %v, want %q", got, err, want)
		}
		next <- struct{}{}
	}
	if rest, err := io.ReadAll(a.Body); err != nil || len(rest) > 0 {
		t.Errorf("at its end: %q %v", rest, err)
	}
}

const upgrade = "GET / HTTP/1.1\r\nHost: 80-" + job + ".localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"

// upgraded is a guest that speaks another protocol when it is asked to: it says everything back.
func upgraded(w http.ResponseWriter, r *http.Request) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+r.Header.Get("Upgrade")+"\r\n\r\n")
	_, _ = io.Copy(c, rw)
}

// switched makes a connection of the other protocol.
func (f *front) switched() (*net.TCPConn, *bufio.Reader) {
	f.Helper()
	c, r := f.dial(upgrade)
	if status, header := f.answer(r); status != http.StatusSwitchingProtocols || header.Get("Upgrade") != "echo" {
		f.Fatal(status, header)
	}
	f.echoed(c, r)
	return c, r
}

func (f *front) echoed(c net.Conn, r io.Reader) {
	f.Helper()
	for _, said := range []string{"one", "\x00\xff\r\n\r\n", strings.Repeat("long", 50_000)} {
		go func() { _, _ = io.WriteString(c, said) }() // both ways at once
		got := make([]byte, len(said))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != said {
			f.Fatalf("%.20q of %d bytes: %.20q %v", said, len(said), got, err)
		}
	}
}

func TestProxyUpgrades(t *testing.T) {
	f := newFront(t)
	f.serve(upgraded)
	c, r := f.switched()
	if err := c.CloseWrite(); err != nil { // the guest says its last, and ends
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("at its end: %q %v", rest, err)
	}
}

// TestPortsEnd: with a guest's ports all connections end that lead there, whatever they are in the middle of; others go on.
func TestPortsEnd(t *testing.T) {
	f := newFront(t)
	asked := make(chan string, 3)
	ports := f.serve(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/silent":
			asked <- r.URL.Path
			<-r.Context().Done()
		case "/flood": // which nobody reads
			asked <- r.URL.Path
			for b := make([]byte, 1<<16); ; {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		case "/slow": // which the client does not end to ask
			asked <- r.URL.Path
			_, _ = io.Copy(io.Discard, r.Body)
		default:
			upgraded(w, r)
		}
	})
	var open []io.Reader
	for _, path := range []string{"/silent", "/flood"} {
		_, r := f.dial("GET " + path + " HTTP/1.1\r\nHost: 80-" + job + ".localhost\r\n\r\n")
		open = append(open, r)
	}
	_, slow := f.dial("POST /slow HTTP/1.1\r\nHost: 80-" + job + ".localhost\r\nContent-Length: 9\r\n\r\n1")
	_, switched := f.switched()
	open = append(open, slow, switched)
	for range 3 {
		<-asked
	}
	idle, idles := f.dial("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if status, _ := f.answer(idles); status != http.StatusNotFound {
		t.Fatal(status)
	}
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			if err := ports.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for i, r := range open {
		if _, err := io.Copy(io.Discard, r); isTimeout(err) {
			t.Errorf("connection %d goes on: %v", i, err)
		}
	}
	if _, err := io.WriteString(idle, "GET / HTTP/1.1\r\nHost: 80-"+job+".localhost\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(idles)
	if err != nil || !bytes.Contains(rest, []byte("HTTP/1.1 404 ")) || !bytes.Contains(rest, []byte("it ends")) {
		t.Errorf("a connection of nobody's: %q %v", rest, err)
	}
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}

// TestProxyEnds: Run ends what is open, also what the server has given away.
func TestProxyEnds(t *testing.T) {
	f := newFront(t)
	asked := make(chan struct{})
	f.serve(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			upgraded(w, r)
			return
		}
		close(asked)
		<-r.Context().Done()
	})
	_, switched := f.switched()
	_, silent := f.dial("GET /silent HTTP/1.1\r\nHost: 80-" + job + ".localhost\r\n\r\n")
	_, idle := f.dial("")
	<-asked
	f.stop()
	for i, r := range []io.Reader{switched, silent, idle} {
		if n, err := io.Copy(io.Discard, r); n > 0 || isTimeout(err) {
			t.Errorf("connection %d: %d bytes, %v", i, n, err)
		}
	}
	if c, err := net.Dial("tcp", f.at); err == nil {
		c.Close()
		t.Error("it takes connections after its end")
	}
}

func TestProxyWithdraws(t *testing.T) {
	f := newFront(t)
	named := func(s string) func() {
		p := forward.New(func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }, func(context.Context, uint16) (net.Conn, error) { return nil, errors.New(s) })
		t.Cleanup(func() { p.Close() })
		if _, err := p.Open(80); err != nil {
			t.Fatal(err)
		}
		return f.Publish(job, p)
	}
	first := named("the first")
	second := named("the second")
	if status, body := f.get(""); status != 502 || !strings.Contains(body, "port 80 of the job's machine is not reached: the second") {
		t.Errorf("%d %q", status, body)
	}
	first() // an attempt that ends late
	if status, body := f.get(""); status != 502 || !strings.Contains(body, "the second") {
		t.Errorf("after the first's end: %d %q", status, body)
	}
	second()
	if status, body := f.get(""); status != 404 || !strings.Contains(body, job) {
		t.Errorf("after the end: %d %q", status, body)
	}
}

func TestProxyRefused(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		want   string
	}{
		{&net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}, 502, "nothing listens on port 80"},
		{fmt.Errorf("%w: 32", forward.ErrBusy), 503, "as many connections"},
		{errors.New("the agent has gone"), 502, "is not reached: the agent has gone"},
	} {
		t.Run(c.want, func(t *testing.T) {
			f := newFront(t)
			f.publish(func(context.Context, uint16) (net.Conn, error) { return nil, c.err })
			if status, body := f.get(""); status != c.status || !strings.Contains(body, c.want) {
				t.Errorf("%d %q", status, body)
			}
		})
	}
}

func TestValidDomain(t *testing.T) {
	for _, good := range []string{"localhost", "ports.example.com", "a-b.c1"} {
		if !forward.ValidDomain(good) {
			t.Errorf("%q is none", good)
		}
	}
	for _, bad := range []string{"", ".", "a.", ".a", "a..b", "Localhost", "-a", "a-", "a_b", "a b", "a:80", "http://a", "*.a", strings.Repeat("a", 64), strings.Repeat("a.", 120) + "a"} {
		if forward.ValidDomain(bad) {
			t.Errorf("%q is one", bad)
		}
	}
}
