package guestagent

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// settings are a wire.Network that has been read.
type settings struct {
	address, address6 netip.Prefix
	gateway, gateway6 netip.Addr
	gatewayMAC        net.HardwareAddr
	dns               []netip.Addr
	mtu               int
}

// maxResolvers is how many the resolver of the C library asks (resolv.conf(5), MAXNS).
const maxResolvers = 3

// Bounds of an Ethernet card's MTU: what IPv4 needs (RFC 791), and what virtio can say.
const (
	minMTU = 68
	maxMTU = 65535
)

// readNetwork reads what the host says of the network. What is malformed is the host's bug, and nothing of it is set up.
func readNetwork(n *wire.Network) (s settings, err error) {
	fail := func(what, value string) (settings, error) {
		return settings{}, &wire.Error{Kind: wire.ErrRequest, Message: fmt.Sprintf("network: %s %.100q", what, value)}
	}
	if s.address, err = netip.ParsePrefix(n.Address); err != nil || !s.address.Addr().Is4() {
		return fail("address", n.Address)
	}
	if s.gateway, err = optional(n.Gateway); err != nil || s.gateway.IsValid() && !s.gateway.Is4() {
		return fail("gateway", n.Gateway)
	}
	if n.Address6 != "" {
		if s.address6, err = netip.ParsePrefix(n.Address6); err != nil || !plain6(s.address6.Addr()) {
			return fail("address", n.Address6)
		}
	}
	if s.gateway6, err = optional(n.Gateway6); err != nil || s.gateway6.IsValid() && (!plain6(s.gateway6) || n.Address6 == "") {
		return fail("gateway", n.Gateway6)
	}
	if n.GatewayMAC != "" {
		if s.gatewayMAC, err = net.ParseMAC(n.GatewayMAC); err != nil || len(s.gatewayMAC) != 6 {
			return fail("hardware address", n.GatewayMAC)
		}
	}
	if len(n.DNS) > maxResolvers {
		return fail("more resolvers than can be asked:", fmt.Sprint(len(n.DNS)))
	}
	for _, d := range n.DNS {
		addr, err := netip.ParseAddr(d)
		if err != nil || addr.Zone() != "" {
			return fail("resolver", d)
		}
		s.dns = append(s.dns, addr)
	}
	if s.mtu = n.MTU; s.mtu != 0 && (s.mtu < minMTU || s.mtu > maxMTU) {
		return fail("mtu", fmt.Sprint(n.MTU))
	}
	return s, nil
}

func optional(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	return netip.ParseAddr(s)
}

func plain6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() && a.Zone() == "" }
