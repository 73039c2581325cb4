package hostnet_test

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/paddockvm/paddock/worker/hostnet"
)

func TestDNS(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cfg := l.config(t)
	reg := prometheus.NewPedanticRegistry()
	cfg.Registerer = reg
	cfg.Upstream = []netip.AddrPort{netip.MustParseAddrPort(uplinkAddr + ":5353"), netip.MustParseAddrPort(resolver + ":53")} // nobody is at the first
	var many []string
	var addrs []string
	for i := range 60 {
		addrs = append(addrs, fmt.Sprintf("45.60.0.%d", i))
		many = append(many, fmt.Sprintf("many.example. 60 A 45.60.0.%d", i))
	}
	l.dns.set("many.example.", many...)
	l.dns.set("ok.example.", "ok.example. 60 A "+web, "ok.example. 60 A "+private10, `ok.example. 60 TXT "hello"`, "ok.example. 60 AAAA "+web6,
		"ok.example. 60 HTTPS 1 . ipv4hint="+third)
	l.dns.set("rebind.example.", "rebind.example. 60 A "+metadata)
	s := take(t, run(t, cfg))
	g := newGuest(t, s)
	allow(t, s, hostnet.Policy{Kind: hostnet.Internet})
	ask := func(network, name string, kind uint16) *dns.Msg {
		t.Helper()
		a, err := lookup(g.ns, network, s.Guest().DNS.String(), name, kind, granted)
		if err != nil {
			t.Fatalf("ask for %s: %v", name, err)
		}
		return a
	}
	for _, c := range []struct {
		name  string
		kind  uint16
		rcode int
		addrs []string
		other int // records that are no addresses
	}{
		{"ok.example.", dns.TypeA, dns.RcodeSuccess, []string{web}, 0},
		{"OK.Example.", dns.TypeAAAA, dns.RcodeSuccess, nil, 0}, // there is no IPv6
		{"ok.example.", dns.TypeTXT, dns.RcodeSuccess, nil, 1},
		{"ok.example.", dns.TypeHTTPS, dns.RcodeSuccess, nil, 0},
		{"ok.example.", dns.TypeANY, dns.RcodeNotImplemented, nil, 0},
		{"ok.example.", dns.TypeAXFR, dns.RcodeNotImplemented, nil, 0},
		{"rebind.example.", dns.TypeA, dns.RcodeSuccess, nil, 0},
		{"none.example.", dns.TypeA, dns.RcodeNameError, nil, 0},
	} {
		a := ask("tcp", c.name, c.kind)
		got := addressesOf(a)
		if a.Rcode != c.rcode || cmp.Diff(c.addrs, got) != "" || len(a.Answer) != len(got)+c.other {
			t.Errorf("%s %s:\n%s", c.name, dns.TypeToString[c.kind], a)
		}
	}
	if a := ask("udp", "many.example.", dns.TypeA); !a.Truncated && len(addressesOf(a)) != len(addrs) {
		t.Errorf("by UDP %d of %d addresses came, and nothing says so", len(addressesOf(a)), len(addrs))
	}
	if diff := cmp.Diff(addrs, addressesOf(ask("tcp", "many.example.", dns.TypeA))); diff != "" {
		t.Errorf("by TCP (-want +got):\n%s", diff)
	}
	families, err := reg.Gather()
	must(t, err)
	counted := map[string]float64{}
	for _, f := range families {
		if f.GetName() == "paddock_network_dns_questions_total" {
			for _, m := range f.GetMetric() {
				counted[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	if diff := cmp.Diff(map[string]float64{"answered": 8, "refused": 2}, counted); diff != "" {
		t.Errorf("questions counted (-want +got):\n%s", diff)
	}
}

// TestDNSFlood has a guest ask as much as it can, by a server that does not answer: the slot's own stays there for another slot, and
// comes back.
func TestDNSFlood(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.dns.set("ok.example.", "ok.example. 60 A "+web)
	cfg := l.config(t)
	h := run(t, cfg)
	a, b := take(t, h), take(t, h)
	ga, gb := newGuest(t, a), newGuest(t, b)
	for _, s := range []*hostnet.Slot{a, b} {
		allow(t, s, hostnet.Policy{Kind: hostnet.Internet})
	}
	var floods sync.WaitGroup
	for range 4 {
		floods.Go(func() {
			err := in(ga.ns, func() error {
				c, err := net.Dial("udp", a.Guest().DNS.String()+":53")
				if err != nil {
					return err
				}
				defer c.Close()
				for i := range 2000 {
					m := new(dns.Msg)
					m.SetQuestion(fmt.Sprintf("x%d.example.", i), dns.TypeA)
					p, err := m.Pack()
					if err != nil {
						return err
					}
					c.Write(p)
					c.Write(p[:i%len(p)]) // and nonsense
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wantAnswer(t, gb, b, "ok.example.", dns.TypeA, web)
	floods.Wait()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		m, err := lookup(ga.ns, "udp", a.Guest().DNS.String(), "ok.example.", dns.TypeA, denied)
		if err == nil && m.Rcode == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after a flood the slot's own guest is not answered: %v", err)
		}
	}
}

// Whatever other machines ask, and nobody answers, a machine's question is asked.
func TestDNSBesideTheUnanswered(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.dns.set("ok.example.", "ok.example. 60 A "+web)
	h := run(t, l.config(t))
	s := take(t, h)
	g := newGuest(t, s)
	allow(t, s, hostnet.Policy{Kind: hostnet.Internet})
	defer h.OthersAsk()()
	wantAnswer(t, g, s, "ok.example.", dns.TypeA, web)
}

// What a guest has pinned takes memory of the host's kernel: there is an end to it.
func TestPinsHaveAnEnd(t *testing.T) {
	t.Parallel()
	const each, names = 2048, 2 * hostnet.MostPins / 2048
	l := newLab(t)
	for n := range names {
		var records []string
		for i := range each {
			records = append(records, fmt.Sprintf("n%d.example. 3600 A 45.%d.%d.%d", n, n, i>>8, i&255))
		}
		l.dns.set(fmt.Sprintf("n%d.example.", n), records...)
	}
	s := take(t, run(t, l.config(t)))
	g := newGuest(t, s)
	allow(t, s, hostnet.Policy{Kind: hostnet.Allowlist, Domains: []string{"*.example"}})
	pinned := 0
	for n := range names {
		a, err := lookup(g.ns, "tcp", s.Guest().DNS.String(), fmt.Sprintf("n%d.example.", n), dns.TypeA, granted)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 && len(a.Answer) != each {
			t.Errorf("the first answer has %d addresses: %v", len(a.Answer), a.Rcode)
		}
		pinned += len(a.Answer)
	}
	if pinned > hostnet.MostPins {
		t.Errorf("%d addresses are pinned, of %d at most", pinned, hostnet.MostPins)
	}
}
