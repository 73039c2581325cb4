package qemu_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/test/harness"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// agentBoot is a machine of the base image with the agent of this source.
func agentBoot(t testing.TB) vmm.Boot {
	t.Helper()
	need(t)
	img, err := harness.Image(t.Context(), "base")
	if err != nil {
		if os.Getenv("REQUIRE_QEMU") != "" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: %v: no machine is tested here (make test builds it)", err)
	}
	return vmmtest.Agent(t, img.Kernel, img.Initrd, img.Root, img.Scratch)
}

// agentOf greets a machine's agent.
func agentOf(t testing.TB, m vmm.Machine) *client.Client {
	t.Helper()
	conn, err := m.DialGuest(within(t))
	must(t, err)
	c, err := client.Connect(within(t), conn)
	if err != nil {
		t.Fatalf("%v; console:\n%s", err, m.Console())
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// agentTemplate boots a machine with an agent and snapshots it.
func agentTemplate(t testing.TB, d *qemu.Driver, boot vmm.Boot, a vmm.Attach) vmm.Template {
	t.Helper()
	m, err := d.Boot(within(t), boot, a)
	must(t, err)
	defer m.Close()
	c := agentOf(t, m)
	must(t, c.Quiesce(within(t)))
	must(t, c.Close())
	time.Sleep(300 * time.Millisecond) // as images.Host does: the guest goes idle
	template, err := m.Snapshot(within(t), t.TempDir())
	must(t, err)
	return template
}

// agentClone clones a template and makes the clone a machine of its own.
func agentClone(t testing.TB, d *qemu.Driver, template vmm.Template, a vmm.Attach, n *wire.Network) (vmm.Machine, *client.Client) {
	t.Helper()
	p, err := d.Prepare(within(t), template, a)
	must(t, err)
	m, err := p.Restore(within(t))
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of %s:\n%s", m.ID(), m.Console())
		}
		must(t, m.Close())
	})
	c := agentOf(t, m)
	random := make([]byte, 96)
	_, _ = rand.Read(random)
	ready, err := c.Restore(within(t), wire.Restore{
		Epoch: random[:16], Entropy: random[16:80], MachineID: hex.EncodeToString(random[80:]),
		TimeUnixNS: time.Now().UnixNano(), Hostname: m.ID(), Scratch: true, Network: n,
	})
	if err != nil {
		t.Fatalf("restore: %v; console:\n%s", err, m.Console())
	}
	t.Logf("restored: %v", ready.StepMS)
	return m, c
}

// inGuest runs a command line and gives what it printed.
func inGuest(t testing.TB, c *client.Client, line string) string {
	t.Helper()
	var out bytes.Buffer
	exit, err := c.Exec(within(t), wire.Exec{
		ID: "test", Argv: []string{"/bin/bash", "-c", line}, Env: []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin"}, User: "root",
	}, client.Streams{Stdout: &out, Stderr: &out})
	must(t, err)
	if exit.Code != 0 {
		t.Errorf("%s: %d, %s", line, exit.Code, out.String())
	}
	return strings.TrimSpace(out.String())
}

// TestAgentNetwork has two clones with the same addresses on wires of their own, each with a host at its other end.
func TestAgentNetwork(t *testing.T) {
	for _, channel := range channels(t) {
		t.Run(channel, func(t *testing.T) { agentNetwork(t, newDriver(t, qemu.Config{Channel: channel})) })
	}
}

func agentNetwork(t *testing.T, d *qemu.Driver) {
	boot := agentBoot(t)
	boot.NIC = true
	template := agentTemplate(t, d, boot, vmmtest.NewWire(t).Attach())
	network := wire.Network{
		Address: "169.254.100.2/30", Gateway: "169.254.100.1", GatewayMAC: "02:fc:00:00:00:01", DNS: []string{"169.254.100.1", "fd00::53"}, MTU: 1400,
	}
	for i := range 2 {
		w := vmmtest.NewWire(t)
		_, c := agentClone(t, d, template, w.Attach(), &network)
		if got := inGuest(t, c, "cat /etc/resolv.conf"); got != "nameserver 169.254.100.1\nnameserver fd00::53" {
			t.Errorf("resolv.conf: %q", got)
		}
		if got := inGuest(t, c, "cat /sys/class/net/e*/mtu /proc/sys/net/ipv6/conf/e*/disable_ipv6"); got != "1400\n1" {
			t.Errorf("mtu and IPv6: %q", got)
		}
		if got := inGuest(t, c, "grep -c . /proc/net/if_inet6"); got != "1" {
			t.Errorf("%s addresses of IPv6, want loopback's", got)
		}
		// A datagram to anywhere goes to the gateway, and nothing asks where that is.
		payload := fmt.Sprintf("datagram %d", i)
		inGuest(t, c, "echo -n '"+payload+"' > /dev/udp/198.51.100.7/4242")
		frame, err := w.Receive(time.Minute)
		must(t, err)
		if !bytes.HasSuffix(frame, []byte(payload)) || !bytes.HasPrefix(frame, []byte{2, 0xfc, 0, 0, 0, 1}) ||
			!bytes.Equal(frame[26:34], []byte{169, 254, 100, 2, 198, 51, 100, 7}) {
			t.Errorf("frame %x", frame)
		}
	}
	t.Run("with IPv6", func(t *testing.T) {
		six := network
		six.Address6, six.Gateway6 = "fd00:fc::2/64", "fd00:fc::1"
		w := vmmtest.NewWire(t)
		_, c := agentClone(t, d, template, w.Attach(), &six)
		inGuest(t, c, "echo -n six > /dev/udp/2001:db8::7/4242")
		for {
			frame, err := w.Receive(time.Minute)
			must(t, err)
			if bytes.HasSuffix(frame, []byte("six")) && bytes.HasPrefix(frame, []byte{2, 0xfc, 0, 0, 0, 1}) {
				break // what else there is, its kernel says of itself: group memberships
			}
		}
	})
	t.Run("malformed", func(t *testing.T) {
		p, err := d.Prepare(within(t), template, vmmtest.NewWire(t).Attach())
		must(t, err)
		m, err := p.Restore(within(t))
		must(t, err)
		defer m.Close()
		_, err = agentOf(t, m).Restore(within(t), wire.Restore{
			Epoch: make([]byte, 16), Entropy: make([]byte, 64), TimeUnixNS: time.Now().UnixNano(), MachineID: "x", Hostname: "x", Scratch: true,
			Network: &wire.Network{Address: "x"},
		})
		if e, ok := errors.AsType[*wire.Error](err); !ok {
			t.Errorf("error %v", err)
		} else if !strings.Contains(e.Message, "address") {
			t.Errorf("error %v", e)
		}
	})
}

// TestAgentWithoutCard shows that a machine without a card has no network but loopback, and that the host reaches a port in it all the same.
func TestAgentWithoutCard(t *testing.T) {
	for _, channel := range channels(t) {
		t.Run(channel, func(t *testing.T) { agentWithoutCard(t, newDriver(t, qemu.Config{Channel: channel})) })
	}
}

func agentWithoutCard(t *testing.T, d *qemu.Driver) {
	template := agentTemplate(t, d, agentBoot(t), vmm.Attach{})
	_, c := agentClone(t, d, template, vmm.Attach{}, nil)
	if got := inGuest(t, c, "ls /sys/class/net; cat /proc/net/route | wc -l"); got != "lo\n1" {
		t.Errorf("network devices and lines of routes: %q", got)
	}
	if conn, err := c.Dial(within(t), 8080); err == nil {
		conn.Close()
		t.Error("dialled a port where nobody listens")
	} else if e, ok := errors.AsType[*wire.Error](err); !ok || e.Kind != wire.ErrRefused {
		t.Errorf("error %v", err)
	}
	ctx, stop := context.WithCancel(within(t))
	served := make(chan struct{})
	go func() { // an echo server that takes one connection
		defer close(served)
		_, _ = c.Exec(ctx, wire.Exec{ID: "server", Argv: []string{"/usr/bin/gawk", `BEGIN {
			s = "/inet/tcp/8080/0/0"
			while ((s |& getline line) > 0) print "got " line |& s
			close(s)
		}`}, Env: []string{"PATH=/usr/bin:/bin"}, User: "sandbox"}, client.Streams{})
	}()
	defer func() { <-served }()
	defer stop()
	conn := dialWhenUp(t, c, 8080)
	defer conn.Close()
	_, err := io.WriteString(conn, "a line\nanother\n")
	must(t, err)
	must(t, conn.(interface{ CloseWrite() error }).CloseWrite())
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "got a line\ngot another\n" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestAgentClock has machines whose clocks are wrong, as after days in a pool, or when the host's was set: the program that the time is sent with has
// the right one from its beginning.
func TestAgentClock(t *testing.T) {
	d := newDriver(t, qemu.Config{Channel: "serial"})
	_, c := agentClone(t, d, agentTemplate(t, d, agentBoot(t), vmm.Attach{}), vmm.Attach{}, nil)
	for _, wrong := range []string{"-3 days", "-2 seconds", "+1 hour"} {
		inGuest(t, c, "date -s '"+wrong+"'")
		if got, now := guestTime(t, c, time.Time{}), time.Now(); got.Sub(now).Abs() < time.Second {
			t.Errorf("%s: it was set right unasked", wrong)
		}
		before := time.Now()
		got := guestTime(t, c, before)
		if after := time.Now(); got.Before(before) || got.After(after.Add(time.Second)) {
			t.Errorf("%s: the guest's clock said %s between %s and %s of the host's", wrong, got, before, after)
		}
	}
}

// guestTime is what a program says that is sent with the time; the zero time is none.
func guestTime(t *testing.T, c *client.Client, now time.Time) time.Time {
	t.Helper()
	e := wire.Exec{ID: "time", Argv: []string{"/bin/date", "+%s%N"}, User: "sandbox"}
	if !now.IsZero() {
		e.TimeUnixNS = now.UnixNano()
	}
	var out bytes.Buffer
	_, err := c.Exec(within(t), e, client.Streams{Stdout: &out})
	must(t, err)
	ns, err := strconv.ParseInt(strings.TrimSpace(out.String()), 10, 64)
	must(t, err)
	return time.Unix(0, ns)
}

// dialWhenUp dials until the program listens.
func dialWhenUp(t testing.TB, c *client.Client, port int) net.Conn {
	t.Helper()
	for ctx := within(t); ; time.Sleep(50 * time.Millisecond) {
		conn, err := c.Dial(ctx, port)
		if e, ok := errors.AsType[*wire.Error](err); ok && e.Kind == wire.ErrRefused {
			continue
		}
		must(t, err)
		return conn
	}
}
