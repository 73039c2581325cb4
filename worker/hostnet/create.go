package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A slot's interfaces, in its namespace.
const (
	tapName = "tap0"
	outName = "eth0" // to the host
)

func (h *Host) anchor(i int) string { return filepath.Join(h.cfg.StateDir, "netns", strconv.Itoa(i)) }

func linkName(i int) string { return linkPrefix + strconv.Itoa(i) }

// hostEnd and slotEnd are the two addresses between the host and a slot.
func hostEnd(r netip.Prefix, i int) netip.Addr { return nth(r, 2*uint64(i)) }
func slotEnd(r netip.Prefix, i int) netip.Addr { return nth(r, 2*uint64(i)+1) }

// create makes a slot that is denied everything, or leaves nothing of it.
func (h *Host) create(ctx context.Context) (*Slot, error) {
	i, err := h.locks.takeIndex()
	if err != nil {
		return nil, err
	}
	s := &Slot{host: h, index: i, changing: make(chan struct{}, 1)}
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx)) // with ctx's logger
	s.policy.Store(&allowed{})
	s.changing <- struct{}{} // who has news for all slots waits until this one has rules
	h.add(s)
	begun := time.Now()
	err = s.build(ctx)
	<-s.changing
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make slot %d: %w", i, err), s.Close())
	}
	h.metrics.made.Observe(time.Since(begun).Seconds())
	return s, nil
}

func (s *Slot) build(ctx context.Context) error {
	h := s.host
	if err := h.remove(s.index); err != nil { // of a Close that failed
		return err
	}
	if err := h.lease(s.index); err != nil {
		return err
	}
	err := newNetns(h.anchor(s.index), func() error {
		if err := sysctls(h.cfg); err != nil {
			return err
		}
		var err error
		s.tap, err = openTap()
		return err
	})
	if err != nil {
		return err
	}
	if s.ns, err = openNetns(h.anchor(s.index)); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if err := s.rules(); err != nil {
		return fmt.Errorf("make its rules: %w", err)
	}
	if err := s.links(ctx); err != nil {
		return err
	}
	s.server, err = serve(s)
	return err
}

// sysctls are of a slot's namespace.
func sysctls(cfg Config) error {
	set := [][2]string{{"ipv4/ip_forward", "1"}, {"ipv4/conf/all/send_redirects", "0"}, {"ipv4/conf/default/send_redirects", "0"}}
	// A packet that says itself where it goes next, by an option, is judged by where it goes first. Namespaces begin with the first one's
	// settings, which the operator may have changed (kernel: Documentation/admin-guide/sysctl/net.rst, devconf_inherit_init_net).
	set = append(set, [2]string{"ipv4/conf/all/accept_source_route", "0"})
	if cfg.IPv6 {
		set = append(set, [2]string{"ipv6/conf/all/forwarding", "1"}, [2]string{"ipv6/conf/default/accept_dad", "0"})
	} else if err := errors.Join(noIPv6("all"), noIPv6("default")); err != nil {
		return err
	}
	if cfg.Bridge != nil {
		set = append(set, [2]string{"ipv4/conf/default/arp_notify", "1"}) // tells the LAN that an address is here now
	}
	for _, kv := range set {
		if err := sysctl(kv[0], kv[1]); err != nil {
			return err
		}
	}
	return nil
}

// noIPv6 has an interface speak no IPv6, not even by itself; a kernel may have none at all.
func noIPv6(name string) error {
	err := sysctl("ipv6/conf/"+name+"/disable_ipv6", "1")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// openTap makes a tap in the thread's namespace, which lives as long as somebody has it open.
func openTap() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(tapName)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make %s: %w", tapName, err)
	}
	return os.NewFile(uintptr(fd), tapName), nil
}

// links connects the tap and the host.
func (s *Slot) links(ctx context.Context) error {
	h := s.host
	nl, err := handle(s.ns)
	if err != nil {
		return err
	}
	defer nl.Close()
	hl, err := handle(h.ns)
	if err != nil {
		return err
	}
	defer hl.Close()

	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: outName, MTU: h.mtu, TxQLen: -1},
		PeerName:  linkName(s.index), PeerNamespace: netlink.NsFd(int(h.ns.Fd())),
	}
	if err := nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("make %s: %w", veth.PeerName, err)
	}
	tap, err := nl.LinkByName(tapName)
	if err != nil {
		return err
	}
	out, err := nl.LinkByName(outName)
	if err != nil {
		return err
	}
	peer, err := hl.LinkByName(veth.PeerName)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(HostMAC)
	if err != nil {
		return err
	}
	steps := []func() error{
		func() error { return nl.LinkSetHardwareAddr(tap, mac) },
		func() error { return nl.LinkSetMTU(tap, h.mtu) },
		func() error { return addAddr(nl, tap, gatewayAddr(), link.Bits()) },
		func() error { return shape(nl, tap, h.cfg.Bandwidth) },
		func() error { return shape(nl, out, h.cfg.Bandwidth) },
		func() error { return nl.LinkSetUp(tap) },
	}
	if h.cfg.Bridge != nil {
		steps = append(steps, s.bridged(nl, hl, out, peer)...)
	} else {
		steps = append(steps, s.routed(nl, hl, out, peer)...)
	}
	if h.cfg.IPv6 {
		steps = append(steps, func() error { return addAddr(nl, tap, gatewayAddr6(), link6.Bits()) })
	}
	if !h.cfg.IPv6 {
		steps = slices.Insert(steps, 0, func() error { return within(int(h.ns.Fd()), func() error { return noIPv6(peer.Attrs().Name) }) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("connect it: %w", err)
		}
	}
	return carries(ctx, hl, peer)
}

// carries waits until the end of a link that was up before the other one sends what it is given. Until then it loses it, and it is a worker
// of the kernel's that changes that, when it gets the lock on all links (net/core/link_watch.c): nothing tells of it for sure.
func carries(ctx context.Context, nl *netlink.Handle, l netlink.Link) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		now, err := nl.LinkByIndex(l.Attrs().Index)
		if err != nil {
			return err
		}
		if now.Attrs().OperState == netlink.OperUp {
			return nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", l.Attrs().Name, context.Cause(ctx))
		}
	}
}

// routed gives both ends of the link to the host addresses of their own, and the slot its way out.
func (s *Slot) routed(nl, hl *netlink.Handle, out, peer netlink.Link) []func() error {
	h := s.host
	steps := []func() error{
		func() error {
			return within(int(h.ns.Fd()), func() error { return sysctl("ipv4/conf/"+peer.Attrs().Name+"/forwarding", "1") })
		},
		func() error { return hl.LinkSetUp(peer) },
		func() error { return nl.LinkSetUp(out) },
	}
	for _, r := range h.ranges() {
		bits := r.Addr().BitLen() - 1 // the two of them
		steps = append(steps,
			func() error { return addAddr(hl, peer, hostEnd(r, s.index), bits) },
			func() error { return addAddr(nl, out, slotEnd(r, s.index), bits) },
			func() error { return knows(hl, peer, slotEnd(r, s.index), out) }, // no packet has to ask who that is
			func() error { return knows(nl, out, hostEnd(r, s.index), peer) },
			func() error { return defaultVia(nl, out, hostEnd(r, s.index)) },
		)
	}
	return steps
}

// bridged makes the link a port of the operator's bridge, and the slot a host of its LAN.
func (s *Slot) bridged(nl, hl *netlink.Handle, out, peer netlink.Link) []func() error {
	b := s.host.cfg.Bridge
	return []func() error{
		func() error {
			br, err := hl.LinkByName(b.Name)
			if err != nil {
				return fmt.Errorf("find bridge %s: %w", b.Name, err)
			}
			return hl.LinkSetMaster(peer, br)
		},
		func() error { return hl.LinkSetIsolated(peer, true) }, // from the other slots' ports
		func() error { return addAddr(nl, out, s.host.leased(s.index), b.CIDR.Bits()) },
		func() error { return hl.LinkSetUp(peer) },
		func() error { return nl.LinkSetUp(out) },
		func() error { return defaultVia(nl, out, b.Gateway) },
	}
}

func addAddr(nl *netlink.Handle, l netlink.Link, a netip.Addr, bits int) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}}
	if a.Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := nl.AddrAdd(l, addr); err != nil {
		return fmt.Errorf("add %s to %s: %w", a, l.Attrs().Name, err)
	}
	return nil
}

func knows(nl *netlink.Handle, l netlink.Link, a netip.Addr, whose netlink.Link) error {
	return nl.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: whose.Attrs().HardwareAddr})
}

func defaultVia(nl *netlink.Handle, l netlink.Link, gateway netip.Addr) error {
	dst := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if gateway.Is6() {
		dst = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	if err := nl.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gateway.AsSlice(), Dst: dst}); err != nil {
		return fmt.Errorf("route by %s: %w", gateway, err)
	}
	return nil
}

// remove takes away all there is of a slot, made by whom ever; its index is locked. The namespace goes last: by it the rest is found.
func (h *Host) remove(i int) error {
	ns, err := openNetns(h.anchor(i))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return h.unlease(i)
	case err == nil:
		err = errors.Join(dropLinks(ns), ns.Close())
	default: // a worker died between the file and the namespace: there is nothing in it
		err = nil
	}
	if err != nil {
		return err
	}
	if err := h.unlease(i); err != nil {
		return err
	}
	return dropNetns(h.anchor(i))
}

// dropLinks deletes a slot's links at once. They would go with the namespace, but that ends when the kernel finds the time.
func dropLinks(ns *os.File) error {
	nl, err := handle(ns)
	if err != nil {
		return err
	}
	defer nl.Close()
	l, err := nl.LinkByName(outName)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
		return nil
	}
	if err == nil {
		err = nl.LinkDel(l)
	}
	if err != nil {
		return fmt.Errorf("delete the link to the host: %w", err)
	}
	return nil
}
