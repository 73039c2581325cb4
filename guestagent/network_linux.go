package guestagent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// connect sets up the machine's one network card; nil leaves it, where there is one, as the kernel made it: down, without an address.
func connect(n *wire.Network) error {
	if n == nil {
		return nil
	}
	s, err := readNetwork(n)
	if err != nil {
		return err
	}
	card, err := onlyCard()
	if err != nil {
		return err
	}
	nl, err := openRtnetlink()
	if err != nil {
		return err
	}
	defer nl.close()
	if err := flush(nl, card); err != nil {
		return err
	}
	if err := switchIPv6(card.Name, s.address6.IsValid()); err != nil {
		return err
	}
	if err := nl.linkUp(card.Index, s.mtu); err != nil {
		return fmt.Errorf("bring %s up: %w", card.Name, err)
	}
	for _, family := range []struct {
		address netip.Prefix
		gateway netip.Addr
	}{{s.address, s.gateway}, {s.address6, s.gateway6}} {
		if !family.address.IsValid() {
			continue
		}
		if err := nl.address(unix.RTM_NEWADDR, card.Index, family.address); err != nil {
			return fmt.Errorf("give %s the address %s: %w", card.Name, family.address, err)
		}
		if !family.gateway.IsValid() {
			continue
		}
		if s.gatewayMAC != nil {
			if err := nl.neighbour(card.Index, family.gateway, s.gatewayMAC); err != nil {
				return fmt.Errorf("neighbour %s: %w", family.gateway, err)
			}
		}
		if err := nl.defaultRoute(card.Index, family.gateway); err != nil {
			return fmt.Errorf("route by %s: %w", family.gateway, err)
		}
	}
	return resolvers(s.dns)
}

// onlyCard finds the network card.
func onlyCard() (net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return net.Interface{}, err
	}
	var cards []net.Interface
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 && len(i.HardwareAddr) == 6 {
			cards = append(cards, i)
		}
	}
	if len(cards) != 1 {
		return net.Interface{}, fmt.Errorf("%d network cards where one belongs", len(cards))
	}
	return cards[0], nil
}

// flush takes from the card what a template's warm-up may have left on it. Going down takes its routes and neighbours.
func flush(nl *rtnetlink, card net.Interface) error {
	if err := nl.linkDown(card.Index); err != nil {
		return fmt.Errorf("bring %s down: %w", card.Name, err)
	}
	addrs, err := card.Addrs()
	if err != nil {
		return err
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			return err
		}
		if err := nl.address(unix.RTM_DELADDR, card.Index, p); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("take %s from %s: %w", p, card.Name, err)
		}
	}
	return nil
}

// switchIPv6 turns IPv6 on or off for the card, before it comes up: no address then comes of itself, nor from a router that asks nobody
// (kernel: Documentation/networking/ip-sysctl.rst). Loopback keeps its own.
func switchIPv6(card string, on bool) error {
	values := map[string]string{"disable_ipv6": "1", "accept_ra": "0", "autoconf": "0"}
	if on {
		values["disable_ipv6"] = "0"
	}
	for name, value := range values {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+card+"/"+name, []byte(value), 0)
		if errors.Is(err, os.ErrNotExist) && !on { // a kernel without IPv6
			continue
		}
		if err != nil {
			return fmt.Errorf("switch IPv6 of %s: %w", card, err)
		}
	}
	return nil
}

// resolvers writes resolv.conf. The image's may be a link to somewhere that does not exist here.
func resolvers(dns []netip.Addr) error {
	var b strings.Builder
	for _, d := range dns {
		fmt.Fprintf(&b, "nameserver %s\n", d)
	}
	const name = "/etc/resolv.conf"
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(name, []byte(b.String()), 0o644)
}
