package webhook_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/paddockvm/paddock/dispatcher/webhook"
	"github.com/paddockvm/paddock/dispatcher/webhook/webhooktest"
	"github.com/paddockvm/paddock/jobs"
)

// names is a DNS server on loopback: for a name it gives what answer says.
func names(t *testing.T, answer func(name string) []string) *net.Resolver {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	server := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg)
		r.SetReply(q)
		for _, text := range answer(strings.TrimSuffix(q.Question[0].Name, ".")) {
			a := netip.MustParseAddr(text)
			h := dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 0}
			switch {
			case a.Is4() && q.Question[0].Qtype == dns.TypeA:
				r.Answer = append(r.Answer, &dns.A{Hdr: h, A: a.AsSlice()})
			case a.Is6() && q.Question[0].Qtype == dns.TypeAAAA:
				h.Rrtype = dns.TypeAAAA
				r.Answer = append(r.Answer, &dns.AAAA{Hdr: h, AAAA: a.AsSlice()})
			}
		}
		_ = w.WriteMsg(r)
	})}
	done := make(chan error, 1)
	go func() { done <- server.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		if err := server.Shutdown(); err != nil {
			t.Error(err)
		}
		<-done
	})
	d := &net.Dialer{}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "udp", pc.LocalAddr().String())
	}}
}

// TestDenied: no address that is not the public Internet's is connected to, whatever name stands for it; and none is taken as a URL.
func TestDenied(t *testing.T) {
	ranges := []string{ // first and last addresses
		"0.0.0.0 0.255.255.255", "10.0.0.0 10.255.255.255", "100.64.0.0 100.127.255.255", "127.0.0.0 127.0.0.1 127.255.255.255",
		"168.63.129.16", "169.254.0.0 169.254.169.254 169.254.255.255", "172.16.0.0 172.31.255.255", "192.0.0.0 192.0.0.255", "192.0.2.0 192.0.2.255", "192.88.99.0 192.88.99.255",
		"192.168.0.0 192.168.255.255", "198.18.0.0 198.19.255.255", "198.51.100.0 198.51.100.255", "203.0.113.0 203.0.113.255", "224.0.0.0 239.255.255.255",
		"240.0.0.0 255.255.255.255", ":: ::1", "fc00:: fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fe80:: fe80::1 febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
		"fec0::1", "ff00:: ff02::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:: 2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8:: 2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
		"2002:: 2002:7f00:1:: 2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "64:ff9b:: 64:ff9b::7f00:1 64:ff9b::ffff:ffff", "64:ff9b:1::1", "100::1", "3fff::1", "5f00::1",
		"::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:192.168.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1", "4000::1",
	}
	var mapped []netip.Addr
	for _, r := range ranges {
		for _, text := range strings.Fields(r) {
			a := netip.MustParseAddr(text)
			mapped = append(mapped, a)
			if a.Is4() {
				mapped = append(mapped, netip.AddrFrom16(a.As16())) // ::ffff:a.b.c.d
			}
		}
	}
	var current atomic.Value
	resolver := names(t, func(string) []string { return []string{current.Load().(netip.Addr).String()} })
	store := webhooktest.NewStore()
	s, _ := run(t, webhook.Config{Store: store, Guard: webhook.Guard{Resolver: resolver}, Schedule: []time.Duration{0}})
	for _, a := range mapped {
		host := "[" + a.String() + "]"
		if a.Is4() {
			host = a.String()
		}
		if _, _, err := s.Add(t.Context(), "t", jobs.EndpointRequest{URL: "https://" + host + "/"}); jobs.ErrorOf(err) == nil || jobs.ErrorOf(err).Code != jobs.CodeInvalid {
			t.Errorf("%s is taken as a URL: %v", a, err)
		}
		if a.Is4In6() {
			continue // no DNS server can say that: an AAAA of it is read as an A
		}
		current.Store(a)
		host = strings.NewReplacer(":", "-", ".", "-").Replace("x"+a.String()+"x") + ".example.net"
		h := ended("t", jobs.Callback{URL: "https://" + host + "/"})
		store.Hook(h)
		var l []jobs.Delivery
		eventually(t, "the try's end", func() bool {
			var err error
			l, _, err = s.Deliveries(t.Context(), "t", jobs.DeliveriesRequest{Job: jobOf(h), States: []jobs.DeliveryState{jobs.DeliveryFailed}})
			return err == nil && len(l) == 1
		})
		if l[0].Error != "the host is not an address that webhooks may reach" { // and not which
			t.Errorf("%s: %+v", a, l)
		}
	}
}

// TestURLs: what is taken as an endpoint's URL, as far as the text tells.
func TestURLs(t *testing.T) {
	strict, loose := webhook.Guard{}, webhook.Guard{HTTP: true, Ports: []uint16{443, 80, 9000}, Allow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}
	for _, tt := range []struct {
		url           string
		strict, loose bool
	}{
		{"https://example.com/hook?x=y", true, true},
		{"https://example.com:443/", true, true},
		{"https://example.com:8443/", true, false},
		{"https://example.com:9000/", false, true},
		{"https://example.com:22/", false, false},
		{"http://example.com/", false, true},
		{"http://example.com:9000/", false, true},
		{"https://user:pass@example.com/", false, false},
		{"https:///x", false, false},
		{"ftp://example.com/", false, false},
		{"https://example.com:99999/", false, false},
		{"https://10.1.2.3/", false, true},
		{"https://[::ffff:10.1.2.3]/", false, true},
		{"https://10.2.2.3/", false, false},
		{"https://[fe80::1%25eth0]/", false, false},
		{"https://93.184.216.34/", true, true},
		{"https://[2606:2800:220:1::1]/", true, true},
		{"%", false, false},
	} {
		if err := strict.Check(tt.url); (err == nil) != tt.strict {
			t.Errorf("%s: %v", tt.url, err)
		}
		if err := loose.Check(tt.url); (err == nil) != tt.loose {
			t.Errorf("%s where more is allowed: %v", tt.url, err)
		}
	}
}

// samePort listens on one port of 127.0.0.2 and of 127.0.0.1: ports of the first are drawn until one is free on the other too.
func samePort(t *testing.T) (outer, inner net.Listener, port uint16) {
	t.Helper()
	for {
		outer, err := net.Listen("tcp", "127.0.0.2:0")
		if err != nil {
			t.Fatal(err)
		}
		port := netip.MustParseAddrPort(outer.Addr().String()).Port()
		inner, err := net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String())
		if err == nil {
			return outer, inner, port
		}
		defer outer.Close() // after the next is drawn, so that it is another
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
}

// TestNameTimesOut: where the servers of names do not answer in time it is the name that failed, not the host.
func TestNameTimesOut(t *testing.T) {
	resolver := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, os.ErrDeadlineExceeded }}
	store := webhooktest.NewStore()
	s, _ := run(t, webhook.Config{Store: store, Guard: webhook.Guard{Resolver: resolver}, Schedule: []time.Duration{0}})
	store.Hook(ended("t", jobs.Callback{URL: "https://slow.example.net/"}))
	eventually(t, "the try's end", func() bool {
		l, _, err := s.Deliveries(t.Context(), "t", jobs.DeliveriesRequest{States: []jobs.DeliveryState{jobs.DeliveryFailed}})
		return err == nil && len(l) == 1
	})
	if d := only(t, s, "t"); d.Error != "the host's name cannot be resolved" {
		t.Errorf("delivery %+v", d)
	}
}

// TestRebinding: a name that stands for another address at the next try is judged by that.
func TestRebinding(t *testing.T) {
	hits, insideHits, rebound := atomic.Int64{}, atomic.Int64{}, atomic.Bool{}
	serve := func(l net.Listener, h http.HandlerFunc) *httptest.Server {
		s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
		s.Start()
		t.Cleanup(s.Close)
		return s
	}
	outer, inner, port := samePort(t)
	allowed := serve(outer, func(w http.ResponseWriter, _ *http.Request) {
		hits.Add(1)
		rebound.Store(true) // before it is answered: the next try may come at once
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusInternalServerError)
	})
	serve(inner, func(http.ResponseWriter, *http.Request) { insideHits.Add(1) })
	resolver := names(t, func(name string) []string {
		switch {
		case name == "both.example.net":
			return []string{"127.0.0.1", "127.0.0.2"}
		case !rebound.Load():
			return []string{"127.0.0.2"}
		}
		return []string{"127.0.0.1"}
	})
	g := webhook.Guard{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}, HTTP: true, Ports: []uint16{port}, Resolver: resolver}
	store := webhooktest.NewStore()
	s, _ := run(t, webhook.Config{Store: store, Guard: g, Schedule: []time.Duration{0, 10 * time.Millisecond}})
	store.Hook(ended("t", jobs.Callback{URL: "http://rebinds.example.net" + strings.TrimPrefix(allowed.URL, "http://127.0.0.2")}))
	eventually(t, "the first try", func() bool { return hits.Load() > 0 })
	eventually(t, "the end", func() bool { return only(t, s, "t").State == jobs.DeliveryFailed })
	d := only(t, s, "t")
	if len(d.Tries) != 2 || d.Tries[0].Status != 500 || d.Tries[1].Status != 0 || d.Error != "the host is not an address that webhooks may reach" {
		t.Errorf("delivery %+v", d)
	}
	store.Hook(ended("u", jobs.Callback{URL: "http://both.example.net" + strings.TrimPrefix(allowed.URL, "http://127.0.0.2")}))
	eventually(t, "a try by the address that is allowed", func() bool { return hits.Load() >= 2 })
	if n := insideHits.Load(); n != 0 {
		t.Errorf("the dispatcher's own network was reached %d times", n)
	}
}
