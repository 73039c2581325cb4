package e2e

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/test/harness"
)

// neighbour is a machine that listens, and tells whom it heard.
type neighbour struct {
	host       string // the network namespace
	cmd        *exec.Cmd
	out        bytes.Buffer
	at         string // where the host has its port 80
	slot       int
	link, card string // the hardware addresses of the host's end of its slot's link, and of the slot's
}

func (n *neighbour) hostEnd() string { return nthSlot(2 * n.slot) }
func (n *neighbour) slotEnd() string { return nthSlot(2*n.slot + 1) }

const listening = `
import select, socket, sys
tcp = socket.create_server(("", 80))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("", 80))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(60)
    s.connect((sys.argv[1], 80))
    s.send(sys.argv[2].encode())
    s.recv(100)
    s.sendto(b"control", ("169.254.0.2", 80))
print("listening", file=sys.stderr)
heard = ""
while heard != "end":
    for s in select.select([tcp, udp], [], [])[0]:
        if s is udp:
            heard = s.recv(1000).decode()
            print("udp", heard)
            continue
        with s.accept()[0] as c:
            heard = c.recv(1000).decode()
            c.sendall(heard.encode())
            print("tcp", heard)
`

// neighbour starts one. Which slot it has, the witness on the host sees.
func (l *lan) neighbour(t *testing.T, inside *witness) *neighbour {
	t.Helper()
	bin, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	n := &neighbour{host: l.host}
	n.cmd = exec.CommandContext(t.Context(), "ip", "netns", "exec", l.host, bin, "run", "--nats", l.paddock.URL, "--image", "python", "--network", "internet", "--port", "80",
		"--time", "10m", "--user", "root", "--", "python3", "-u", "-c", listening, website, token("neighbour", "hello"))
	n.cmd.Stdout = &n.out
	n.cmd.Cancel = func() error { return n.cmd.Process.Signal(os.Interrupt) } // that ends the job too
	n.cmd.WaitDelay = time.Minute
	errs, err := n.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.cmd.Wait() }) // where end has not
	told := regexp.MustCompile(`port 80 is at (127\.0\.0\.1:\d+)`)
	var said bytes.Buffer
	for !told.Match(said.Bytes()) || !strings.Contains(said.String(), "listening") {
		b := make([]byte, 4096)
		k, err := errs.Read(b)
		if err != nil {
			t.Fatalf("%v: %s", err, said.String())
		}
		said.Write(b[:k])
	}
	n.at = told.FindStringSubmatch(said.String())[1]
	for _, s := range inside.told(t) {
		if s.run == "neighbour" && strings.HasPrefix(s.card, "pdk") {
			if n.slot, err = strconv.Atoi(s.card[len("pdk"):]); err != nil {
				t.Fatal(err)
			}
			n.link = cardOf(t, l.host, s.card)
		}
	}
	out, err := exec.Command("ip", "-n", l.host, "neigh", "show", n.slotEnd()).Output()
	m := regexp.MustCompile(`lladdr (\S+)`).FindSubmatch(out)
	if n.link == "" || err != nil || m == nil {
		t.Fatalf("no slot is the neighbour's: %v %q", err, out)
	}
	n.card = string(m[1])
	n.say(t, "control")
	return n
}

// say connects to the neighbour by the host's port, and waits until it has heard.
func (n *neighbour) say(t *testing.T, what string) {
	t.Helper()
	var got []byte
	err := harness.InNetns(n.host, func() error {
		c, err := net.DialTimeout("tcp", n.at, time.Minute)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err = c.Write([]byte(what)); err == nil {
			got, err = io.ReadAll(c)
		}
		return err
	})
	if err != nil || string(got) != what {
		t.Fatalf("the neighbour: %q, %v", got, err)
	}
}

// end holds that the neighbour heard nobody else.
func (n *neighbour) end(t *testing.T) {
	t.Helper()
	n.say(t, "end")
	if err := n.cmd.Wait(); err != nil {
		t.Errorf("the neighbour: %v", err)
	}
	heard := slices.Sorted(strings.Lines(n.out.String()))
	if diff := cmp.Diff([]string{"tcp control\n", "tcp end\n", "udp control\n"}, heard); diff != "" {
		t.Errorf("what the neighbour heard (-want +got):\n%s", diff)
	}
}
