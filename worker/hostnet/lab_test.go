package hostnet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/rs/zerolog"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/test/leak"
	"github.com/paddockvm/paddock/worker/hostnet"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "worker":
			worker(os.Args[2:])
			return
		case "churn":
			churn(os.Args[2])
		}
	}
	leak.VerifyTestMain(m)
}

func needRoot(t testing.TB) {
	t.Helper()
	_, tun := os.Stat("/dev/net/tun")
	if os.Geteuid() == 0 && tun == nil {
		return
	}
	if os.Getenv("REQUIRE_ROOT") != "" {
		t.Fatal("needs root and /dev/net/tun")
	}
	t.Skip("SKIPPED: needs root and /dev/net/tun: no network of machines is tested here (sudo -E go test ./worker/hostnet)")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// in runs f on a thread in a network namespace.
func in(ns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() { // the thread ends with the goroutine
		runtime.LockOSThread()
		if ns != nil {
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				done <- err
				return
			}
		} else if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// namespace makes a network namespace that ends with its descriptor.
func namespace(t testing.TB) *os.File {
	t.Helper()
	var ns *os.File
	must(t, in(nil, func() (err error) {
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	}))
	t.Cleanup(func() { ns.Close() })
	nl := rtnl(t, ns)
	defer nl.Close()
	lo, err := nl.LinkByName("lo")
	must(t, err)
	must(t, nl.LinkSetUp(lo))
	return ns
}

func rtnl(t testing.TB, ns *os.File) *netlink.Handle {
	t.Helper()
	nl, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	must(t, err)
	return nl
}

// wire connects two namespaces.
func wire(t testing.TB, a *os.File, aName string, b *os.File, bName string) {
	t.Helper()
	nl := rtnl(t, a)
	defer nl.Close()
	must(t, nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: aName, TxQLen: -1}, PeerName: bName, PeerNamespace: netlink.NsFd(int(b.Fd()))}))
	up(t, a, aName)
	up(t, b, bName)
	l, err := nl.LinkByName(aName)
	must(t, err)
	for end := time.Now().Add(10 * time.Second); l.Attrs().OperState != netlink.OperUp; time.Sleep(time.Millisecond) { // until then it loses what it is given
		if time.Now().After(end) {
			t.Fatalf("%s does not come up", aName)
		}
		l, err = nl.LinkByName(aName)
		must(t, err)
	}
}

func up(t testing.TB, ns *os.File, name string) {
	t.Helper()
	nl := rtnl(t, ns)
	defer nl.Close()
	l, err := nl.LinkByName(name)
	must(t, err)
	must(t, nl.LinkSetUp(l))
}

func address(t testing.TB, ns *os.File, name string, addrs ...string) {
	t.Helper()
	nl := rtnl(t, ns)
	defer nl.Close()
	l, err := nl.LinkByName(name)
	must(t, err)
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		must(t, err)
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		must(t, nl.AddrAdd(l, a))
	}
}

func route(t testing.TB, ns *os.File, to, via string) {
	t.Helper()
	nl := rtnl(t, ns)
	defer nl.Close()
	_, dst, err := net.ParseCIDR(to)
	must(t, err)
	must(t, nl.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)}))
}

// The lab's addresses. The internet is a namespace that has all of them; the host reaches each.
const (
	hostAddr   = "45.10.0.2" // the host's public one
	hostSecond = "45.10.0.3" // and another
	uplinkAddr = "45.10.0.1" // the internet's end of the uplink
	web        = "45.20.0.1" // a server
	other      = "45.20.0.2" // another
	third      = "45.20.9.9" // a third
	resolver   = "45.53.0.1" // the host's DNS server
	elseDNS    = "45.53.0.2" // somebody else's
	metadata   = "169.254.169.254"
	azure      = "168.63.129.16"   // whose metadata is at a public address
	alibaba    = "100.100.100.200" // and at one of carriers' NAT
	private10  = "10.9.9.9"
	private172 = "172.16.9.9"
	private192 = "192.168.9.9"
	cgnat      = "100.64.9.9"
	bench      = "198.18.9.9"
	reserved   = "240.9.9.9"
	web6       = "2a00:20::1"
	private6   = "fd00:9::9"
	host6      = "2a00:10::2"
)

// lab is a host in a namespace of its own, and an internet in another.
type lab struct {
	host, internet *os.File
	dns            *names
	container      *os.File // nil: none
}

func newLab(t testing.TB) *lab {
	t.Helper()
	needRoot(t)
	l := &lab{host: namespace(t), internet: namespace(t), dns: &names{}}
	wire(t, l.host, "up0", l.internet, "down0")
	address(t, l.host, "up0", hostAddr+"/24", hostSecond+"/24", host6+"/64")
	address(t, l.internet, "down0", uplinkAddr+"/24", "2a00:10::1/64")
	address(t, l.internet, "lo", web+"/32", other+"/32", third+"/32", resolver+"/32", elseDNS+"/32", metadata+"/32", azure+"/32", alibaba+"/32", private10+"/32", private172+"/32",
		private192+"/32", cgnat+"/32", bench+"/32", reserved+"/32", web6+"/128", private6+"/128")
	route(t, l.host, "0.0.0.0/0", uplinkAddr)
	route(t, l.host, "::/0", "2a00:10::1")
	for _, ns := range []*os.File{l.internet, l.host} {
		for _, port := range []int{25, 53, 80, 443, 853} {
			if ns == l.internet || port == 80 {
				echo(t, ns, port)
			}
		}
	}
	l.serveDNS(t)
	return l
}

// echo answers on a port, TCP and UDP, of every address of a namespace. A TCP client is told where it is seen to come from.
func echo(t testing.TB, ns *os.File, port int) {
	t.Helper()
	if port == 53 {
		return // DNS does that
	}
	var tcp net.Listener
	var udp *net.UDPConn
	must(t, in(ns, func() (err error) {
		if tcp, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err != nil {
			return err
		}
		udp, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
		if err == nil {
			err = pktinfo(udp)
		}
		return err
	}))
	var ended sync.WaitGroup
	ended.Go(func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			ended.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(20 * time.Second))
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintln(c, host)
				io.Copy(c, c)
			})
		}
	})
	ended.Go(func() {
		b, oob := make([]byte, 2048), make([]byte, 256)
		for {
			n, m, _, from, err := udp.ReadMsgUDPAddrPort(b, oob)
			if err != nil {
				return
			}
			udp.WriteMsgUDPAddrPort(b[:n], answerFrom(oob[:m]), from)
		}
	})
	t.Cleanup(func() { tcp.Close(); udp.Close(); ended.Wait() })
}

// pktinfo has a socket tell which of the addresses was asked, so that it answers from that.
func pktinfo(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1), unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
	})
	return errors.Join(err, set)
}

// answerFrom makes of what pktinfo told what has the kernel answer from there.
func answerFrom(oob []byte) []byte {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range msgs {
		if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 12 {
			var p unix.Inet4Pktinfo
			copy(p.Spec_dst[:], m.Data[8:12])
			return unix.PktInfo4(&p)
		}
		if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 16 {
			var p unix.Inet6Pktinfo
			copy(p.Addr[:], m.Data[:16])
			return unix.PktInfo6(&p)
		}
	}
	return nil
}

// names is what the lab's DNS servers know; questions counts what they were asked.
type names struct {
	records   sync.Map // name with its dot → []string, records
	questions atomic.Int64
}

func (n *names) set(name string, records ...string) { n.records.Store(name, records) }

func (n *names) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	n.questions.Add(1)
	a := new(dns.Msg)
	a.SetReply(q)
	records, ok := n.records.Load(q.Question[0].Name)
	if !ok {
		a.Rcode = dns.RcodeNameError
	} else {
		for _, s := range records.([]string) {
			rr, err := dns.NewRR(s)
			if err != nil {
				panic(err)
			}
			if t := rr.Header().Rrtype; t == q.Question[0].Qtype || t == dns.TypeCNAME || rr.Header().Name != q.Question[0].Name {
				a.Answer = append(a.Answer, rr)
			}
		}
	}
	if _, udp := w.LocalAddr().(*net.UDPAddr); udp {
		a.Truncate(512)
	}
	w.WriteMsg(a)
}

// serveDNS answers at every address of the internet, not at resolver alone.
func (l *lab) serveDNS(t testing.TB) {
	t.Helper()
	var ended sync.WaitGroup
	t.Cleanup(ended.Wait) // the last of these cleanups, which run last first
	for _, at := range []string{resolver, elseDNS, uplinkAddr} {
		var pc net.PacketConn
		var ln net.Listener
		must(t, in(l.internet, func() (err error) {
			if pc, err = net.ListenPacket("udp", at+":53"); err != nil {
				return err
			}
			ln, err = net.Listen("tcp", at+":53")
			return err
		}))
		for _, s := range []*dns.Server{{PacketConn: pc, Handler: l.dns}, {Listener: ln, Handler: l.dns}} {
			started := make(chan struct{})
			s.NotifyStartedFunc = func() { close(started) }
			ended.Go(func() { s.ActivateAndServe() })
			<-started
			t.Cleanup(func() { s.Shutdown() })
		}
	}
}

// config is what the lab's Host begins with.
func (l *lab) config(t testing.TB) hostnet.Config {
	return hostnet.Config{
		StateDir: filepath.Join(t.TempDir(), "net"), Netns: fmt.Sprintf("/proc/self/fd/%d", l.host.Fd()), Slots: 2, MaxSlots: 64,
		Upstream: []netip.AddrPort{netip.MustParseAddrPort(resolver + ":53")},
	}
}

// run starts a Host, and ends it with the test.
func run(t testing.TB, cfg hostnet.Config) *hostnet.Host {
	t.Helper()
	ctx := zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.DebugLevel).WithContext(context.Background())
	h, err := hostnet.New(ctx, cfg)
	must(t, err)
	ctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("Run has not returned")
		}
	})
	return h
}

func take(t testing.TB, h *hostnet.Host) *hostnet.Slot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := h.Take(ctx)
	must(t, err)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func allow(t testing.TB, s *hostnet.Slot, p hostnet.Policy) {
	t.Helper()
	must(t, s.Allow(t.Context(), p))
}

// guest is a Linux network stack behind a slot's tap: a namespace whose own tap's frames are carried over.
type guest struct {
	t    testing.TB
	ns   *os.File
	tap  *os.File
	slot *hostnet.Slot
}

func newGuest(t testing.TB, s *hostnet.Slot) *guest {
	t.Helper()
	g := &guest{t: t, ns: namespace(t), slot: s}
	must(t, in(g.ns, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq("eth0")
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return err
		}
		g.tap = os.NewFile(uintptr(fd), "guest") // polls, so it must have its interface
		return nil
	}))
	c := s.Guest()
	nl := rtnl(t, g.ns)
	defer nl.Close()
	l, err := nl.LinkByName("eth0")
	must(t, err)
	mac, err := net.ParseMAC(c.MAC)
	must(t, err)
	must(t, nl.LinkSetHardwareAddr(l, mac))
	must(t, nl.LinkSetMTU(l, c.MTU))
	must(t, nl.LinkSetUp(l))
	address(t, g.ns, "eth0", c.Address.String())
	route(t, g.ns, "0.0.0.0/0", c.Gateway.String())
	if c.Address6.IsValid() {
		address(t, g.ns, "eth0", c.Address6.String())
		route(t, g.ns, "::/0", c.Gateway6.String())
	}
	g.carry(s.Tap())
	return g
}

// carry is what a VMM does: frames, with their header, both ways.
func (g *guest) carry(tap *os.File) {
	var ended sync.WaitGroup
	for _, way := range [][2]*os.File{{tap, g.tap}, {g.tap, tap}} {
		ended.Go(func() {
			b := make([]byte, 70_000)
			for {
				n, err := way[0].Read(b)
				if err != nil {
					return
				}
				if _, err := way[1].Write(b[:n]); err != nil && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EINVAL) {
					return
				}
			}
		})
	}
	g.t.Cleanup(func() {
		g.tap.Close()
		tap.SetReadDeadline(time.Unix(1, 0)) // whose it is closes it
		ended.Wait()
		tap.SetReadDeadline(time.Time{})
	})
}

// What is let through answers in a millisecond, where the machine has time; what is denied is waited for much longer than that.
const (
	granted = 15 * time.Second
	denied  = time.Second
)

// tcp connects from a namespace, and tells as whom.
func tcp(ns *os.File, from, to string, port int, patience time.Duration) (as string, err error) {
	err = in(ns, func() error {
		d := net.Dialer{Timeout: patience}
		if from != "" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		c, err := d.Dial("tcp", net.JoinHostPort(to, fmt.Sprint(port)))
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		b := make([]byte, 256)
		n, err := c.Read(b)
		as = strings.TrimPrefix(strings.TrimSpace(string(b[:n])), "::ffff:")
		return err
	})
	return as, err
}

// udp sends and waits for the echo.
func udp(ns *os.File, to string, port int, patience time.Duration) error {
	return in(ns, func() error {
		c, err := net.Dial("udp", net.JoinHostPort(to, fmt.Sprint(port)))
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		b := make([]byte, 16)
		_, err = c.Read(b)
		return err
	})
}

// ping sends an echo request by a raw socket and waits for the reply.
func ping(ns *os.File, to string, patience time.Duration) error {
	return in(ns, func() error {
		network, request, reply := "ip4:icmp", byte(8), byte(0)
		if strings.Contains(to, ":") {
			network, request, reply = "ip6:ipv6-icmp", 128, 129
		}
		c, err := net.Dial(network, to)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		m := []byte{request, 0, 0, 0, 0x12, 0x34, 0, 1}
		if request == 8 {
			m[2], m[3] = checksum(m)
		}
		if _, err := c.Write(m); err != nil {
			return err
		}
		b := make([]byte, 1500)
		for {
			n, err := c.Read(b)
			if err != nil {
				return err
			}
			m := b[:n]
			if request == 8 && n >= 20 { // a raw socket has the IPv4 header too
				m = m[min(n, int(m[0]&15)*4):]
			}
			if len(m) >= 8 && m[0] == reply && m[4] == 0x12 && m[5] == 0x34 {
				return nil
			}
		}
	})
}

func checksum(b []byte) (byte, byte) {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	sum = sum>>16 + sum&0xffff
	sum = ^(sum + sum>>16)
	return byte(sum >> 8), byte(sum)
}

// lookup asks a DNS server from a namespace.
func lookup(ns *os.File, network, server, name string, kind uint16, patience time.Duration) (*dns.Msg, error) {
	var a *dns.Msg
	err := in(ns, func() error {
		c, err := net.DialTimeout(network, server+":53", patience)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		q := new(dns.Msg)
		q.SetQuestion(name, kind)
		q.SetEdns0(1232, false)
		conn := &dns.Conn{Conn: c, UDPSize: 1232}
		if err := conn.WriteMsg(q); err != nil {
			return err
		}
		a, err = conn.ReadMsg()
		return err
	})
	return a, err
}

func addressesOf(m *dns.Msg) []string {
	var l []string
	for _, rr := range m.Answer {
		switch r := rr.(type) {
		case *dns.A:
			l = append(l, r.A.String())
		case *dns.AAAA:
			l = append(l, r.AAAA.String())
		}
	}
	return l
}

func parseMAC(s string) (net.HardwareAddr, error) { return net.ParseMAC(s) }
