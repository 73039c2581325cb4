package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ErrDenied says that a policy lists what no policy gives on this host.
var ErrDenied = errors.New("always denied")

// The sets and chains of a slot's table. Sets have a twin for IPv6, with a 6 behind the name.
const (
	setNever   = "never"   // the host's own addresses, other machines
	setAllowed = "allowed" // what the operator allows of what is private
	setPrivate = "private"
	setListed  = "listed" // an allowlist's prefixes
	setPinned  = "pinned" // what was answered for its domains

	chainEgress  = "egress"
	chainPolicy  = "policy"
	chainInbound = "inbound"
	chainDenied  = "denied"
	chainForward = "forward"

	countDenied  = "denied"
	countSpoofed = "spoofed"
)

// What a guest may do in a second. Who only works does not come near; who scans or floods costs the host no more than that.
const (
	newConnsPerSecond = 500 // packets of connections that are not known yet, and of denied ones
	dnsPerSecond      = 500
	dnsConns          = 32 // over TCP, at once
)

// mostPins is how many addresses of a family a guest may have been answered for its domains at a time. Each takes memory of the kernel's for as
// long as its answer holds, and a guest that works with the owner of a domain has any number.
const mostPins = 8192

// table begins a change of the slot's rules. Its socket stays open: closing one waits until the kernel has let go of the rules that were
// replaced, some milliseconds (nft_rcv_nl_event in net/netfilter/nf_tables_api.c), and that is what a machine would wait for.
func (s *Slot) table() (*table, error) {
	if s.nft == nil {
		conn, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(int(s.ns.Fd())))
		if err != nil {
			return nil, err
		}
		s.nft = conn
	}
	return &table{conn: s.nft, Table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}}, nil
}

func (s *Slot) hangUp() error {
	if s.nft == nil {
		return nil
	}
	err := s.nft.CloseLasting()
	s.nft = nil
	return err
}

// rules makes all of a new slot's rules, with a policy that lets nothing through. They are there before any link is.
func (s *Slot) rules() error {
	t, err := s.table()
	if err != nil {
		return err
	}
	t.conn.AddTable(t.Table)
	for _, name := range []string{countDenied, countSpoofed} {
		t.conn.AddObject(&nftables.CounterObj{Table: t.Table, Name: name})
	}
	var sets [2]map[string]*nftables.Set
	for i, v6 := range []bool{false, true} {
		sets[i] = map[string]*nftables.Set{}
		for name, p := range s.prefixSets() {
			if sets[i][name], err = t.prefixes(name, v6, p); err != nil {
				return err
			}
		}
		if sets[i][setPinned], err = t.addresses(setPinned, v6); err != nil {
			return err
		}
	}
	filter := func(name string, at *nftables.ChainHook) *nftables.Chain {
		return t.hook(name, nftables.ChainTypeFilter, at, *nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	}
	raw := t.hook("source", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw, nftables.ChainPolicyAccept)
	input, output := filter("input", nftables.ChainHookInput), filter("output", nftables.ChainHookOutput)
	forward := filter(chainForward, nftables.ChainHookForward)
	egress, denied := t.chain(chainEgress), t.chain(chainDenied)
	t.chain(chainPolicy)
	t.chain(chainInbound)

	s.sourceRules(t, raw)
	s.inputRules(t, input)
	t.rules(output, oif(tapName).and(accept())) // the DNS server's answers, forwarded ports, rejections: all go to the guest
	t.rules(egress, egressRules(sets, s.host.cfg.Connections)...)
	t.rules(denied, count(countDenied), rejectTCP(), rejectOther())
	s.forwardRules(t, forward, 0)
	s.natRules(t)
	return t.conn.Flush()
}

func (s *Slot) prefixSets() map[string][]netip.Prefix {
	h := s.host
	h.mu.Lock()
	defer h.mu.Unlock()
	return map[string][]netip.Prefix{setNever: h.never, setAllowed: h.cfg.Allowed, setPrivate: private(), setListed: nil}
}

// sourceRules drop what does not come from the guest's card and address.
func (s *Slot) sourceRules(t *table, c *nftables.Chain) {
	from, spoofed := iif(tapName), count(countSpoofed).and(drop())
	mac, err := net.ParseMAC(GuestMAC)
	if err != nil {
		panic(err) // a constant of ours
	}
	t.rules(c,
		from.and(rule{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6}, neq(mac)}, spoofed),
		from.and(isNot(source, guestAddr()), spoofed),
	)
	if !s.host.cfg.IPv6 {
		t.rules(c, from.and(ipv6(), count(countDenied), drop()))
		return
	}
	for _, nd := range neighborDiscovery {
		t.rules(c, from.and(inside(source, netip.MustParsePrefix("fe80::/10")), icmpType(unix.IPPROTO_ICMPV6, nd), accept()))
	}
	t.rules(c, from.and(isNot(source, guestAddr6()), spoofed))
}

// neighborDiscovery is what stands for ARP in IPv6: solicitation and advertisement (RFC 4861).
var neighborDiscovery = []byte{135, 136}

// inputRules let the guest ask the slot's DNS server, and answer what forwarded ports brought it.
func (s *Slot) inputRules(t *table, c *nftables.Chain) {
	from := iif(tapName)
	if b := s.host.cfg.Bandwidth; b > 0 { // no queue is on this way: what is too much is lost
		t.rules(c, from.and(bytesOver(b/8, bucket(b/8)), drop()))
	}
	t.rules(c, from.and(ctState(expr.CtStateBitESTABLISHED), ctReply(), accept()))
	t.rules(c, from.and(port(unix.IPPROTO_UDP, 53), packetsOver(dnsPerSecond, dnsPerSecond), drop()))
	t.rules(c, from.and(port(unix.IPPROTO_TCP, 53), ctState(expr.CtStateBitNEW), connsOver(dnsConns), drop()))
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		t.rules(c, from.and(inside(destination, single(gatewayAddr())), port(proto, 53), accept()))
	}
	if s.host.cfg.IPv6 {
		for _, nd := range neighborDiscovery {
			t.rules(c, from.and(ipv6(), icmpType(unix.IPPROTO_ICMPV6, nd), accept()))
		}
	}
	t.rules(c, from.and(packetsOver(newConnsPerSecond, newConnsPerSecond), drop()), from.and(goTo(chainDenied)))
}

// egressRules judge a guest's packet by its destination: first what nobody may, then what the operator says, then what the policy says.
func egressRules(sets [2]map[string]*nftables.Set, conns uint32) []rule {
	no := goTo(chainDenied)
	l := []rule{packetsOver(newConnsPerSecond, 2*newConnsPerSecond).and(drop())}
	for _, set := range sets {
		l = append(l, to(set[setNever]).and(no))
	}
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for _, n := range []uint16{25, 53, 853} { // mail, and DNS that is not the slot's
			l = append(l, port(proto, n).and(no))
		}
	}
	l = append(l, connsOver(conns).and(no))
	for _, set := range sets {
		l = append(l, to(set[setAllowed]).and(goTo(chainPolicy)), to(set[setPrivate]).and(no))
	}
	return append(l, goTo(chainPolicy))
}

// forwardRules are what passes without being judged: connections that the policy in force, of the generation, let be made.
func (s *Slot) forwardRules(t *table, c *nftables.Chain, generation uint32) {
	in, out := iif(outName).and(oif(tapName)), iif(tapName).and(oif(outName))
	established := ctState(expr.CtStateBitESTABLISHED)
	t.rules(c, ctState(expr.CtStateBitINVALID|expr.CtStateBitUNTRACKED).and(drop())) // no address would be translated
	if generation > 0 {
		t.rules(c, ctMark(generation).and(accept()))
		t.rules(c, in.and(ctState(expr.CtStateBitRELATED), accept()))
		// Made under another policy: the guest's next packet is judged, and until then TCP's may come in, which that one answers.
		t.rules(c, in.and(l4(unix.IPPROTO_TCP), established, ctReply(), accept()))
	}
	t.rules(c, out.and(goTo(chainEgress)), in.and(goTo(chainInbound)))
}

// natRules give the guest's packets the slot's address, and with a bridge the slot's connections the guest's.
func (s *Slot) natRules(t *table) {
	post := t.hook("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	t.rules(post, oif(outName).and(rule{&expr.Masq{}}))
	if b := s.host.cfg.Bridge; b == nil || !b.Inbound {
		return
	}
	pre := t.hook("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest, nftables.ChainPolicyAccept)
	t.rules(pre, iif(outName).and(ipv4(), rule{
		&expr.Immediate{Register: 1, Data: guestAddr().AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}))
}

// applyPolicy changes the slot's rules to a policy's, all at once.
func (s *Slot) applyPolicy(p *allowed) error {
	t, err := s.table()
	if err != nil {
		return err
	}
	chains := map[string]*nftables.Chain{}
	for _, name := range []string{chainForward, chainPolicy, chainInbound} {
		chains[name] = &nftables.Chain{Name: name, Table: t.Table}
		t.conn.FlushChain(chains[name])
	}
	s.forwardRules(t, chains[chainForward], p.generation)
	families := []bool{false}
	if s.host.cfg.IPv6 {
		families = append(families, true)
	}
	for _, v6 := range families {
		listed, pinned := t.named(setListed, v6), t.named(setPinned, v6)
		t.conn.FlushSet(listed)
		t.conn.FlushSet(pinned)
		if v6 && !p.IPv6 {
			continue
		}
		if l := intervals(p.Prefixes, v6); len(l) > 0 {
			if err := t.conn.SetAddElements(listed, l); err != nil {
				return err
			}
		}
		for _, match := range p.matches(listed, pinned, v6) {
			t.rules(chains[chainPolicy], match.and(setMark(p.generation), accept()))
		}
	}
	t.rules(chains[chainPolicy], goTo(chainDenied))
	if b := s.host.cfg.Bridge; b != nil && b.Inbound && p.Kind != None && p.Kind != "" {
		t.rules(chains[chainInbound], outside(source, b.lease()).and(ctOriginal(), setMark(p.generation), accept()))
	}
	return t.conn.Flush()
}

// matches are what a policy lets through in a family: TCP, UDP and pings.
func (p *allowed) matches(listed, pinned *nftables.Set, v6 bool) []rule {
	family, ping := ipv4(), icmpType(unix.IPPROTO_ICMP, 8)
	if v6 {
		family, ping = ipv6(), icmpType(unix.IPPROTO_ICMPV6, 128)
	}
	var l []rule
	for _, kind := range []rule{l4(unix.IPPROTO_TCP), l4(unix.IPPROTO_UDP), ping} {
		switch p.Kind {
		case Internet:
			l = append(l, family.and(kind))
		case Allowlist:
			l = append(l, to(listed).and(kind), to(pinned).and(kind))
		}
	}
	return l
}

// named is a set of the slot's table that exists.
func (t *table) named(name string, v6 bool) *nftables.Set {
	s := t.set(name, v6)
	s.ID = 0 // the kernel finds it by its name
	s.Interval = name != setPinned
	s.HasTimeout = name == setPinned
	return s
}

// pin lets the guest connect to addresses for as long as is said beside them, if the policy is still p.
func (s *Slot) pin(ctx context.Context, p *allowed, addrs map[netip.Addr]time.Duration) error {
	return s.change(ctx, func() error {
		if s.policy.Load() != p {
			return errors.New("the policy has changed")
		}
		err := s.applyPins(addrs)
		if errors.Is(err, unix.ENOENT) { // an old kernel's element ran out between two lines of the change: now it is gone
			err = s.applyPins(addrs)
		}
		return err
	})
}

// applyPins adds each address, takes it out and adds it again: before Linux 6.13 no element's time can be changed, and none can be taken
// out that is not there.
func (s *Slot) applyPins(addrs map[netip.Addr]time.Duration) error {
	t, err := s.table()
	if err != nil {
		return err
	}
	for _, v6 := range []bool{false, true} {
		var l []nftables.SetElement
		for a, d := range addrs {
			if a.Is6() == v6 {
				l = append(l, nftables.SetElement{Key: a.AsSlice(), Timeout: d})
			}
		}
		if len(l) == 0 {
			continue
		}
		set := t.named(setPinned, v6)
		bare := slices.Clone(l)
		for i := range bare {
			bare[i].Timeout = 0
		}
		if err := errors.Join(t.conn.SetAddElements(set, l), t.conn.SetDeleteElements(set, bare), t.conn.SetAddElements(set, l)); err != nil {
			return err
		}
	}
	return t.conn.Flush()
}

// refreshNever tells the slot's rules of the host's addresses as they are now.
func (s *Slot) refreshNever(ctx context.Context) error {
	return s.change(ctx, func() error {
		t, err := s.table()
		if err != nil {
			return err
		}
		never := s.prefixSets()[setNever]
		for _, v6 := range []bool{false, true} {
			set := t.named(setNever, v6)
			t.conn.FlushSet(set)
			if l := intervals(never, v6); len(l) > 0 {
				if err := t.conn.SetAddElements(set, l); err != nil {
					return err
				}
			}
		}
		return t.conn.Flush()
	})
}

// counted reads one of the slot's counters.
func (s *Slot) counted(name string) (uint64, error) {
	t, err := s.table()
	if err != nil {
		return 0, err
	}
	o, err := t.conn.GetObject(&nftables.CounterObj{Table: t.Table, Name: name})
	if err != nil {
		return 0, err
	}
	c, ok := o.(*nftables.CounterObj)
	if !ok {
		return 0, fmt.Errorf("counter %s is a %T", name, o)
	}
	return c.Packets, nil
}
