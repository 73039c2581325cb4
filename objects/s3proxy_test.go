package objects_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
)

// proxy stands between a store and its server of S3. The Host that was signed goes through.
type proxy struct {
	*httptest.Server

	mu   sync.Mutex
	seen func(*http.Request) // is called before a request goes on
}

// see has do called with each request from now on; it may hold it up.
func (p *proxy) see(do func(*http.Request)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = do
}

// startProxy starts one before a server of S3, which ends with the test.
func startProxy(t *testing.T, endpoint string, start func(http.Handler) *httptest.Server) *proxy {
	t.Helper()
	to, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	forward := &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = r.In.Host
	}}
	p := &proxy{seen: func(*http.Request) {}}
	p.Server = start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		seen := p.seen
		p.mu.Unlock()
		seen(r)
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		p.Close()
		transport.CloseIdleConnections()
	})
	return p
}
