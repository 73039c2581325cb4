package api_test

import (
	"crypto/tls"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/paddockvm/paddock/dispatcher/api"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/bubble"
)

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// Who sees whose jobs.
func TestAccess(t *testing.T) {
	r := serve(t, api.Config{Access: &people{by: map[string]api.Grant{"acme x": {Tenant: "acme"}, "other x": {Tenant: "other"}, "monitor x": {}, "worker x": {}}}})
	r.source.add("acme", final(1, 1))
	for name, c := range map[string]struct {
		authorization, query string
		status               int
		code                 jobs.Code
	}{
		"its own":                 {basic("acme", "x"), "", 200, ""},
		"its own, by name":        {basic("acme", "x"), "?tenant=acme", 200, ""},
		"another's":               {basic("other", "x"), "", 404, jobs.CodeNotFound},
		"another's, by name":      {basic("other", "x"), "?tenant=acme", 403, jobs.CodeForbidden},
		"a monitor":               {basic("monitor", "x"), "?tenant=acme", 200, ""},
		"a monitor, of another":   {basic("monitor", "x"), "?tenant=other", 404, jobs.CodeNotFound},
		"a monitor, of whom":      {basic("monitor", "x"), "", 400, jobs.CodeInvalid},
		"a worker":                {basic("worker", "x"), "?tenant=acme", 403, jobs.CodeForbidden},
		"a wrong password":        {basic("acme", "y"), "", 401, jobs.CodeForbidden},
		"nobody":                  {"", "", 401, jobs.CodeForbidden},
		"another kind of showing": {"Bearer x", "", 401, jobs.CodeForbidden},
		"a wrong id":              {basic("acme", "y"), "?after=x", 401, jobs.CodeForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			r := *r
			r.T = t
			a := r.get(path+c.query, "Authorization", c.authorization)
			if asked := a.Header.Get("WWW-Authenticate"); (c.status == 401) != strings.HasPrefix(asked, "Basic ") {
				t.Errorf("WWW-Authenticate: %q", asked)
			}
			if c.code != "" {
				r.refused(name, a, c.status, c.code)
			} else if a.StatusCode != c.status {
				t.Error(a.Status)
			}
		})
	}
}

// A page that a browser has from elsewhere reads nothing, also where its name leads here.
func TestPages(t *testing.T) {
	open, guarded := serveTCP(t, api.Config{}), serveTCP(t, api.Config{Access: &people{by: map[string]api.Grant{"a x": {Tenant: "default"}}}})
	for _, r := range []*rig{open, guarded} {
		r.source.add("default", final(1, 1))
	}
	for name, c := range map[string]struct {
		headers       []string
		open, guarded int
	}{
		"curl":                   {nil, 200, 200},
		"localhost":              {[]string{"Host", "localhost:8080"}, 200, 200},
		"IPv6":                   {[]string{"Host", "[::1]:8080"}, 200, 200},
		"a name":                 {[]string{"Host", "evil.example"}, 403, 200},
		"a name with a port":     {[]string{"Host", "localhost.evil.example:8080"}, 403, 200},
		"an address":             {[]string{"Host", "10.1.2.3"}, 403, 200},
		"its own page":           {[]string{"Host", "localhost:8080", "Origin", "http://localhost:8080", "Sec-Fetch-Site", "same-origin"}, 200, 200},
		"typed by the user":      {[]string{"Sec-Fetch-Site", "none"}, 200, 200},
		"another port's page":    {[]string{"Host", "localhost:8080", "Origin", "http://localhost:3000", "Sec-Fetch-Site", "same-site"}, 403, 403},
		"another page's picture": {[]string{"Sec-Fetch-Site", "cross-site"}, 403, 403},
		"a rebound page":         {[]string{"Host", "evil.example", "Sec-Fetch-Site", "same-origin"}, 403, 200},
		"an older browser":       {[]string{"Origin", "https://evil.example"}, 403, 403},
		"a file":                 {[]string{"Origin", "null"}, 403, 403},
		"an older browser's own": {[]string{"Host", "localhost:8080", "Origin", "http://localhost:8080"}, 200, 200},
	} {
		for _, of := range []struct {
			r    *rig
			want int
		}{{open, c.open}, {guarded, c.guarded}} {
			a := of.r.get(path, append([]string{"Authorization", basic("a", "x")}, c.headers...)...)
			if a.StatusCode != of.want || a.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s, with credentials %t: %s, want %d", name, of.r == guarded, a.Status, of.want)
			}
		}
	}
}

// So many may watch, and of one tenant so many; who leaves makes room.
func TestTooMany(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := serve(t, api.Config{Viewers: 3, TenantViewers: 2})
		for _, tenant := range []string{"a", "b", "c"} {
			r.source.add(tenant)
		}
		first := r.get(path + "?tenant=a")
		for _, tenant := range []string{"a", "b"} {
			if a := r.get(path + "?tenant=" + tenant); a.StatusCode != http.StatusOK {
				t.Fatal(a.Status)
			}
			if tenant == "a" {
				r.refused("a third of a", r.get(path+"?tenant=a"), http.StatusTooManyRequests, jobs.CodeQuota)
			}
		}
		r.refused("a fourth", r.get(path+"?tenant=c"), http.StatusTooManyRequests, jobs.CodeQuota)
		first.Body.Close()
		synctest.Wait()
		if a := r.get(path + "?tenant=c"); a.StatusCode != http.StatusOK {
			t.Error(a.Status)
		}
	})
}

// A few passwords are checked at a time, and of those who wait there is a bound.
func TestPasswordsInTurn(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := &people{hold: make(chan struct{}), by: map[string]api.Grant{"a x": {Tenant: "default"}}}
		r := serve(t, api.Config{Access: p})
		r.source.add("default", final(1, 1))
		var all sync.WaitGroup
		var ok, busy atomic.Int64
		const more = 20
		for range api.MaxWaiting + more {
			all.Go(func() {
				a, err := r.client.Do(authorized(t, r.url+path))
				if err != nil {
					t.Error(err)
					return
				}
				defer a.Body.Close()
				switch a.StatusCode {
				case http.StatusOK:
					ok.Add(1)
				case http.StatusServiceUnavailable:
					busy.Add(1)
				default:
					t.Error(a.Status)
				}
			})
		}
		synctest.Wait()
		if busy.Load() != more {
			t.Errorf("%d were sent away, want %d", busy.Load(), more)
		}
		close(p.hold)
		all.Wait()
		if ok.Load() != api.MaxWaiting || p.most != r.server.Checking() {
			t.Errorf("%d were let in, %d at once, want %d and %d", ok.Load(), p.most, api.MaxWaiting, r.server.Checking())
		}
	})
}

func authorized(t *testing.T, url string) *http.Request {
	q := request(t, http.MethodGet, url, nil)
	q.Header.Set("Authorization", basic("a", "x"))
	return q
}

// A stream ends with what it was let in by: at its time, or when that is taken back, and then also where that was just before it began.
func TestGrantEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		begun := time.Now()
		var gone atomic.Bool
		p := &people{by: map[string]api.Grant{
			"a x": {Tenant: "default", Holds: func() bool { return !gone.Load() }}, "b x": {Tenant: "default", Until: begun.Add(time.Hour)}, "c x": {Tenant: "default"},
		}}
		r := serve(t, api.Config{Access: p})
		r.source.add("default")
		ended := map[string]chan time.Duration{}
		for _, user := range []string{"a", "b", "c"} {
			a := r.get(path, "Authorization", basic(user, "x"))
			if a.StatusCode != http.StatusOK {
				t.Fatal(a.Status)
			}
			ended[user] = make(chan time.Duration, 1)
			go func() {
				ids(a.Body)
				ended[user] <- time.Since(begun)
			}()
		}
		time.Sleep(time.Minute)
		r.server.Recheck()
		synctest.Wait()
		if n := r.source.followers(); n != 3 {
			t.Fatalf("%d watch while all grants hold", n)
		}
		gone.Store(true)
		r.server.Recheck()
		if d := <-ended["a"]; d != time.Minute {
			t.Errorf("a: %v", d)
		}
		if d := <-ended["b"]; d != time.Hour {
			t.Errorf("b: %v", d)
		}
		synctest.Wait()
		if n := r.source.followers(); n != 1 {
			t.Errorf("%d watch", n)
		}
		r.refused("after it was taken back", r.get(path, "Authorization", basic("a", "x")), http.StatusUnauthorized, jobs.CodeForbidden)
	})
}

// certified gives the TLS of a server and of a client that trusts it.
func certified(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	lent := httptest.NewUnstartedServer(nil) // for its certificate
	lent.StartTLS()
	defer lent.Close()
	roots := lent.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	return &tls.Config{Certificates: lent.TLS.Certificates, MinVersion: tls.VersionTLS12}, &tls.Config{RootCAs: roots, ServerName: "example.com", MinVersion: tls.VersionTLS12}
}

// In HTTP/2 streams share a connection, and so who does not read one loses that alone.
func TestSlowStream(t *testing.T) {
	server, client := certified(t)
	bubble.Test(t, func(t *testing.T) {
		r := serve(t, api.Config{TLS: server})
		tr := &http.Transport{DialContext: r.net.dial, TLSClientConfig: client, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		r.client, r.url = &http.Client{Transport: tr}, "https://example.com"
		r.source.add("a")
		r.source.add("b", output(1, 1, "x"))
		reads := r.get(path + "?tenant=a")
		next, stop := pull(reads.Body)
		defer stop()
		r.get(path + "?tenant=b") // and does not
		for seq := int64(2); seq <= 200; seq++ {
			r.source.add("b", output(1, seq, strings.Repeat("y", 64<<10)))
		}
		time.Sleep(api.WriteWithin + time.Second)
		synctest.Wait()
		if n := r.source.followers(); n != 1 {
			t.Errorf("%d are served", n)
		}
		r.source.add("a", output(1, 1, "z"))
		if f := next(); f.id != "1.1" || reads.ProtoMajor != 2 {
			t.Errorf("got %+v over %s", f, reads.Proto)
		}
		r.stop()
	})
}

// Over TLS it is HTTP/2, where a browser has no bound of six streams; and it ends there, too.
func TestTLS(t *testing.T) {
	server, client := certified(t)
	r := serveTCP(t, api.Config{TLS: server})
	tr := &http.Transport{TLSClientConfig: client, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	r.client, r.url = &http.Client{Transport: tr}, strings.Replace(r.url, "http:", "https:", 1)
	r.source.add("default", output(1, 1, strings.Repeat("x", 1<<20)))
	a := r.get(path)
	next, stop := pull(a.Body)
	defer stop()
	if f := next(); a.ProtoMajor != 2 || f.id != "1.1" || len(f.data) < 1<<20 {
		t.Errorf("%s, %s with %d bytes", a.Proto, f.id, len(f.data))
	}
	r.stop()
	if f := next(); f.id != "" {
		t.Errorf("then %+v", f)
	}
}
