package hostnet

import (
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// FuzzFilter gives answers of servers that anybody may have, and holds that nothing of what is denied comes through, nor an address that
// the rules would not be told of. It is in the package: the way of such bytes from outside leads over a real server.
func FuzzFilter(f *testing.F) {
	h := &Host{cfg: Config{MinPin: 30 * time.Second}, never: []netip.Prefix{link, netip.MustParsePrefix("45.10.0.2/32")}}
	for _, records := range [][]string{
		{"ok.example. 60 A 45.20.0.1", "ok.example. 60 AAAA 2a00:20::1"},
		{"ok.example. 4294967295 A 10.0.0.1", "ok.example. 0 A 45.10.0.2", "other.example. 0 A 45.20.0.1"},
		{"ok.example. 60 CNAME a.example.", "a.example. 60 CNAME ok.example.", "a.example. 60 A 169.254.169.254", "a.example. 60 AAAA ::ffff:45.20.0.1"},
	} {
		m := new(dns.Msg)
		m.SetQuestion("ok.example.", dns.TypeA)
		for _, r := range records {
			rr, err := dns.NewRR(r)
			if err != nil {
				f.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		up := new(dns.Msg)
		if up.Unpack(b) != nil {
			return
		}
		q := new(dns.Msg)
		q.SetQuestion("ok.example.", dns.TypeA)
		for _, v6 := range []bool{false, true} {
			a, addrs := h.filter(q, up, &allowed{Policy: Policy{Kind: Internet, IPv6: v6}, generation: 1})
			for _, rr := range a.Answer {
				var addr netip.Addr
				switch r := rr.(type) {
				case *dns.A:
					addr, _ = netip.AddrFromSlice(r.A.To4())
				case *dns.AAAA:
					addr, _ = netip.AddrFromSlice(r.AAAA)
				default:
					continue
				}
				if d := addrs[addr]; d < 30*time.Second || d > maxPin+pinSlack || h.denies(addr) || addr.Is6() && !v6 {
					t.Errorf("%s is told to the guest, and pinned for %s", addr, d)
				}
			}
		}
	})
}
