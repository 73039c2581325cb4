package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// reaches is what a job of a network reaches of the internet, and what the names that it asks for are.
type reaches struct {
	name    string
	network jobs.Network
	opened  []string
	names   map[string]string
}

var everything = reaches{
	"internet", jobs.Network{Policy: "internet"}, []string{website, another, third, fourth},
	map[string]string{"site.example": website, "other.example": another, "trap.site.example": "no address"},
}

// TestReach: what machines with real network cards reach, and root in them does not. Nothing that is denied leaves a machine's slot, a witness
// on the host says, and one in the internet; what is not denied does. That the host itself is answered wherever it can ask shows that a
// denial is the policy's.
func TestReach(t *testing.T) {
	l := newLAN(t)
	l.reach(t,
		everything,
		reaches{
			"allowlist", jobs.Network{Policy: "allowlist", Allow: []string{website, "151.101.2.0/24"}}, []string{website, third},
			map[string]string{"site.example": "no address", "other.example": "no address"},
		},
		reaches{
			"domains", jobs.Network{Policy: "allowlist", Allow: []string{"site.example", "*.site.example"}}, []string{website},
			map[string]string{"site.example": website, "www.site.example": website, "trap.site.example": "no address", "other.example": "no address"},
		},
		reaches{"none", jobs.Network{}, nil, map[string]string{"site.example": "no address"}},
	)
	t.Run("a name that moves", func(t *testing.T) {
		out, errs, exit := l.run(t, "--allow", "moves.example", "--allow", "*.moves.example", "--", "python3", "-c", follow, third, fourth)
		want := strings.Join([]string{another, "answers", "denied", "denied", third, "answers", "denied", "still answers", ""}, "\n")
		if exit != 0 || out != want {
			t.Errorf("exit %d: %s\n%s\nwant\n%s", exit, errs, out, want)
		}
	})
	t.Run("none has no card", func(t *testing.T) {
		out, errs, exit := l.run(t, "--", "sh", "-c", "ls /sys/class/net; ls /sys/bus/virtio/drivers/virtio_net/ 2>/dev/null | grep virtio; true")
		if exit != 0 || out != "lo\n" {
			t.Errorf("exit %d, interfaces %q: %s", exit, out, errs)
		}
	})
	t.Run("what no policy gives", func(t *testing.T) {
		_, errs, exit := l.run(t, "--allow", private+"/32", "--", "true")
		if exit == 0 || !strings.Contains(errs, private) {
			t.Errorf("exit %d: %s", exit, errs)
		}
	})
}

// TestReachIPv6 is the same where the host offers IPv6, so that nothing but a job's policy is in its way.
func TestReachIPv6(t *testing.T) {
	newLAN(t, "--network-ipv6").reach(t,
		everything,
		reaches{
			"internet with IPv6", jobs.Network{Policy: "internet", IPv6: true}, []string{website, another, third, fourth, website6, gateway6},
			map[string]string{"site.example": website},
		},
	)
}

func (l *lan) reach(t *testing.T, networks ...reaches) {
	t.Helper()
	inside, outside := watch(t, l.host), watch(t, l.internet)
	n := l.neighbour(t, inside)
	echo(t, l.host, 80, append(l.addresses(), n.hostEnd())...)
	l.control(t, n, inside, outside)
	for _, network := range networks {
		t.Run(network.name, func(t *testing.T) {
			inside.told(t)
			outside.told(t)
			network.try(t, l, n, inside, outside)
		})
	}
	n.end(t)
}

// try has a machine make all the tries, and judges what came of them, and what the witnesses saw.
func (r reaches) try(t *testing.T, l *lan, n *neighbour, inside, outside *witness) {
	t.Helper()
	card := r.network.NIC()
	var list []try
	for name := range r.names {
		list = append(list, try{Name: name, How: "name", To: name})
	}
	list = append(list, reaching(r.name, l, n, r.opened...)...)
	leaves := map[string]bool{}
	for i := range list {
		try := &list[i]
		try.open = try.open && card
		try.Sure = card && try.Sure || try.open || try.How == "tcp" && card && !strings.Contains(try.To, ":")
		if try.open {
			leaves[try.Name] = true
		}
	}
	came := attempts(t, list, func(args ...string) string {
		return l.submit(t, jobs.Spec{
			Image: "python", Steps: []jobs.Step{{Cmd: args[0], Args: args[1:], User: "root"}}, Network: r.network,
			Limits: jobs.Limits{WallMS: 60_000, CPUMS: 60_000},
		})
	})
	vsock := map[string]bool{}
	for _, try := range list {
		if err := try.judge(came[try.Name], card); err != nil {
			t.Errorf("%s: %v", try.Name, err)
		}
		switch {
		case try.How == "name" && came[try.Name] != r.names[try.Name]:
			t.Errorf("%s is %s, want %s", try.Name, came[try.Name], r.names[try.Name])
		case try.How == "vsock":
			vsock[came[try.Name]] = true
		}
	}
	t.Logf("connections to the host's vsock: %q. ENODEV is a machine that has none, as with an emulated processor; nobody listens where it is ECONNRESET", slices.Sorted(maps.Keys(vsock)))
	for w, ours := range map[*witness]string{inside: "pdk", outside: "pd-down"} {
		saw := map[string]bool{}
		for _, s := range w.told(t) {
			if asks := s.run == "" && s.name != "" && strings.HasPrefix(s.card, ours); asks || s.run == r.name {
				saw[s.name] = true
			}
			if w == outside && s.card == ours && !ofTheHost(s.from) {
				t.Errorf("the internet saw a packet from %s: %q", s.from, s.name)
			}
		}
		if diff := cmp.Diff(leaves, saw); diff != "" {
			t.Errorf("what came into %s (-want +got):\n%s", w.netns, diff)
		}
	}
}

// ofTheHost tells whether a packet on the uplink is the host's own: its addresses', its link's.
func ofTheHost(from string) bool {
	return from == "" || from == hostAddr || from == hostToo || from == host6 || from == "::" || strings.HasPrefix(from, "fe80::")
}

// submit runs a job for the host, and gives what it printed.
func (l *lan) submit(t *testing.T, spec jobs.Spec) string {
	t.Helper()
	bin, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "ip", "netns", "exec", l.host, bin, "submit", "--nats", l.paddock.URL, "--wait", "-f", "-")
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s %s", err, out, stderrOf(err))
	}
	return string(out)
}

func stderrOf(err error) []byte {
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.Stderr
	}
	return nil
}

// control has the host itself make the tries: all are answered.
func (l *lan) control(t *testing.T, n *neighbour, inside, outside *witness) {
	t.Helper()
	list := slices.DeleteFunc(reaching("control", l, n), func(t try) bool { return t.alone != "" || t.How == "write" || t.How == "linked" })
	for i := range list {
		list[i].Sure = true
	}
	came := attempts(t, list, func(args ...string) string {
		out, err := exec.Command("ip", append([]string{"netns", "exec", l.host}, args...)...).Output()
		if err != nil {
			t.Fatalf("%v: %s", err, stderrOf(err))
		}
		return string(out)
	})
	for _, try := range list {
		if came[try.Name] != "answers" {
			t.Errorf("the host itself: %s: %s", try.Name, came[try.Name])
		}
	}
	// What is put together here is such that who gets it answers, if it is not kept off.
	here, there := cardOf(t, l.host, "pd-up"), cardOf(t, l.internet, "pd-down")
	for name, send := range map[string]func(payload string) []byte{
		"UDP":          func(p string) []byte { return ether(there, here, etherIPv4, datagram(hostAddr, website, 80, p)) },
		"UDP over six": func(p string) []byte { return ether(there, here, etherIPv6, datagram(host6, website6, 80, p)) },
		"a ping":       func(p string) []byte { return ether(there, here, etherIPv4, pinging(hostAddr, website, p)) },
		"a sixth ping": func(p string) []byte { return ether(there, here, etherIPv6, pinging(host6, website6, p)) },
		"a priority": func(p string) []byte {
			return tagged(ether(there, here, etherIPv4, datagram(hostAddr, website, 80, p)))
		},
	} {
		inject(t, l.host, "pd-up", send(token("control", name)))
		outside.saw(t, "pd-down", "control", name)
		inside.saw(t, "pd-up", "control", name)
	}
	for _, f := range fragments(hostAddr, website, 80, token("control", "fragments")) {
		inject(t, l.host, "pd-up", ether(there, here, etherIPv4, f))
	}
	inside.saw(t, "pd-up", "control", "fragments")
}

// addresses are those that the host has, but the links' own, and those of links to slots, which come and go.
func (l *lan) addresses() (list []string) {
	_ = harness.InNetns(l.host, func() error {
		cards, err := net.Interfaces()
		for _, c := range cards {
			addrs, _ := c.Addrs()
			for _, a := range addrs {
				if p := netip.MustParsePrefix(a.String()); !p.Addr().IsLinkLocalUnicast() && !strings.HasPrefix(c.Name, "pdk") {
					list = append(list, p.Addr().String())
				}
			}
		}
		return err
	})
	return list
}

func cardOf(t *testing.T, netns, name string) (card string) {
	t.Helper()
	err := harness.InNetns(netns, func() error {
		c, err := net.InterfaceByName(name)
		if err == nil {
			card = c.HardwareAddr.String()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return card
}

// follow asks for a name before and after it has moved. What stood stays; a new one goes where the name is now, and nowhere that it never was.
const follow = `
import socket, sys

def connect(to):
    return socket.create_connection((to, 80), timeout=30)

def answers(s):
    s.sendall(b"hello")
    return "answers" if s.recv(5) == b"hello" else "says nothing"

def never(to):
    try:
        connect(to).close()
        print("reached")
    except OSError:
        print("denied")

old = socket.gethostbyname("moves.example")
print(old)
kept = connect(old)
print(answers(kept))
for at in sys.argv[1:]:
    never(at)
socket.gethostbyname("turn.moves.example")
new = socket.gethostbyname("moves.example")
print(new)
print(answers(connect(new)))
never(sys.argv[2])
print("still", answers(kept))
`
