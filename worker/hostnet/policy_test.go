package hostnet_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"github.com/paddockvm/paddock/worker/hostnet"
)

// try is one thing to reach, by one means.
type try struct {
	name string
	do   func(ns *os.File, patience time.Duration) error
}

func tries(how string, to ...string) []try {
	var l []try
	for _, a := range to {
		l = append(l, try{how + " " + a, func(ns *os.File, patience time.Duration) error {
			switch how {
			case "ping":
				return ping(ns, a, patience)
			case "udp":
				return udp(ns, a, 80, patience)
			case "dns":
				_, err := lookup(ns, "udp", a, "ok.example.", 1, patience)
				return err
			case "dns/tcp":
				_, err := lookup(ns, "tcp", a, "ok.example.", 1, patience)
				return err
			}
			var port int
			if _, err := fmt.Sscanf(how, "tcp/%d", &port); err == nil {
				_, err := tcp(ns, "", a, port, patience)
				return err
			}
			if _, err := fmt.Sscanf(how, "udp/%d", &port); err == nil {
				return udp(ns, a, port, patience)
			}
			panic(how)
		}})
	}
	return l
}

func every(to ...string) []try {
	return append(append(tries("tcp/80", to...), tries("udp", to...)...), tries("ping", to...)...)
}

// reaches and isDenied hold all tries against where they are made from. What is denied to a guest has to work from the host: else its
// denial would say nothing.
func reaches(t *testing.T, from string, ns *os.File, l ...[]try) {
	t.Helper()
	for _, tries := range l {
		for _, try := range tries {
			if err := try.do(ns, granted); err != nil {
				t.Errorf("%s does not reach %s: %v", from, try.name, err)
			}
		}
	}
}

func isDenied(t *testing.T, l *lab, g *guest, tries ...[]try) {
	t.Helper()
	reaches(t, "the host", l.host, tries...)
	refused(t, g, tries...)
}

func refused(t *testing.T, g *guest, l ...[]try) {
	t.Helper()
	isRefused(t, "the guest", g.ns, l...)
}

// isRefused makes all tries at once: each waits for what does not come.
func isRefused(t *testing.T, from string, ns *os.File, l ...[]try) {
	t.Helper()
	var all sync.WaitGroup
	defer all.Wait()
	for _, try := range slices.Concat(l...) {
		all.Go(func() {
			if try.do(ns, denied) == nil {
				t.Errorf("%s reaches %s", from, try.name)
			}
		})
	}
}

var ownAddresses = []string{hostAddr, hostSecond}
var privateAddresses = []string{metadata, azure, alibaba, private10, private172, private192, cgnat, bench, reserved}

// always is what no policy lets a guest do.
func always(t *testing.T, l *lab, g *guest) {
	t.Helper()
	isDenied(t, l, g, every(ownAddresses...), every(privateAddresses...),
		tries("tcp/25", web), tries("udp/25", web), tries("tcp/853", web), tries("udp/853", web),
		tries("dns", elseDNS, resolver), tries("dns/tcp", elseDNS, resolver))
}

func TestNone(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.dns.set("ok.example.", "ok.example. 60 A "+web)
	s := take(t, run(t, l.config(t)))
	g := newGuest(t, s)
	for _, p := range []hostnet.Policy{{}, {Kind: hostnet.None}, {Kind: hostnet.Allowlist}} {
		allow(t, s, p)
		isDenied(t, l, g, every(web), tries("tcp/443", other))
		always(t, l, g)
		if a, err := lookup(g.ns, "udp", s.Guest().DNS.String(), "ok.example.", 1, granted); err != nil || a.Rcode != 5 {
			t.Errorf("the slot's DNS server: %v %v, want REFUSED", a, err)
		}
	}
	if n := l.dns.questions.Load(); n == 0 { // the host's own, of always
		t.Error("nobody asked the DNS servers of the internet")
	}
}

func TestInternet(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.dns.set("ok.example.", "ok.example. 60 A "+web)
	s := take(t, run(t, l.config(t)))
	g := newGuest(t, s)
	allow(t, s, hostnet.Policy{Kind: hostnet.Internet})
	reaches(t, "the guest", g.ns, every(web, other), tries("tcp/443", web), tries("udp/443", web))
	if as, err := tcp(g.ns, "", web, 80, granted); as != hostAddr {
		t.Errorf("seen as %q, want %s: %v", as, hostAddr, err)
	}
	reaches(t, "the guest", g.ns, tries("dns", s.Guest().DNS.String()), tries("dns/tcp", s.Guest().DNS.String()))
	always(t, l, g)
	refused(t, g, tries("ping", s.Guest().Gateway.String()), tries("tcp/80", s.Guest().Gateway.String()))

	t.Run("an address that the host gets later", func(t *testing.T) {
		const late = "45.20.77.1"
		reaches(t, "the guest", g.ns, tries("tcp/80", web))
		address(t, l.host, "lo", late+"/32")
		isDenied(t, l, g, every(late))
	})
	t.Run("IPv6", func(t *testing.T) {
		reaches(t, "the host", l.host, every(web6))
		sixth(t, g, "fd70:6164:6463:ffff::2/64", "fd70:6164:6463:ffff::1")
		refused(t, g, every(web6, host6, private6))
	})
	t.Run("false sources", func(t *testing.T) {
		address(t, g.ns, "eth0", "45.66.66.66/32")
		if _, err := tcp(g.ns, "45.66.66.66", web, 80, denied); err == nil {
			t.Error("a false address got out")
		}
		if _, err := tcp(g.ns, "169.254.0.2", web, 80, granted); err != nil {
			t.Errorf("and the right one did not: %v", err)
		}
		card(t, g, "02:fc:00:00:00:99")
		if _, err := tcp(g.ns, "", web, 80, denied); err == nil {
			t.Error("a false card got out")
		}
		card(t, g, hostnet.GuestMAC)
		reaches(t, "the guest", g.ns, tries("tcp/80", web))
	})
	t.Run("and back to none", func(t *testing.T) {
		allow(t, s, hostnet.Policy{})
		refused(t, g, every(web))
	})
}

// sixth gives a guest an IPv6 address that its host did not speak of.
func sixth(t *testing.T, g *guest, addr, via string) {
	t.Helper()
	address(t, g.ns, "eth0", addr)
	nl := rtnl(t, g.ns)
	defer nl.Close()
	l, err := nl.LinkByName("eth0")
	must(t, err)
	mac, err := parseMAC(hostnet.HostMAC)
	must(t, err)
	gw := netip.MustParseAddr(via)
	must(t, nl.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: gw.AsSlice(), HardwareAddr: mac}))
	route(t, g.ns, "::/0", via)
}

func card(t *testing.T, g *guest, address string) {
	t.Helper()
	nl := rtnl(t, g.ns)
	defer nl.Close()
	l, err := nl.LinkByName("eth0")
	must(t, err)
	mac, err := parseMAC(address)
	must(t, err)
	must(t, nl.LinkSetHardwareAddr(l, mac))
}

func TestIPv6(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cfg := l.config(t)
	cfg.IPv6 = true
	l.dns.set("six.example.", "six.example. 60 AAAA "+web6, "six.example. 60 A "+web)
	l.dns.set("inside.example.", "inside.example. 60 AAAA "+private6)
	s := take(t, run(t, cfg))
	g := newGuest(t, s)
	allow(t, s, hostnet.Policy{Kind: hostnet.Internet})
	reaches(t, "the host", l.host, every(web6, private6))
	refused(t, g, every(web6, host6, private6))
	reaches(t, "the guest", g.ns, every(web))
	wantAnswer(t, g, s, "six.example.", 28)

	allow(t, s, hostnet.Policy{Kind: hostnet.Internet, IPv6: true})
	reaches(t, "the guest", g.ns, every(web6, web))
	if as, err := tcp(g.ns, "", web6, 80, granted); as != host6 {
		t.Errorf("seen as %q, want %s: %v", as, host6, err)
	}
	refused(t, g, every(host6, private6))
	wantAnswer(t, g, s, "six.example.", 28, web6)
	wantAnswer(t, g, s, "inside.example.", 28)
	if _, err := tcp(g.ns, "fd70:6164:6463:ffff::77", web6, 80, denied); err == nil {
		t.Error("a false address got out")
	}

	allow(t, s, hostnet.Policy{Kind: hostnet.Allowlist, Domains: []string{"six.example"}, IPv6: true})
	refused(t, g, every(web6))
	wantAnswer(t, g, s, "six.example.", 28, web6)
	reaches(t, "the guest", g.ns, every(web6))
	refused(t, g, every(web))
}

// TestSourceRoutes: a namespace that begins with an operator's settings lets no packet name its own route, once it is a slot's.
func TestSourceRoutes(t *testing.T) {
	t.Parallel()
	needRoot(t)
	const setting = "/proc/sys/net/ipv4/conf/all/accept_source_route"
	must(t, in(namespace(t), func() error {
		if err := os.WriteFile(setting, []byte("1"), 0); err != nil {
			return err
		}
		if err := hostnet.Sysctls(hostnet.Config{}); err != nil {
			return err
		}
		b, err := os.ReadFile(setting)
		if err == nil && strings.TrimSpace(string(b)) != "0" {
			err = fmt.Errorf("%s is %q", setting, b)
		}
		return err
	}))
}

func TestNeighbours(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cfg := l.config(t)
	h := run(t, cfg)
	a, b := take(t, h), take(t, h)
	guests := []*guest{newGuest(t, a), newGuest(t, b)}
	for i, s := range []*hostnet.Slot{a, b} {
		allow(t, s, hostnet.Policy{Kind: hostnet.Internet})
		echo(t, guests[i].ns, 80)
	}
	at := l.forward(t, b, 80)
	if _, err := tcp(l.host, "", at.Addr().String(), int(at.Port()), granted); err != nil {
		t.Fatalf("the neighbour's port does not answer: %v", err)
	}
	neighbour := []string{"100.96.0.0", "100.96.0.1", "100.96.0.2", "100.96.0.3"} // both slots' ends, and the host's
	refused(t, guests[0], every(neighbour...))
	// From outside: the internet has a way to the slots, and is let in nowhere.
	route(t, l.internet, "100.96.0.0/16", hostAddr)
	isRefused(t, "the internet", l.internet, every("100.96.0.1", "100.96.0.3"))

	t.Run("where a slot's own rules are gone", func(t *testing.T) {
		openUp(t, cfg.StateDir+"/netns/0")
		openUp(t, cfg.StateDir+"/netns/1")
		for i, g := range guests {
			reaches(t, "the guest", g.ns, every(web), tries("tcp/25", web)) // so they are
			own := fmt.Sprintf("100.96.0.%d", 2*i+1)                        // its namespace's, which now answers
			refused(t, g, every(slices.DeleteFunc(slices.Clone(neighbour), func(a string) bool { return a == own })...), every(ownAddresses...))
		}
	})
}

// openUp takes a slot's rules away, but that its packets leave with its address.
func openUp(t *testing.T, path string) {
	t.Helper()
	ns, err := os.Open(path)
	must(t, err)
	defer ns.Close()
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	must(t, err)
	c.FlushRuleset()
	table := c.AddTable(&nftables.Table{Name: "open", Family: nftables.TableFamilyIPv4})
	chain := c.AddChain(&nftables.Chain{Name: "post", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Masq{}}})
	must(t, c.Flush())
}

func TestAllowlist(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cfg := l.config(t)
	cfg.MinPin = 30 * time.Second // for as long a loaded machine may take from an answer to a connection
	l.dns.set("ok.example.", "ok.example. 0 A "+web)
	l.dns.set("not.example.", "not.example. 60 A "+third)
	l.dns.set("a.wild.example.", "a.wild.example. 300 CNAME edge.cdn.example.", "edge.cdn.example. 300 A "+third)
	l.dns.set("wild.example.", "wild.example. 300 A "+other)
	l.dns.set("trap.example.", "trap.example. 300 A "+private10, "trap.example. 300 A "+metadata, "trap.example. 300 A "+hostAddr)
	l.dns.set("stray.example.", "stray.example. 300 A "+other, "unasked.example. 300 A "+third)
	s := take(t, run(t, cfg))
	g := newGuest(t, s)

	t.Run("prefixes", func(t *testing.T) {
		allow(t, s, hostnet.Policy{Kind: hostnet.Allowlist, Prefixes: []netip.Prefix{netip.MustParsePrefix(web + "/32"), netip.MustParsePrefix("45.20.9.0/24")}})
		reaches(t, "the guest", g.ns, every(web, third), tries("tcp/443", web))
		isDenied(t, l, g, every(other))
		always(t, l, g)
		wantRefused(t, g, s, "ok.example.")
	})
	t.Run("domains", func(t *testing.T) {
		allow(t, s, hostnet.Policy{Kind: hostnet.Allowlist, Domains: []string{"ok.example", "*.wild.example", "trap.example", "stray.example"}})
		isDenied(t, l, g, every(web, other, third)) // nobody has asked yet
		asked := l.dns.questions.Load()
		wantRefused(t, g, s, "not.example.", "wild.example.", "ok.example.evil.example.", "notok.example.", "example.")
		if n := l.dns.questions.Load() - asked; n != 0 {
			t.Errorf("%d questions that are not listed got out", n)
		}
		wantAnswer(t, g, s, "a.wild.example.", 1, third)
		reaches(t, "the guest", g.ns, every(third))
		isDenied(t, l, g, every(web, other))
		wantAnswer(t, g, s, "trap.example.", 1)
		isDenied(t, l, g, every(private10, metadata, hostAddr))
		wantAnswer(t, g, s, "stray.example.", 1, other)
		always(t, l, g)
	})
	t.Run("an answer that changes", func(t *testing.T) {
		allow(t, s, hostnet.Policy{Kind: hostnet.Allowlist, Domains: []string{"ok.example"}})
		wantAnswer(t, g, s, "ok.example.", 1, web)
		reaches(t, "the guest", g.ns, every(web))
		l.dns.set("ok.example.", "ok.example. 0 A "+other)
		wantAnswer(t, g, s, "ok.example.", 1, other)
		reaches(t, "the guest", g.ns, every(other))
		isDenied(t, l, g, every(third))
		runsOut(t, g, web) // the answer before, while the new one is asked for again and again
		wantAnswer(t, g, s, "ok.example.", 1, other)
		reaches(t, "the guest", g.ns, every(other))
	})
	t.Run("another policy forgets answers", func(t *testing.T) {
		allow(t, s, hostnet.Policy{Kind: hostnet.Allowlist, Domains: []string{"ok.example"}})
		isDenied(t, l, g, every(other))
	})
}

// runsOut waits until the guest no longer reaches what was pinned for a few seconds.
func runsOut(t *testing.T, g *guest, to string) {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); ; {
		if _, err := tcp(g.ns, "", to, 80, denied); err != nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the guest still reaches %s", to)
		}
		time.Sleep(100 * time.Millisecond) // the kernel's own clock takes it out
	}
}

func wantAnswer(t *testing.T, g *guest, s *hostnet.Slot, name string, kind uint16, addrs ...string) {
	t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		a, err := lookup(g.ns, network, s.Guest().DNS.String(), name, kind, granted)
		if err != nil {
			t.Errorf("ask for %s by %s: %v", name, network, err)
			continue
		}
		if diff := cmp.Diff(addrs, addressesOf(a)); diff != "" || a.Rcode != 0 {
			t.Errorf("%s by %s (-want +got):\n%s%v", name, network, diff, a)
		}
	}
}

func wantRefused(t *testing.T, g *guest, s *hostnet.Slot, names ...string) {
	t.Helper()
	for _, name := range names {
		if a, err := lookup(g.ns, "udp", s.Guest().DNS.String(), name, 1, granted); err != nil || a.Rcode != 5 || len(a.Answer) > 0 {
			t.Errorf("%s: %v %v, want REFUSED", name, a, err)
		}
	}
}

func TestOperator(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cfg := l.config(t)
	cfg.Allowed = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix(hostAddr + "/32"), netip.MustParsePrefix("100.96.0.0/16"),
		netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("100.100.0.0/16")}
	cfg.Denied = []netip.Prefix{netip.MustParsePrefix("45.20.9.0/24")}
	s := take(t, run(t, cfg))
	g := newGuest(t, s)
	allow(t, s, hostnet.Policy{Kind: hostnet.Internet})
	reaches(t, "the guest", g.ns, every(web, private10))
	isDenied(t, l, g, every(third, private172, hostAddr, metadata, alibaba, azure))
	allow(t, s, hostnet.Policy{Kind: hostnet.Allowlist, Prefixes: []netip.Prefix{netip.MustParsePrefix(private10 + "/32")}})
	reaches(t, "the guest", g.ns, every(private10))
	isDenied(t, l, g, every(web))
	for _, p := range []string{private172 + "/32", "169.254.169.254/32", azure + "/32", alibaba + "/32", hostAddr + "/32", "100.96.0.2/32", "45.20.9.9/32", "fe80::/10"} {
		if err := s.Allow(t.Context(), hostnet.Policy{Kind: hostnet.Allowlist, Prefixes: []netip.Prefix{netip.MustParsePrefix(p)}}); !errors.Is(err, hostnet.ErrDenied) {
			t.Errorf("allow %s: %v, want ErrDenied", p, err)
		}
	}
	reaches(t, "the guest", g.ns, every(private10)) // what is refused changes nothing
}

func TestParsePolicy(t *testing.T) {
	t.Parallel()
	p, err := hostnet.ParsePolicy("allowlist", []string{"192.0.2.7", "192.0.2.1/24", "2001:db8::1", "*.example.com", "example.com"})
	want := hostnet.Policy{Kind: hostnet.Allowlist, Domains: []string{"*.example.com", "example.com"}, Prefixes: []netip.Prefix{
		netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::1/128")}}
	if diff := cmp.Diff(want, p, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, c := range []struct {
		kind  string
		allow []string
	}{
		{"everything", nil}, {"internet", []string{"192.0.2.1"}}, {"allowlist", []string{"a b"}}, {"allowlist", []string{"*"}},
		{"allowlist", []string{"Example.com"}}, {"allowlist", []string{"exa*mple.com"}}, {"allowlist", []string{"fe80::1%eth0"}},
	} {
		if p, err := hostnet.ParsePolicy(c.kind, c.allow); err == nil {
			t.Errorf("%s %q is taken as %+v", c.kind, c.allow, p)
		}
	}
}
