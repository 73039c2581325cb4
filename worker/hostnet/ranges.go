package hostnet

import "net/netip"

// private are the ranges that no machine reaches unless the operator allows them: what is not the public internet (IANA's special-purpose
// address registries, RFC 6890), and what leads there by another name. Not for changing.
func private() []netip.Prefix {
	return prefixes(
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"::/3",      // loopback, mapped and translated IPv4 (64:ff9b::/96), discard
		"2001::/23", // Teredo, benchmarking, ORCHID
		"2001:db8::/32",
		"2002::/16", // 6to4: IPv4 in disguise
		"3fff::/20",
		"4000::/2", "8000::/1", // unassigned, unique local, link-local, multicast
	)
}

// metadata is where clouds tell machines who they are, and give out credentials: link-local, and each cloud's own, be it private or public. No
// operator opens it.
func metadata() []netip.Prefix {
	return prefixes(
		"169.254.0.0/16", "fe80::/10",
		"168.63.129.16/32",   // Azure (WireServer)
		"100.100.100.200/32", // Alibaba Cloud
		"192.0.0.192/32",     // Oracle Cloud
		"fd00:ec2::254/128",  // EC2
		"fd20:ce::254/128",   // Google Cloud
	)
}

func prefixes(l ...string) []netip.Prefix {
	p := make([]netip.Prefix, len(l))
	for i, s := range l {
		p[i] = netip.MustParsePrefix(s)
	}
	return p
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func anyContains(l []netip.Prefix, a netip.Addr) bool {
	for _, p := range l {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// covers tells whether all of p is in one of l.
func covers(l []netip.Prefix, p netip.Prefix) bool {
	for _, q := range l {
		if q.Bits() <= p.Bits() && q.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// nth gives an address by its distance from a prefix's first.
func nth(p netip.Prefix, n uint64) netip.Addr {
	b := p.Masked().Addr().As16()
	for i := 15; i >= 0 && n > 0; i-- {
		n += uint64(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		a = a.Unmap()
	}
	return a
}

func overlaps(l []netip.Prefix, p netip.Prefix) bool {
	for _, q := range l {
		if q.Overlaps(p) {
			return true
		}
	}
	return false
}
