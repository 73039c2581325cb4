package e2e

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/worker/hostnet"
)

// What all machines have, docs/networking.md says, and what a card with HostMAC would call itself by in IPv6.
const (
	guestAddr  = "169.254.0.2"
	slotAddr   = "169.254.0.1"
	guestAddr6 = "fd70:6164:6463:ffff::2"
	slotLinked = "fe80::fc:ff:fe00:6"
)

// try is one thing to reach, by one means.
type try struct {
	Name string   `json:"name"`
	How  string   `json:"how"` // write, linked, name, frame, packet, vsock, tcp, udp or ping
	To   string   `json:"to"`  // "%card" in it is the machine's
	Port int      `json:"port"`
	Data [][]byte `json:"data"`    // what is sent
	Sure bool     `json:"awaited"` // something comes of it for certain, and is waited for

	open  bool
	alone string // why the host itself cannot show that it would be answered
}

// tries is the table. What run a try is of, and that it is this one, is in what it sends.
type tries struct {
	run  string
	list []try
}

func (l *tries) add(how, to string, port int, data ...[]byte) *try {
	at := to
	if port > 0 {
		at = net.JoinHostPort(to, strconv.Itoa(port))
	}
	t := try{Name: how + " " + at, How: how, To: to, Port: port, Data: data}
	if data == nil {
		t.Data = [][]byte{[]byte(token(l.run, t.Name))}
	}
	l.list = append(l.list, t)
	return &l.list[len(l.list)-1]
}

// host has the three means by which a host is tried, and may be reached.
func (l *tries) host(open bool, to string) {
	for _, how := range []string{"tcp", "udp"} {
		l.add(how, to, 80).open = open
	}
	l.ping(to).open = open
}

func (l *tries) ping(to string) *try {
	return l.add("ping", to, 0, pingOf(strings.Contains(to, ":"), token(l.run, "ping "+to)))
}

// question is of DNS, UDP's or TCP's.
func (l *tries) question(how, to string) *try {
	t := l.add(how, to, 53, nil)
	q := question(token(l.run, t.Name))
	if how == "tcp" {
		q = append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)
	}
	t.Data = [][]byte{q}
	return t
}

// sends is what nothing answers but the witness: what is made of the payload that it has to carry.
func (l *tries) sends(open bool, how, name string, build func(payload string) [][]byte) {
	l.list = append(l.list, try{Name: name, How: how, To: website, Data: build(token(l.run, name)), open: open, alone: "it has no answer"})
}

func one(b []byte) [][]byte { return [][]byte{b} }

// reaching is the table of a run, with the addresses that this host and a neighbour have. Opened are the addresses of the internet that the
// policy lets a machine reach.
func reaching(run string, l *lan, n *neighbour, opened ...string) []try {
	t := &tries{run: run}
	// Root in the machine may have it speak IPv6, at once: with nobody else on the link asked for the address first.
	for _, knob := range []struct{ file, value string }{
		{"%card/accept_dad", "0"}, {"all/disable_ipv6", "0"}, {"%card/disable_ipv6", "0"},
	} {
		t.list = append(t.list, try{Name: knob.file, How: "write", To: "/proc/sys/net/ipv6/conf/" + knob.file, Data: one([]byte(knob.value))})
	}
	t.list = append(t.list, try{Name: "speak IPv6", How: "linked"})
	// The kernel sends six ICMP messages at once, and then one a second (icmp_ratelimit): what is tried first is told of its denial for certain.
	t.host(false, private)
	for i := len(t.list) - 3; i < len(t.list); i++ {
		t.list[i].Sure = true
	}
	t.lying()
	t.sixth(opened)
	t.neighbour(n)
	for _, port := range []int{22, 53, 80, 111, 1024, 5000} {
		t.add("vsock", "2", port).alone = "what else is on the test's own host is not the test's"
	}
	for _, a := range append([]string{metadata, gateway}, elsewhere...) {
		t.host(false, a)
	}
	for _, a := range append(l.addresses(), n.hostEnd()) {
		if netip.MustParseAddr(a).IsLoopback() { // the machine has them too, and pings itself
			t.add("tcp", a, 80)
			t.add("udp", a, 80)
			continue
		}
		t.host(false, a)
	}
	for _, a := range []string{website, gateway} {
		t.question("udp", a)
	}
	t.question("tcp", website)
	for _, port := range []int{25, 853} {
		t.add("tcp", website, port)
		t.add("udp", website, port)
	}
	for _, open := range []bool{false, true} { // and then what is answered: by then all the others would be
		for _, a := range []string{website, another, third, fourth, website6, gateway6} {
			if slices.Contains(opened, a) == open {
				t.host(open, a)
			}
		}
	}
	return t.list
}

// lying are packets that lie about where they come from, or hide where they go.
func (l *tries) lying() {
	card := func(from, to string, packet []byte) [][]byte { return one(ether(to, from, etherIPv4, packet)) }
	l.sends(true, "packet", "a packet with its own address", func(p string) [][]byte { return one(datagram(guestAddr, website, 80, p)) })
	l.sends(true, "frame", "a frame with its own card", func(p string) [][]byte {
		return card(hostnet.GuestMAC, hostnet.HostMAC, datagram(guestAddr, website, 80, p))
	})
	l.sends(true, "frame", "a frame with a priority", func(p string) [][]byte {
		return one(tagged(card(hostnet.GuestMAC, hostnet.HostMAC, datagram(guestAddr, website, 80, p))[0]))
	})
	l.sends(true, "packet", "in fragments", func(p string) [][]byte { return fragments(guestAddr, website, 80, p) })

	for _, from := range []string{"8.8.8.8", another, hostAddr, hostToo, slotAddr, "100.96.0.1", "100.96.0.3", "10.1.2.3", "127.0.0.1", "224.0.0.1", "255.255.255.255"} {
		l.sends(false, "packet", "from "+from, func(p string) [][]byte { return one(datagram(from, website, 80, p)) })
		l.sends(false, "frame", "in a frame, from "+from, func(p string) [][]byte {
			return card(hostnet.GuestMAC, hostnet.HostMAC, datagram(from, website, 80, p))
		})
		l.sends(false, "frame", "with a priority, from "+from, func(p string) [][]byte {
			return one(tagged(card(hostnet.GuestMAC, hostnet.HostMAC, datagram(from, website, 80, p))[0]))
		})
	}
	for _, from := range []string{"02:fc:00:00:00:99", hostnet.HostMAC, everybody} {
		l.sends(false, "frame", "from the card "+from, func(p string) [][]byte {
			return card(from, hostnet.HostMAC, datagram(guestAddr, website, 80, p))
		})
		l.sends(false, "frame", "with a priority, from the card "+from, func(p string) [][]byte {
			return one(tagged(card(from, hostnet.HostMAC, datagram(guestAddr, website, 80, p))[0]))
		})
	}
	for _, of := range []string{slotAddr, hostAddr, gateway, website, "100.96.0.0", "100.96.0.1"} {
		for _, at := range []string{hostnet.GuestMAC, "02:fc:00:00:00:99"} {
			l.sends(false, "frame", of+" is at "+at, func(p string) [][]byte { return one(arp(of, at, p)) })
		}
	}
	for _, to := range []string{private, metadata, hostToo, hostAddr, "127.0.0.1"} {
		l.sends(false, "frame", "in a frame, to "+to, func(p string) [][]byte {
			return card(hostnet.GuestMAC, hostnet.HostMAC, datagram(guestAddr, to, 80, p))
		})
		l.sends(false, "frame", "with a priority, to "+to, func(p string) [][]byte {
			return one(tagged(card(hostnet.GuestMAC, hostnet.HostMAC, datagram(guestAddr, to, 80, p))[0]))
		})
		l.sends(false, "frame", "to everybody's card, to "+to, func(p string) [][]byte {
			return card(hostnet.GuestMAC, everybody, datagram(guestAddr, to, 80, p))
		})
		l.sends(false, "frame", "by a source route, to "+to, func(p string) [][]byte {
			return card(hostnet.GuestMAC, hostnet.HostMAC, sourceRoute(guestAddr, slotAddr, to, 80, p))
		})
		l.sends(false, "frame", "by the website and a source route, to "+to, func(p string) [][]byte {
			return card(hostnet.GuestMAC, hostnet.HostMAC, sourceRoute(guestAddr, website, to, 80, p))
		})
		l.sends(false, "packet", "in fragments, to "+to, func(p string) [][]byte { return fragments(guestAddr, to, 80, p) })
	}
	for _, port := range []uint16{25, 53, 853} {
		l.sends(false, "packet", fmt.Sprint("in fragments, to port ", port), func(p string) [][]byte { return fragments(guestAddr, website, port, p) })
	}
	for name, proto := range map[string]byte{"IPv4": unix.IPPROTO_IPIP, "IPv6": unix.IPPROTO_IPV6, "GRE": unix.IPPROTO_GRE, "ESP": unix.IPPROTO_ESP} {
		l.sends(false, "packet", name+" in IPv4", func(p string) [][]byte {
			return one(packet(guestAddr, website, proto, datagram(guestAddr, private, 80, p), -1))
		})
	}
	for _, kind := range []byte{0, 3, 5, 9, 11, 13, 17} { // an answer, errors, a redirect, a router, a clock, a mask: all but a request
		l.sends(false, "packet", fmt.Sprint("ICMP of the type ", kind), func(p string) [][]byte {
			m := append([]byte{kind, 0, 0, 0, 0x12, 0x34, 0, 1}, p...)
			return one(packet(guestAddr, website, unix.IPPROTO_ICMP, m, 2))
		})
	}
}

// sixth is IPv6, by the machine's kernel and past it.
func (l *tries) sixth(opened []string) {
	l.host(false, slotLinked+"%%card")
	l.host(false, "fd70:6164:6463:ffff::1")
	for i := len(l.list) - 6; i < len(l.list); i++ {
		l.list[i].alone = "it is the link's own"
	}
	for from, all := range map[string][]string{
		guestAddr6:           {website6, host6, gateway6, slotLinked, "fd70:6164:6463:ffff::1", "fd00:ec2::254", "ff02::1", "::ffff:" + website, "64:ff9b::" + website},
		"fe80::fc:ff:fe00:5": {website6, host6, slotLinked},
		"2a00:10::77":        {website6},
		host6:                {website6},
	} {
		for _, to := range all {
			for how, p := range map[string]func(from, to, payload string) []byte{
				"udp":  func(from, to, p string) []byte { return datagram(from, to, 80, p) },
				"tcp":  func(from, to, p string) []byte { return syn(from, to, 80, p) },
				"ping": pinging,
			} {
				open := from == guestAddr6 && slices.Contains(opened, to)
				l.sends(open, "frame", fmt.Sprintf("%s from %s to %s", how, from, to), func(payload string) [][]byte {
					return one(ether(hostnet.HostMAC, hostnet.GuestMAC, etherIPv6, p(from, to, payload)))
				})
			}
		}
	}
}

// neighbour is tried at its slot's address, at those that any slot may have, and past the machine's kernel at the card of its link. Nobody
// connects to a machine, nor does the host: that the neighbour would tell is shown by what it does tell.
func (l *tries) neighbour(n *neighbour) {
	before := len(l.list)
	l.host(false, n.slotEnd())
	for i := range 16 {
		if a := nthSlot(i); a != n.slotEnd() && a != n.hostEnd() {
			l.add("tcp", a, 80)
		}
	}
	l.host(false, slotAddr)
	l.add("tcp", slotAddr, 853)
	l.add("udp", "224.0.0.1", 80)
	l.add("udp", "255.255.255.255", 80)
	for i := before; i < len(l.list); i++ {
		l.list[i].alone = "a machine's, or this one's link"
	}
	for name, card := range map[string]string{"its slot's card": n.card, "the card of its link": n.link} {
		for _, to := range []string{n.slotEnd(), n.hostEnd(), guestAddr, hostToo} {
			l.sends(false, "frame", "by "+name+" to "+to, func(p string) [][]byte {
				return one(ether(card, hostnet.GuestMAC, etherIPv4, datagram(guestAddr, to, 80, p)))
			})
		}
	}
}

func nthSlot(i int) string { return netip.AddrFrom4([4]byte{100, 96, 0, byte(i)}).String() }

// attempt makes the tries that are given to it, and prints what came of each: "answers", "connects" where nothing more came, the kernel's
// word, or "nothing".
const attempt = `
import base64, errno, json, select, socket, sys, time

tries = json.loads(sys.argv[1])
cards = [name for _, name in socket.if_nameindex() if name != "lo"]
came, waiting, connecting = {}, {}, set()

def word(e):
    return errno.errorcode.get(e.errno, "no address" if isinstance(e, socket.gaierror) else str(e))

def begin(t):
    how, port = t["how"], t["port"]
    to = t["to"].replace("%card", cards[0] if cards else "card")
    data = [base64.b64decode(d) for d in t["data"] or []]
    if how == "write":
        with open(to, "wb", buffering=0) as f:
            f.write(data[0])
        return "done"
    if how == "linked":
        end = time.monotonic() + 10
        while cards and time.monotonic() < end:
            with open("/proc/net/if_inet6") as f: # the flag 0x40 is an address that is not to be used yet
                if any(l[:4] == "fe80" and l.split()[5] == cards[0] and not int(l.split()[4], 16) & 0x40 for l in f):
                    return "done"
            time.sleep(0.01)
        return "no address"
    if how == "name":
        return socket.gethostbyname(to)
    if how == "vsock":
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as s:
            s.settimeout(2)
            s.connect((int(to), port))
        return "connects"
    if how == "frame":
        if not cards:
            return "no card"
        for d in data:
            frames.sendto(d, (cards[0], 0))
        return "sent"
    if how == "packet":
        for d in data:
            packets.sendto(d, (to, 0))
        return "sent"
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    at = socket.getaddrinfo(to, port, family, socket.SOCK_DGRAM)[0][4]
    if how == "ping":
        s = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if ":" in to else socket.IPPROTO_ICMP)
    else:
        s = socket.socket(family, socket.SOCK_STREAM if how == "tcp" else socket.SOCK_DGRAM)
    s.setblocking(False)
    if how == "tcp":
        connecting.add(s)
        e = s.connect_ex(at)
        if e and e != errno.EINPROGRESS:
            raise OSError(e, "connect")
    else:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        s.connect(at)
        s.send(data[0])
    t["bytes"] = data[0]
    waiting[s] = t

def look(s, t):
    if s in connecting:
        e = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if e:
            return errno.errorcode[e]
        connecting.discard(s)
        t["connected"] = True
        s.sendall(t["bytes"])
        return None
    got = s.recv(65536)
    if t["how"] != "ping":
        return "answers" if got else "ends"
    v6 = s.family == socket.AF_INET6
    reply = got[0] == 129 if v6 else got[20] == 0 # behind an IPv4 header
    return "answers" if reply and t["bytes"][8:] in got else None

if any(t["how"] == "frame" for t in tries):
    frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    packets = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for t in tries:
    try:
        what = begin(t)
    except OSError as e:
        what = word(e)
    if what:
        came[t["name"]] = what
end = time.monotonic() + 30
while waiting and time.monotonic() < end:
    if not any(t["awaited"] for t in waiting.values()):
        end = min(end, time.monotonic() + 1) # for what nobody expects
    left = max(0, end - time.monotonic())
    readable, writable, _ = select.select([s for s in waiting if s not in connecting], [s for s in waiting if s in connecting], [], left)
    for s in readable + writable:
        try:
            what = look(s, waiting[s])
        except OSError as e:
            what = word(e)
        if what:
            came[waiting.pop(s)["name"]] = what
            connecting.discard(s)
            s.close()
for t in waiting.values():
    came[t["name"]] = "connects" if t.get("connected") else "nothing"
json.dump(came, sys.stdout)
`

// attempts runs the program that makes tries, by whom run says.
func attempts(t *testing.T, list []try, run func(args ...string) (stdout string)) map[string]string {
	t.Helper()
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	out := run("python3", "-c", attempt, string(b))
	var came map[string]string
	if err := json.Unmarshal([]byte(out), &came); err != nil {
		t.Fatalf("%v: %q", err, out)
	}
	return came
}

// judge is what has to come of a try in a machine; what may is more than a word where that is up to the kernel's.
func (t try) judge(came string, card bool) error {
	var want []string
	switch {
	case came == "":
		return errors.New("came to nothing at all")
	case (t.How == "write" || t.How == "linked") && card:
		want = []string{"done"}
	case t.How == "write", t.How == "linked", t.How == "name":
		return nil
	case t.How == "frame" && !card:
		want = []string{"no card"}
	case t.How == "packet" && !card:
		want = []string{"ENETUNREACH"}
	case t.How == "frame", t.How == "packet":
		return nil // whether it was sent is for the witness to say, and for some the machine's own kernel is in the way
	case t.open:
		want = []string{"answers"}
	case t.Sure && t.How == "tcp":
		want = []string{"ECONNREFUSED"}
	case t.Sure:
		want = []string{"EHOSTUNREACH"}
	case slices.Contains([]string{"answers", "connects", "ends"}, came):
		return errors.New(came)
	default:
		return nil
	}
	if !slices.Contains(want, came) {
		return fmt.Errorf("%s, want %s", came, want)
	}
	return nil
}
