package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/rs/zerolog"
)

// server is a slot's DNS server. It listens in the slot's namespace and asks from the host's.
type server struct {
	slot  *Slot
	busy  chan struct{} // one for each question that is being answered
	ended sync.WaitGroup
	udp   *dns.Server
	tcp   *dns.Server
}

const (
	// questionsAtOnce are a slot's; questionsOut are those of all slots that wait for an answer from outside, but for ownQuestions of each: guests
	// whose questions nobody answers keep no other's from being asked.
	questionsAtOnce = 64
	questionsOut    = 512
	ownQuestions    = 4
	questionTime    = 5 * time.Second
	// maxPin is how long an answer may be relied upon, by the guest and by its rules.
	maxPin = time.Hour
	// pinSlack is how much longer than the guest's own cache the rules know an address: it may connect at the last moment.
	pinSlack = 5 * time.Second
)

// serve listens at the gateway's address and port 53, UDP and TCP.
func serve(s *Slot) (*server, error) {
	var pc net.PacketConn
	var l net.Listener
	err := within(int(s.ns.Fd()), func() error {
		at := netip.AddrPortFrom(gatewayAddr(), 53)
		u, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		t, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
		if err != nil {
			return errors.Join(err, u.Close())
		}
		pc, l = u, t
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listen for DNS: %w", err)
	}
	sv := &server{slot: s, busy: make(chan struct{}, questionsAtOnce)}
	sv.udp = &dns.Server{PacketConn: pc, Handler: sv, UDPSize: dns.MinMsgSize * 2}
	sv.tcp = &dns.Server{Listener: l, Handler: sv, MaxTCPQueries: 128}
	for _, d := range []*dns.Server{sv.udp, sv.tcp} {
		started := make(chan struct{})
		d.NotifyStartedFunc = func() { close(started) }
		sv.ended.Go(func() { _ = d.ActivateAndServe() }) // it ends when it is shut down; sockets that break tell the guest
		<-started
	}
	return sv, nil
}

func (sv *server) close() error {
	if sv == nil {
		return nil
	}
	err := errors.Join(sv.udp.Shutdown(), sv.tcp.Shutdown())
	sv.ended.Wait()
	return err
}

// refusal is an answer that is none, and why (RFC 8914).
type refusal struct {
	rcode int
	info  uint16
}

func (r refusal) Error() string { return dns.RcodeToString[r.rcode] }

var (
	errNotListed = refusal{dns.RcodeRefused, dns.ExtendedErrorCodeProhibited}
	errMalformed = refusal{dns.RcodeFormatError, 0}
	errOverload  = refusal{dns.RcodeServerFailure, dns.ExtendedErrorCodeNotReady}
)

// ServeDNS answers one question of the guest's. Answers are built anew: nothing passes that was not asked for.
func (sv *server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	a, err := sv.answer(q)
	outcome := "answered"
	if err != nil {
		a = new(dns.Msg)
		r, refused := errors.AsType[refusal](err)
		outcome = "refused"
		if !refused {
			r, outcome = refusal{dns.RcodeServerFailure, dns.ExtendedErrorCodeNetworkError}, "failed"
			zerolog.Ctx(sv.slot.life).Debug().Err(err).Msg("a guest's DNS question was not answered")
		}
		a.SetRcode(q, r.rcode)
		explain(a, q, r.info)
	}
	sv.slot.host.metrics.questions.WithLabelValues(outcome).Inc()
	size := dns.MinMsgSize
	if _, udp := w.LocalAddr().(*net.UDPAddr); !udp {
		size = dns.MaxMsgSize
	} else if o := q.IsEdns0(); o != nil {
		size = int(min(max(o.UDPSize(), dns.MinMsgSize), 1232)) // what passes everywhere unfragmented
	}
	a.RecursionAvailable = true
	a.Truncate(size)
	_ = w.WriteMsg(a) // the guest asks again
}

func explain(a, q *dns.Msg, info uint16) {
	if q.IsEdns0() == nil {
		return
	}
	a.SetEdns0(1232, false)
	if info != 0 {
		o := a.IsEdns0()
		o.Option = append(o.Option, &dns.EDNS0_EDE{InfoCode: info})
	}
}

func (sv *server) answer(q *dns.Msg) (*dns.Msg, error) {
	if q.Response || q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 || q.Question[0].Qclass != dns.ClassINET {
		return nil, errMalformed
	}
	select {
	case sv.busy <- struct{}{}:
		defer func() { <-sv.busy }()
	default:
		return nil, errOverload
	}
	p := sv.slot.policy.Load()
	question := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name, "."))
	if !p.resolves(name) {
		return nil, errNotListed
	}
	switch question.Qtype {
	case dns.TypeANY, dns.TypeAXFR, dns.TypeIXFR:
		return nil, refusal{dns.RcodeNotImplemented, 0}
	case dns.TypeHTTPS, dns.TypeSVCB:
		return empty(q), nil // they bring addresses by another way
	case dns.TypeAAAA:
		if !p.IPv6 {
			return empty(q), nil
		}
	}
	ctx, cancel := context.WithTimeout(sv.slot.life, questionTime)
	defer cancel()
	up, err := sv.ask(ctx, question)
	if err != nil {
		return nil, err
	}
	a, addrs := sv.slot.host.filter(q, up, p)
	if p.Kind == Allowlist && len(addrs) > 0 {
		if err := sv.slot.pin(ctx, p, addrs); err != nil {
			return nil, fmt.Errorf("let the guest reach what %s is: %w", name, err)
		}
	}
	return a, nil
}

// resolves tells whether a policy lets a name be known.
func (p *allowed) resolves(name string) bool {
	return p.Kind == Internet || p.Kind == Allowlist && p.lists(name)
}

func empty(q *dns.Msg) *dns.Msg {
	a := new(dns.Msg)
	a.SetReply(q)
	explain(a, q, 0)
	return a
}

// filter makes the guest's answer of a server's, and says which addresses are in it, and for how long they hold. Addresses that are always
// denied are left out: a public name for a private address opens nothing (DNS rebinding).
func (h *Host) filter(q, up *dns.Msg, p *allowed) (*dns.Msg, map[netip.Addr]time.Duration) {
	a := empty(q)
	a.Rcode = up.Rcode
	addrs := map[netip.Addr]time.Duration{}
	left := false
	names := chain(q.Question[0].Name, up.Answer)
	for _, rr := range up.Answer {
		if !names[dns.CanonicalName(rr.Header().Name)] {
			continue // an answer to something else
		}
		rr.Header().Ttl = min(rr.Header().Ttl, uint32(maxPin/time.Second))
		var addr netip.Addr
		switch r := rr.(type) {
		case *dns.A:
			addr, _ = netip.AddrFromSlice(r.A.To4())
		case *dns.AAAA:
			addr, _ = netip.AddrFromSlice(r.AAAA)
		default:
			a.Answer = append(a.Answer, rr)
			continue
		}
		if !addr.IsValid() || addr.Is6() && !p.IPv6 || h.denies(addr) {
			left = true
			continue
		}
		a.Answer = append(a.Answer, rr)
		ttl := time.Duration(rr.Header().Ttl)*time.Second + pinSlack
		addrs[addr] = max(addrs[addr], ttl, h.cfg.MinPin)
	}
	if left && len(addrs) == 0 {
		explain(a, q, dns.ExtendedErrorCodeFiltered)
	}
	for _, rr := range up.Ns {
		if rr.Header().Rrtype == dns.TypeSOA { // how long there is no such name
			a.Ns = append(a.Ns, rr)
		}
	}
	return a, addrs
}

// longestChain is how many names a name may be another name for, one after the other: resolvers follow fewer.
const longestChain = 16

// chain is the name that was asked for, and those that it is another name of.
func chain(name string, answer []dns.RR) map[string]bool {
	names := map[string]bool{dns.CanonicalName(name): true}
	for range longestChain { // they may come in any order
		had := len(names)
		for _, rr := range answer {
			if c, ok := rr.(*dns.CNAME); ok && names[dns.CanonicalName(c.Hdr.Name)] {
				names[dns.CanonicalName(c.Target)] = true
			}
		}
		if len(names) == had {
			break
		}
	}
	return names
}

// denies tells whether an address is always denied on this host.
func (h *Host) denies(a netip.Addr) bool {
	h.mu.Lock()
	never := h.never
	h.mu.Unlock()
	return anyContains(never, a) || anyContains(private(), a) && !anyContains(h.cfg.Allowed, a)
}

// ask asks the host's DNS servers. The slot's first questions need no place among all slots'.
func (sv *server) ask(ctx context.Context, question dns.Question) (*dns.Msg, error) {
	h := sv.slot.host
	if len(sv.busy) <= ownQuestions {
		return h.ask(ctx, question)
	}
	select {
	case h.asking <- struct{}{}:
		defer func() { <-h.asking }()
	case <-ctx.Done():
		return nil, errOverload
	}
	return h.ask(ctx, question)
}

// ask asks the host's DNS servers, one after the other.
func (h *Host) ask(ctx context.Context, question dns.Question) (*dns.Msg, error) {
	var errs error
	for _, at := range h.cfg.Upstream {
		m, err := h.askOne(ctx, at, question)
		if err == nil && m.Rcode != dns.RcodeServerFailure && m.Rcode != dns.RcodeRefused {
			return m, nil
		}
		if err == nil {
			err = errors.New(dns.RcodeToString[m.Rcode])
		}
		errs = errors.Join(errs, fmt.Errorf("ask %s: %w", at, err))
	}
	return nil, errs
}

func (h *Host) askOne(ctx context.Context, at netip.AddrPort, question dns.Question) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, max(questionTime/time.Duration(len(h.cfg.Upstream)+1), time.Second))
	defer cancel()
	q := new(dns.Msg)
	q.SetQuestion(question.Name, question.Qtype)
	q.SetEdns0(1232, false)
	m, err := h.exchange(ctx, "udp", at, q)
	if err == nil && m.Truncated {
		m, err = h.exchange(ctx, "tcp", at, q)
	}
	if err != nil {
		return nil, err
	}
	if len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, question.Name) || m.Question[0].Qtype != question.Qtype {
		return nil, errors.New("the answer is to another question")
	}
	return m, nil
}

func (h *Host) exchange(ctx context.Context, network string, at netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	c, err := dial(ctx, h.ns, network, at)
	if err != nil {
		return nil, err
	}
	conn := &dns.Conn{Conn: c, UDPSize: 1232}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	m, _, err := (&dns.Client{Net: network}).ExchangeWithConnContext(ctx, q, conn)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return m, err
}
