package hostnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Rules are made of expressions; those here are what nft(8) would call matches and statements. Register 1 is all they use.
type rule []expr.Any

func (r rule) and(more ...rule) rule { return append(slices.Clone(r), slices.Concat(more...)...) }

func eq(data []byte) expr.Any  { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
func neq(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: data} }

func meta(key expr.MetaKey, data []byte) rule {
	return rule{&expr.Meta{Key: key, Register: 1}, eq(data)}
}

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func iif(name string) rule { return meta(expr.MetaKeyIIFNAME, ifname(name)) }
func oif(name string) rule { return meta(expr.MetaKeyOIFNAME, ifname(name)) }

// iifs and oifs match all interfaces whose names begin so, and are what iptables makes of "-i prefix+".
func iifs(prefix string) rule { return meta(expr.MetaKeyIIFNAME, []byte(prefix)) }
func oifs(prefix string) rule { return meta(expr.MetaKeyOIFNAME, []byte(prefix)) }
func notOIF(name string) rule {
	return rule{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, neq(ifname(name))}
}
func notOIFs(prefix string) rule {
	return rule{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, neq([]byte(prefix))}
}

func ipv4() rule { return meta(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV4}) }
func ipv6() rule { return meta(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV6}) }

func l4(proto byte) rule { return meta(expr.MetaKeyL4PROTO, []byte{proto}) }

func port(proto byte, n uint16) rule {
	return l4(proto).and(rule{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, eq(binary.BigEndian.AppendUint16(nil, n))})
}

func icmpType(proto, t byte) rule {
	return l4(proto).and(rule{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 1}, eq([]byte{t})})
}

// An address's place in the network header: source or destination.
type side int

const (
	source side = iota
	destination
)

func load(s side, v6 bool) rule {
	switch {
	case v6 && s == source:
		return ipv6().and(rule{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 16}})
	case v6:
		return ipv6().and(rule{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 16}})
	case s == source:
		return ipv4().and(rule{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}})
	}
	return ipv4().and(rule{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}})
}

// inside and outside match a prefix.
func inside(s side, p netip.Prefix) rule  { return prefixed(s, p, expr.CmpOpEq) }
func outside(s side, p netip.Prefix) rule { return prefixed(s, p, expr.CmpOpNeq) }

func prefixed(s side, p netip.Prefix, op expr.CmpOp) rule {
	p = p.Masked()
	length := uint32(p.Addr().BitLen() / 8)
	return load(s, p.Addr().Is6()).and(rule{
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, length)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Addr().AsSlice()},
	})
}

func isNot(s side, a netip.Addr) rule { return load(s, a.Is6()).and(rule{neq(a.AsSlice())}) }

// to matches what goes to an address of a set.
func to(set *nftables.Set) rule {
	return load(destination, set.KeyType == nftables.TypeIP6Addr).and(rule{&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}})
}

func ctState(bits uint32) rule {
	return rule{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		neq(make([]byte, 4)),
	}
}

func ctMark(mark uint32) rule {
	return rule{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, eq(binaryutil.NativeEndian.PutUint32(mark))}
}

func setMark(mark uint32) rule {
	return rule{&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark)}, &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true}}
}

// ctReply matches what comes back on a connection, ctOriginal what goes the way it was made.
func ctReply() rule    { return rule{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, eq([]byte{1})} }
func ctOriginal() rule { return rule{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, eq([]byte{0})} }

// connsOver matches where the connections that came here are more than most.
func connsOver(most uint32) rule {
	return rule{&expr.Connlimit{Count: most, Flags: expr.NFT_CONNLIMIT_F_INV}}
}

func packetsOver(perSecond uint64, burst uint32) rule {
	return rule{&expr.Limit{Type: expr.LimitTypePkts, Rate: perSecond, Over: true, Unit: expr.LimitTimeSecond, Burst: burst}}
}

func bytesOver(perSecond uint64, burst uint32) rule {
	return rule{&expr.Limit{Type: expr.LimitTypePktBytes, Rate: perSecond, Over: true, Unit: expr.LimitTimeSecond, Burst: burst}}
}

func count(name string) rule { return rule{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: name}} }

func verdict(kind expr.VerdictKind) rule { return rule{&expr.Verdict{Kind: kind}} }
func accept() rule                       { return verdict(expr.VerdictAccept) }
func drop() rule                         { return verdict(expr.VerdictDrop) }
func goTo(chain string) rule             { return rule{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }

// rejectTCP and rejectOther tell the sender at once, so that programs do not wait for what they may not have.
func rejectTCP() rule {
	return l4(unix.IPPROTO_TCP).and(rule{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
}
func rejectOther() rule {
	return rule{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
}

// intervals gives the elements of an interval set that has the prefixes of one family. Sets do not take overlaps.
func intervals(prefixes []netip.Prefix, v6 bool) []nftables.SetElement {
	var of []netip.Prefix
	for _, p := range prefixes {
		if p.Addr().Is6() == v6 {
			of = append(of, p.Masked())
		}
	}
	slices.SortFunc(of, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var l []nftables.SetElement
	var end netip.Addr // of what l has, exclusive; invalid at the start, and where it has the family's last address
	for i, p := range of {
		if i > 0 && (!end.IsValid() || p.Addr().Less(end)) {
			continue // prefixes overlap only where one has the other
		}
		if i > 0 && p.Addr() == end {
			l = l[:len(l)-1] // one interval goes on
		} else {
			l = append(l, nftables.SetElement{Key: p.Addr().AsSlice()})
		}
		end = last(p).Next()
		if end.IsValid() {
			l = append(l, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return l
}

// last is a prefix's last address.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	mask := net.CIDRMask(p.Bits(), len(b)*8)
	for i := range b {
		b[i] |= ^mask[i]
	}
	a, _ := netip.AddrFromSlice(b) // as long as an address, as it was one
	return a
}

// table puts a ruleset together, which Flush of its Conn makes true at once. Identifiers of sets are its own: the library's counter is
// shared by all Conns, without a lock.
type table struct {
	conn *nftables.Conn
	*nftables.Table
	ids uint32
}

func (t *table) set(name string, v6 bool) *nftables.Set {
	t.ids++
	s := &nftables.Set{Table: t.Table, ID: t.ids, Name: name, KeyType: nftables.TypeIPAddr}
	if v6 {
		s.Name, s.KeyType = name+"6", nftables.TypeIP6Addr
	}
	return s
}

// prefixes makes a set of prefixes, empty or not.
func (t *table) prefixes(name string, v6 bool, prefixes []netip.Prefix) (*nftables.Set, error) {
	s := t.set(name, v6)
	s.Interval = true
	return s, t.conn.AddSet(s, intervals(prefixes, v6))
}

// addresses makes an empty set of addresses that are taken out in time.
func (t *table) addresses(name string, v6 bool) (*nftables.Set, error) {
	s := t.set(name, v6)
	s.HasTimeout = true
	s.Size = mostPins
	s.Timeout = time.Hour // each element has its own; a set with none is of another kind in the kernel
	return s, t.conn.AddSet(s, nil)
}

func (t *table) chain(name string) *nftables.Chain {
	return t.conn.AddChain(&nftables.Chain{Name: name, Table: t.Table})
}

func (t *table) hook(name string, kind nftables.ChainType, at *nftables.ChainHook, priority nftables.ChainPriority, otherwise nftables.ChainPolicy) *nftables.Chain {
	return t.conn.AddChain(&nftables.Chain{Name: name, Table: t.Table, Type: kind, Hooknum: at, Priority: &priority, Policy: &otherwise})
}

func (t *table) rules(c *nftables.Chain, rules ...rule) {
	for _, r := range rules {
		t.conn.AddRule(&nftables.Rule{Table: t.Table, Chain: c, Exprs: r})
	}
}
