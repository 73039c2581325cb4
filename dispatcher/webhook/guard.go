package webhook

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// Guard says where webhooks may go. Tenants choose the URLs, and the dispatcher stands inside the operator's network: whatever is not
// plainly somebody's public server is refused, at the moment of connecting and by the address that is connected to. What a name stood
// for a moment ago does not matter then.
type Guard struct {
	// Allow are ranges that may be reached although they are none of the public Internet's: the operator's own receivers, and tests'.
	Allow []netip.Prefix
	// HTTP allows http besides https.
	HTTP bool
	// Ports may be connected to; none means 443 and 8443, and 80 with HTTP.
	Ports []uint16
	// Resolver resolves names; nil is the system's.
	Resolver *net.Resolver
}

// errForbidden is what the guard gives in place of a connection.
var errForbidden = errors.New("not an address that webhooks may reach")

// denied are the ranges within the unicast addresses that are not the public Internet's.
// https://www.iana.org/assignments/iana-ipv4-special-registry and -ipv6-special-registry
var denied = prefixes(
	"0.0.0.0/8",        // this network
	"10.0.0.0/8",       // private
	"100.64.0.0/10",    // behind a carrier's NAT
	"127.0.0.0/8",      // loopback
	"168.63.129.16/32", // Azure's metadata service
	"169.254.0.0/16",   // link-local, other clouds' metadata services among them
	"172.16.0.0/12",    // private
	"192.0.0.0/24",     // IETF protocols
	"192.0.2.0/24",     // documentation
	"192.88.99.0/24",   // 6to4 relays
	"192.168.0.0/16",   // private
	"198.18.0.0/15",    // benchmarks
	"198.51.100.0/24",  // documentation
	"203.0.113.0/24",   // documentation
	"224.0.0.0/4",      // multicast
	"240.0.0.0/4",      // reserved, broadcast

	// Of IPv6 only 2000::/3 is given out; these are the parts of it that are not anybody's, or lead elsewhere.
	"2001::/23",     // IETF protocols, Teredo among them
	"2001:db8::/32", // documentation
	"2002::/16",     // 6to4: an IPv4 address within
	"3fff::/20",     // documentation
)

var globalIPv6 = netip.MustParsePrefix("2000::/3")

func prefixes(texts ...string) (l []netip.Prefix) {
	for _, t := range texts {
		l = append(l, netip.MustParsePrefix(t))
	}
	return l
}

func inAny(a netip.Addr, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
}

// addr tells whether an address may be reached.
func (g *Guard) addr(a netip.Addr) bool {
	if a.Zone() != "" {
		return false
	}
	a = a.Unmap() // ::ffff:127.0.0.1 is 127.0.0.1
	switch {
	case inAny(a, g.Allow):
		return true
	case a.Is6() && !globalIPv6.Contains(a):
		return false
	}
	return a.IsValid() && !inAny(a, denied)
}

func (g *Guard) port(p uint16) bool {
	if len(g.Ports) > 0 {
		return slices.Contains(g.Ports, p)
	}
	return p == 443 || p == 8443 || p == 80 && g.HTTP
}

// control is asked before each connect(2), with the address that it is to.
func (g *Guard) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil || !g.addr(a.Addr()) || !g.port(a.Port()) {
		return errForbidden
	}
	return nil
}

// Check tells why nothing would be sent to a URL, as far as that can be told without resolving its name. The text is for the tenant.
func (g *Guard) Check(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.User != nil {
		return errors.New("must be a URL with a host, without credentials")
	}
	port := uint64(443)
	switch {
	case u.Scheme == "http" && g.HTTP:
		port = 80
	case u.Scheme != "https":
		return errors.New("must be https here")
	}
	if p := u.Port(); p != "" {
		if port, err = strconv.ParseUint(p, 10, 16); err != nil {
			return fmt.Errorf("%.20q is no port", p)
		}
	}
	if !g.port(uint16(port)) {
		return fmt.Errorf("port %d is not one that webhooks may be sent to here", port)
	}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil && !g.addr(a) {
		return fmt.Errorf("%s is %w", a, errForbidden)
	}
	return nil
}

// Bounds of one connection and its answer.
const (
	dialWithin     = 10 * time.Second
	maxHeaderBytes = 16 << 10
	idleFor        = 30 * time.Second
)

// transport makes connections that the guard allows: none by way of a proxy, which would resolve names itself. HTTP/1.1 only: with
// HTTP/2 all requests to a server share a connection, and one that hangs would hold up the rest.
func (g *Guard) transport() *http.Transport {
	d := &net.Dialer{Timeout: dialWithin, ControlContext: g.control, Resolver: g.Resolver}
	return &http.Transport{
		Proxy: nil, DialContext: d.DialContext, TLSHandshakeTimeout: dialWithin, MaxResponseHeaderBytes: maxHeaderBytes, DisableCompression: true,
		IdleConnTimeout: idleFor, MaxIdleConns: 256, MaxIdleConnsPerHost: perEndpoint,
	}
}
