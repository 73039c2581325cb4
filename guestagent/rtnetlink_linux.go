package guestagent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// rtnetlink asks the kernel to change its network, one request at a time (rtnetlink(7)). It is not safe for concurrent use.
type rtnetlink struct {
	fd  int
	seq uint32
}

func openRtnetlink() (*rtnetlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("rtnetlink: %w", err)
	}
	return &rtnetlink{fd: fd}, nil
}

func (n *rtnetlink) close() { _ = unix.Close(n.fd) }

// link changes a card's flags and, where it is not 0, its MTU: struct ifinfomsg.
func (n *rtnetlink) link(index int, flags uint32, mtu int) error {
	b := binary.NativeEndian.AppendUint32([]byte{unix.AF_UNSPEC, 0, 0, 0}, uint32(index))
	b = binary.NativeEndian.AppendUint32(b, flags)
	b = binary.NativeEndian.AppendUint32(b, unix.IFF_UP) // the flags that change
	if mtu != 0 {
		b = attribute(b, unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, uint32(mtu)))
	}
	return n.do(unix.RTM_NEWLINK, 0, b)
}

func (n *rtnetlink) linkUp(index, mtu int) error { return n.link(index, unix.IFF_UP, mtu) }
func (n *rtnetlink) linkDown(index int) error    { return n.link(index, 0, 0) }

// address adds or takes an address: struct ifaddrmsg. One of IPv6 is used at once: nobody else can have it.
func (n *rtnetlink) address(typ uint16, index int, p netip.Prefix) error {
	var flags byte
	if p.Addr().Is6() {
		flags = unix.IFA_F_NODAD
	}
	b := binary.NativeEndian.AppendUint32([]byte{family(p.Addr()), byte(p.Bits()), flags, unix.RT_SCOPE_UNIVERSE}, uint32(index))
	b = attribute(b, unix.IFA_LOCAL, p.Addr().AsSlice())
	b = attribute(b, unix.IFA_ADDRESS, p.Addr().AsSlice())
	var create uint16
	if typ == unix.RTM_NEWADDR {
		create = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	return n.do(typ, create, b)
}

// neighbour says once and for all which hardware address an address has: struct ndmsg.
func (n *rtnetlink) neighbour(index int, a netip.Addr, mac net.HardwareAddr) error {
	b := binary.NativeEndian.AppendUint32([]byte{family(a), 0, 0, 0}, uint32(index))
	b = binary.NativeEndian.AppendUint16(b, unix.NUD_PERMANENT)
	b = append(b, 0, unix.RTN_UNICAST)
	b = attribute(b, unix.NDA_DST, a.AsSlice())
	b = attribute(b, unix.NDA_LLADDR, mac)
	return n.do(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, b)
}

// defaultRoute leads everywhere by way of a gateway, which need not be of the card's own network: struct rtmsg.
func (n *rtnetlink) defaultRoute(index int, gateway netip.Addr) error {
	b := []byte{family(gateway), 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST}
	b = binary.NativeEndian.AppendUint32(b, unix.RTNH_F_ONLINK)
	b = attribute(b, unix.RTA_GATEWAY, gateway.AsSlice())
	b = attribute(b, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(index)))
	return n.do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, b)
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// attribute appends a struct rtattr; they begin on multiples of four bytes.
func attribute(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	return append(b, make([]byte, -len(b)&3)...)
}

// do sends a request and waits for the kernel's word: nil, or an errno (netlink(7)).
func (n *rtnetlink) do(typ, flags uint16, body []byte) error {
	n.seq++
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	b = binary.NativeEndian.AppendUint32(b, n.seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	if err := unix.Sendto(n.fd, append(b, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	size, _, err := unix.Recvfrom(n.fd, answer, 0)
	if err != nil {
		return err
	}
	if size < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR || binary.NativeEndian.Uint32(answer[8:]) != n.seq {
		return errors.New("rtnetlink: not an answer to the request")
	}
	if errno := -int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}
