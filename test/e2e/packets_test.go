package e2e

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// What no socket sends by itself is put together here: frames and packets as they are on the wire.

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherVLAN = 0x8100
	etherIPv6 = 0x86dd
	everybody = "ff:ff:ff:ff:ff:ff"
)

func mac(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

func ether(to, from string, kind uint16, body []byte) []byte {
	return slices.Concat(mac(to), mac(from), binary.BigEndian.AppendUint16(nil, kind), body)
}

// tagged is a frame with a tag of VLAN 0: no VLAN, but a priority (IEEE 802.1Q). Who gets it takes the tag off.
func tagged(frame []byte) []byte {
	return slices.Concat(frame[:12], binary.BigEndian.AppendUint16(nil, etherVLAN), []byte{0, 0}, frame[12:])
}

// arp says that an address is at a card (RFC 826), with what nobody reads behind it.
func arp(addr, card, rest string) []byte {
	a := netip.MustParseAddr(addr).AsSlice()
	return ether(everybody, card, etherARP, slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 2}, mac(card), a, mac(everybody), a, []byte(rest)))
}

// packet is IPv4's or IPv6's, with a body whose checksum is put in at an offset; below 0 it has none.
func packet(from, to string, proto byte, body []byte, sum int) []byte {
	src, dst := netip.MustParseAddr(from), netip.MustParseAddr(to)
	body = slices.Clone(body)
	if sum >= 0 {
		pseudo := slices.Concat(src.AsSlice(), dst.AsSlice(), binary.BigEndian.AppendUint32(nil, uint32(len(body))), []byte{0, 0, 0, proto})
		if proto == unix.IPPROTO_ICMP {
			pseudo = nil
		}
		binary.BigEndian.PutUint16(body[sum:], checksum(append(pseudo, body...)))
	}
	if src.Is6() {
		h := append([]byte{6 << 4, 0, 0, 0, 0, 0, proto, 64}, slices.Concat(src.AsSlice(), dst.AsSlice())...)
		binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
		return append(h, body...)
	}
	return ipv4(src, dst, proto, 0, nil, body)
}

func ipv4(src, dst netip.Addr, proto byte, fragment uint16, options, body []byte) []byte {
	size := 20 + len(options)
	h := slices.Concat(make([]byte, 12), src.AsSlice(), dst.AsSlice(), options)
	h[0], h[8], h[9] = 4<<4|byte(size/4), 64, proto
	binary.BigEndian.PutUint16(h[2:], uint16(size+len(body)))
	binary.BigEndian.PutUint16(h[4:], 4711)
	binary.BigEndian.PutUint16(h[6:], fragment)
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, body...)
}

func datagram(from, to string, port uint16, payload string) []byte {
	h := make([]byte, 8)
	binary.BigEndian.PutUint16(h, 4711)
	binary.BigEndian.PutUint16(h[2:], port)
	binary.BigEndian.PutUint16(h[4:], uint16(8+len(payload)))
	return packet(from, to, unix.IPPROTO_UDP, append(h, payload...), 6)
}

func syn(from, to string, port uint16, payload string) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h, 4711)
	binary.BigEndian.PutUint16(h[2:], port)
	h[12], h[13], h[14] = 5<<4, 2, 16 // no options, SYN, a window
	return packet(from, to, unix.IPPROTO_TCP, append(h, payload...), 16)
}

// pingOf is an echo request without its IP header. The kernel puts in ICMPv6's checksum, and the packet's builder both.
func pingOf(v6 bool, payload string) []byte {
	m := append([]byte{8, 0, 0, 0, 0x12, 0x34, 0, 1}, payload...)
	if v6 {
		m[0] = 128
		return m
	}
	binary.BigEndian.PutUint16(m[2:], checksum(m))
	return m
}

func pinging(from, to, payload string) []byte {
	v6 := netip.MustParseAddr(to).Is6()
	m := pingOf(v6, payload)
	m[2], m[3] = 0, 0
	if v6 {
		return packet(from, to, unix.IPPROTO_ICMPV6, m, 2)
	}
	return packet(from, to, unix.IPPROTO_ICMP, m, 2)
}

// fragments are a datagram in two: its header, and the rest. Whoever makes them anew fills the first, so there is something behind the payload.
func fragments(from, to string, port uint16, payload string) [][]byte {
	whole := datagram(from, to, port, payload+string(make([]byte, 40)))[20:]
	src, dst := netip.MustParseAddr(from), netip.MustParseAddr(to)
	const more = 1 << 13
	return [][]byte{ipv4(src, dst, unix.IPPROTO_UDP, more, nil, whole[:8]), ipv4(src, dst, unix.IPPROTO_UDP, 1, nil, whole[8:])}
}

// sourceRoute is a datagram by way of an address (RFC 791, "Loose Source and Record Route"). It has no checksum: that would be of the last address,
// and who looks at it on the way knows the next one.
func sourceRoute(from, via, to string, port uint16, payload string) []byte {
	option := append([]byte{131, 7, 4}, netip.MustParseAddr(to).AsSlice()...)
	body := datagram(from, to, port, payload)[20:]
	body[6], body[7] = 0, 0
	return ipv4(netip.MustParseAddr(from), netip.MustParseAddr(via), unix.IPPROTO_UDP, 0, append(option, 0), body)
}

// question asks for an address of a name that begins with a label of any bytes (RFC 1035).
func question(label string) []byte {
	q := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, byte(len(label))}
	q = append(q, label...)
	return append(q, "\x04site\x07example\x00\x00\x01\x00\x01"...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i, c := range b {
		sum += uint32(c) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
