package hostnet

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// Kind is a policy's base.
type Kind string

// Policies: nothing at all, everything that is not always denied, and only what is listed.
const (
	None      Kind = "none"
	Internet  Kind = "internet"
	Allowlist Kind = "allowlist"
)

// Policy says what a machine may reach. The zero value is nothing.
type Policy struct {
	Kind Kind
	// Prefixes and Domains are what an Allowlist lets through. A domain is a name in lower case, or *.name for all below it and not
	// itself; its addresses are those that the slot's DNS server has answered, while they are valid.
	Prefixes []netip.Prefix
	Domains  []string
	// IPv6 lets it use IPv6 too, where Config has it.
	IPv6 bool
}

// ParsePolicy gives the policy of a kind, and of a list of CIDRs, addresses and domains where that is an allowlist.
func ParsePolicy(kind string, allow []string) (Policy, error) {
	p := Policy{Kind: Kind(kind)}
	for _, a := range allow {
		if prefix, err := netip.ParsePrefix(a); err == nil {
			p.Prefixes = append(p.Prefixes, prefix.Masked())
		} else if addr, err := netip.ParseAddr(a); err == nil && addr.Zone() == "" {
			p.Prefixes = append(p.Prefixes, netip.PrefixFrom(addr, addr.BitLen()))
		} else {
			p.Domains = append(p.Domains, a)
		}
	}
	return p, p.check()
}

var domainRE = regexp.MustCompile(`^(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (p Policy) check() error {
	switch p.Kind {
	case "", None, Internet, Allowlist:
	default:
		return fmt.Errorf("policy %q: there are none, internet and allowlist", p.Kind)
	}
	if p.Kind != Allowlist && len(p.Prefixes)+len(p.Domains) > 0 {
		return fmt.Errorf("policy %q takes no list", p.Kind)
	}
	for _, d := range p.Domains {
		if len(d) > 253 || !domainRE.MatchString(d) {
			return fmt.Errorf("policy: %.80q is no CIDR, address or domain in lower case", d)
		}
	}
	for _, prefix := range p.Prefixes {
		if !prefix.IsValid() {
			return fmt.Errorf("policy: a prefix is not valid")
		}
	}
	return nil
}

// lists tells whether an allowlist has a name, in lower case and without its last dot.
func (p Policy) lists(name string) bool {
	for _, d := range p.Domains {
		if suffix, ok := strings.CutPrefix(d, "*"); ok && strings.HasSuffix(name, suffix) && len(name) > len(suffix) || d == name {
			return true
		}
	}
	return false
}
