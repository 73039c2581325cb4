package hostnet_test

import (
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/paddockvm/paddock/worker/hostnet"
)

// bridgeOf makes a Bridge of a child's arguments: name, LAN, lease and gateway.
func bridgeOf(args []string) *hostnet.Bridge {
	if len(args) == 0 {
		return nil
	}
	return &hostnet.Bridge{
		Name: args[0], CIDR: netip.MustParsePrefix(args[1]), Lease: netip.MustParsePrefix(args[2]), Gateway: netip.MustParseAddr(args[3]), Inbound: true,
	}
}

const (
	lanHost    = "192.168.77.1" // the host's own on its bridge
	lanMachine = "192.168.77.210"
	lanGateway = "192.168.77.254"
)

// bridge gives the host a bridge to a LAN, where somebody lives, and the internet is the LAN's gateway.
func (l *lab) bridge(t testing.TB) (lan *os.File) {
	t.Helper()
	nl := rtnl(t, l.host)
	defer nl.Close()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", TxQLen: -1}}
	must(t, nl.LinkAdd(br))
	must(t, nl.LinkSetUp(br))
	address(t, l.host, "br0", lanHost+"/24")
	lan = namespace(t)
	for name, ns := range map[string]*os.File{"p0": lan, "p1": l.internet} {
		wire(t, ns, "lan0", l.host, name)
		p, err := nl.LinkByName(name)
		must(t, err)
		must(t, nl.LinkSetMaster(p, br))
	}
	address(t, lan, "lan0", lanMachine+"/24")
	address(t, l.internet, "lan0", lanGateway+"/24")
	return lan
}

func TestBridge(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := l.bridge(t)
	echo(t, lan, 80)
	cfg := l.config(t)
	cfg.Bridge = bridgeOf([]string{"br0", "192.168.77.0/24", "192.168.77.0/25", lanGateway})
	cfg.Slots = 3
	h := run(t, cfg)
	a, b := take(t, h), take(t, h)
	ga, gb := newGuest(t, a), newGuest(t, b)
	echo(t, ga.ns, 80)
	echo(t, gb.ns, 80)
	for _, s := range []*hostnet.Slot{a, b} {
		switch at := s.Address().String(); at {
		case lanHost, lanGateway, "192.168.77.0", "192.168.77.255":
			t.Errorf("a slot has %s", at)
		}
	}
	at := a.Address().String()
	isRefused(t, "the LAN", lan, every(at)) // no policy, no way in

	allow(t, a, hostnet.Policy{Kind: hostnet.Internet})
	allow(t, b, hostnet.Policy{Kind: hostnet.Internet})
	reaches(t, "the guest", ga.ns, every(web))
	if as, err := tcp(ga.ns, "", web, 80, granted); err != nil || as != at {
		t.Errorf("seen as %q, want %s: %v", as, at, err)
	}
	reaches(t, "the LAN", lan, every(at), every(b.Address().String()))
	if as, err := tcp(lan, "", at, 80, granted); err != nil || as != lanMachine {
		t.Errorf("the guest saw %q, want %s: %v", as, lanMachine, err)
	}
	isDenied(t, l, ga, every(lanMachine, lanHost))
	refused(t, ga, every(b.Address().String()))
	always(t, l, ga)

	t.Run("false sources", func(t *testing.T) {
		address(t, ga.ns, "eth0", lanMachine+"/32", "192.168.77.100/32")
		for _, from := range []string{lanMachine, "192.168.77.100"} {
			if _, err := tcp(ga.ns, from, web, 80, denied); err == nil {
				t.Errorf("%s got out", from)
			}
		}
		reaches(t, "the guest", ga.ns, tries("tcp/80", web))
	})
	t.Run("back to none", func(t *testing.T) {
		allow(t, a, hostnet.Policy{})
		isRefused(t, "the LAN", lan, every(at))
	})
}

func TestBridgeAllowed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	lan := l.bridge(t)
	echo(t, lan, 80)
	cfg := l.config(t)
	cfg.Bridge = bridgeOf([]string{"br0", "192.168.77.0/24", "192.168.77.64/26", lanGateway})
	cfg.Bridge.Inbound = false
	cfg.Allowed = []netip.Prefix{netip.MustParsePrefix("192.168.77.0/24")}
	h := run(t, cfg)
	a, b := take(t, h), take(t, h)
	g := newGuest(t, a)
	newGuest(t, b)
	echo(t, g.ns, 80)
	allow(t, a, hostnet.Policy{Kind: hostnet.Internet})
	allow(t, b, hostnet.Policy{Kind: hostnet.Internet})
	if !netip.MustParsePrefix("192.168.77.64/26").Contains(a.Address()) {
		t.Errorf("the slot has %s", a.Address())
	}
	reaches(t, "the guest", g.ns, every(web, lanMachine))
	isDenied(t, l, g, every(lanHost))
	refused(t, g, every(b.Address().String()))
	isRefused(t, "the LAN", lan, every(a.Address().String()))
}
