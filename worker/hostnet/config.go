package hostnet

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"
)

// resolvConf is where the servers are that this host asks (resolv.conf(5)).
const resolvConf = "/etc/resolv.conf"

// link and link6 are between a slot's tap and its guest, the same in every slot; nobody else sees them.
var (
	link  = netip.MustParsePrefix("169.254.0.0/30")
	link6 = netip.MustParsePrefix("fd70:6164:6463:ffff::/64")
)

func guestAddr() netip.Addr    { return nth(link, 2) }
func gatewayAddr() netip.Addr  { return nth(link, 1) }
func guestAddr6() netip.Addr   { return nth(link6, 2) }
func gatewayAddr6() netip.Addr { return nth(link6, 1) }

func (c Config) complete() (Config, error) {
	if c.Slots == 0 {
		c.Slots = 4
	}
	if c.MaxSlots == 0 {
		c.MaxSlots = 1024
		if c.Bridge != nil && c.Bridge.lease().IsValid() {
			c.MaxSlots = min(c.MaxSlots, 1<<min(32-c.Bridge.lease().Bits(), 20)-4) // network, broadcast, gateway, the host
		}
	}
	if !c.Range.IsValid() {
		c.Range = netip.MustParsePrefix("100.96.0.0/16")
	}
	if !c.Range6.IsValid() {
		c.Range6 = netip.MustParsePrefix("fd70:6164:6463:1::/64")
	}
	c.Range, c.Range6 = c.Range.Masked(), c.Range6.Masked()
	if c.Connections == 0 {
		c.Connections = 2048
	}
	if c.MinPin == 0 {
		c.MinPin = 30 * time.Second
	}
	if len(c.Upstream) == 0 {
		var err error
		if c.Upstream, err = resolvers(resolvConf); err != nil {
			return c, err
		}
	}
	return c, c.check()
}

func (c Config) check() error {
	switch {
	case c.Slots < 0 || c.MaxSlots < c.Slots:
		return fmt.Errorf("slots: %d kept ready of at most %d", c.Slots, c.MaxSlots)
	case !c.Range.Addr().Is4() || c.Range.Bits() > 30 || 1<<(32-c.Range.Bits()) < 2*c.MaxSlots:
		return fmt.Errorf("range %s has no two IPv4 addresses for each of %d slots", c.Range, c.MaxSlots)
	case c.IPv6 && (!c.Range6.Addr().Is6() || c.Range6.Bits() > 64):
		return fmt.Errorf("range %s is no IPv6 range of /64 or more", c.Range6)
	case c.Range.Overlaps(link):
		return fmt.Errorf("range %s has %s, which is between slots and guests", c.Range, link)
	}
	if c.Bridge == nil {
		return nil
	}
	return c.Bridge.check(c)
}

func (b *Bridge) check(c Config) error {
	lease := b.lease()
	switch {
	case b.Name == "":
		return errors.New("bridge: Name is required")
	case !b.CIDR.IsValid() || !b.CIDR.Addr().Is4() || !b.CIDR.Contains(b.Gateway):
		return fmt.Errorf("bridge %s: the LAN %s has no gateway %s", b.Name, b.CIDR, b.Gateway)
	case !covers([]netip.Prefix{b.CIDR}, lease):
		return fmt.Errorf("bridge %s: %s is not in the LAN %s", b.Name, lease, b.CIDR)
	case c.IPv6:
		return fmt.Errorf("bridge %s: there is no IPv6 with a bridge", b.Name)
	}
	return nil
}

func (b *Bridge) lease() netip.Prefix {
	if b.Lease.IsValid() {
		return b.Lease.Masked()
	}
	return b.CIDR.Masked()
}

// common is what the workers of a host have to agree about.
func (c Config) common() string {
	s := fmt.Sprintf("range %s, range6 %s (%t), uplink %q", c.Range, c.Range6, c.IPv6, c.Uplink)
	if c.Bridge != nil {
		s += fmt.Sprintf(", bridge %s %s %s %s", c.Bridge.Name, c.Bridge.CIDR, c.Bridge.lease(), c.Bridge.Gateway)
	}
	return s
}

// resolvers reads the name servers of a resolv.conf(5).
func resolvers(name string) ([]netip.AddrPort, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("find DNS servers: %w", err)
	}
	defer f.Close()
	var l []netip.AddrPort
	s := bufio.NewScanner(f)
	for s.Scan() {
		if w := strings.Fields(s.Text()); len(w) >= 2 && w[0] == "nameserver" {
			if a, err := netip.ParseAddr(w[1]); err == nil {
				l = append(l, netip.AddrPortFrom(a, 53))
			}
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("find DNS servers: %w", err)
	}
	if len(l) == 0 {
		return nil, fmt.Errorf("find DNS servers: %s names none", name)
	}
	return l, nil
}
