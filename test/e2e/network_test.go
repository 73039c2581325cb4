package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// lan is a host of the test's own and an internet that it is connected to: two network namespaces. Paddock runs on the host.
type lan struct {
	host, internet string
	paddock        *harness.Paddock
	turned         atomic.Bool // moves.example has moved
}

const (
	website  = "93.184.216.34" // what the internet has
	another  = "151.101.1.69"
	third    = "151.101.2.69"
	fourth   = "151.101.3.69"
	website6 = "2606:2800:220:1::1"
	private  = "10.9.9.9" // and what no machine shall reach of it
	metadata = "169.254.169.254"
	gateway  = "203.0.113.1"
	gateway6 = "2a00:10::1"
	hostAddr = "203.0.113.2"
	host6    = "2a00:10::2"
	hostToo  = "45.10.0.2" // among the public ones, where only the host's own rule keeps machines out
)

// elsewhere are further addresses that the internet here has and no machine shall reach: of each private range, and where clouds give out credentials.
var elsewhere = []string{"172.16.9.9", "192.168.9.9", "100.64.9.9", "198.18.9.9", "240.9.9.9", "100.100.100.200", "192.0.0.192", "168.63.129.16"}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func newLAN(t *testing.T, args ...string) *lan {
	t.Helper()
	needMachines(t)
	needRoot(t)
	l := &lan{host: fmt.Sprintf("pd-host-%d", os.Getpid()), internet: fmt.Sprintf("pd-net-%d", os.Getpid())}
	for _, ns := range []string{l.host, l.internet} {
		ip(t, "netns", "add", ns)
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join("/run/netns", ns), &st); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = os.RemoveAll(fmt.Sprintf("/run/paddock/net/%d", st.Ino)) // what workers in it have agreed by, while the number is its own
			ip(t, "netns", "del", ns)
		})
		ip(t, "-n", ns, "link", "set", "lo", "up")
	}
	ip(t, "link", "add", "pd-up", "netns", l.host, "type", "veth", "peer", "name", "pd-down", "netns", l.internet)
	all := append([]string{website, another, third, fourth, private, metadata}, elsewhere...)
	for _, a := range all {
		ip(t, "-n", l.internet, "addr", "add", a+"/32", "dev", "lo")
	}
	ip(t, "-n", l.internet, "addr", "add", website6+"/128", "dev", "lo", "nodad")
	ip(t, "-n", l.internet, "addr", "add", gateway+"/24", "dev", "pd-down")
	ip(t, "-n", l.internet, "addr", "add", gateway6+"/64", "dev", "pd-down", "nodad")
	for _, a := range []string{hostAddr + "/24", hostToo + "/32"} {
		ip(t, "-n", l.host, "addr", "add", a, "dev", "pd-up")
	}
	ip(t, "-n", l.host, "addr", "add", host6+"/64", "dev", "pd-up", "nodad")
	ip(t, "-n", l.internet, "link", "set", "pd-down", "up")
	ip(t, "-n", l.host, "link", "set", "pd-up", "up")
	ip(t, "-n", l.host, "route", "add", "default", "via", gateway)
	ip(t, "-n", l.host, "-6", "route", "add", "default", "via", gateway6)
	all = append(all, website6, gateway6, gateway)
	for _, port := range []int{25, 53, 80, 853} {
		at := all
		if port == 53 {
			at = all[:len(all)-1] // the gateway's is the one that names answers
		}
		echo(t, l.internet, port, at...)
	}
	l.names(t)
	args = append([]string{"--images", "python", "--network", "on", "--network-dns", gateway, "--ready", "1"}, args...)
	l.paddock = start(t, harness.Options{Netns: l.host, Args: args})
	return l
}

// echo answers on a port with what it is sent: TCP at all addresses of a namespace, UDP at those that are named.
func echo(t *testing.T, netns string, port int, addrs ...string) {
	t.Helper()
	var open []net.PacketConn
	var listener net.Listener
	err := harness.InNetns(netns, func() (err error) {
		if listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err != nil {
			return err
		}
		for _, a := range addrs {
			c, err := net.ListenPacket("udp", net.JoinHostPort(a, strconv.Itoa(port)))
			if err != nil {
				return err
			}
			open = append(open, c)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var ended sync.WaitGroup
	ended.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			ended.Go(func() {
				defer c.Close()
				defer context.AfterFunc(t.Context(), func() { c.Close() })()
				_, _ = io.Copy(c, c)
			})
		}
	})
	for _, c := range open {
		ended.Go(func() {
			b := make([]byte, 2048)
			for {
				n, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(b[:n], from)
			}
		})
	}
	t.Cleanup(func() {
		listener.Close()
		for _, c := range open {
			c.Close()
		}
		ended.Wait()
	})
}

// names is the internet's DNS: site.example and what is below it are the website, everything else is another one. trap.site.example leads
// where no machine may go. moves.example is another one until somebody asks for turn.moves.example, and then a third.
func (l *lan) names(t *testing.T) {
	t.Helper()
	var conn net.PacketConn
	err := harness.InNetns(l.internet, func() (err error) {
		conn, err = net.ListenPacket("udp", gateway+":53")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	started, ended := make(chan struct{}), make(chan struct{})
	s := &dns.Server{PacketConn: conn, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		answer := new(dns.Msg).SetReply(q)
		if asked := q.Question[0]; asked.Qtype == dns.TypeA {
			for _, at := range l.addressesOf(strings.ToLower(asked.Name)) {
				answer.Answer = append(answer.Answer, &dns.A{Hdr: dns.RR_Header{Name: asked.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(at)})
			}
		}
		_ = w.WriteMsg(answer)
	})}
	go func() {
		defer close(ended)
		_ = s.ActivateAndServe()
	}()
	<-started
	t.Cleanup(func() { _ = s.Shutdown(); <-ended })
}

func (l *lan) addressesOf(name string) []string {
	switch {
	case name == "trap.site.example.":
		return []string{private, metadata, hostAddr, hostToo}
	case dns.IsSubDomain("site.example.", name):
		return []string{website}
	case name == "turn.moves.example.":
		l.turned.Store(true)
	case name == "moves.example." && l.turned.Load():
		return []string{third}
	}
	return []string{another}
}

// run is `paddock run` on the host.
func (l *lan) run(t *testing.T, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	bin, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", l.host, bin, "run", "--nats", l.paddock.URL, "--image", "python"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if failed := (*exec.ExitError)(nil); err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// TestPorts: a server in a machine is reached on the worker's host, over TCP and through the proxy, with a network card and without, and no
// longer than the job runs; and where it is can be asked for as long.
func TestPorts(t *testing.T) {
	l := newLAN(t)
	told := regexp.MustCompile(`port 8080 is at (127\.0\.0\.1:\d+) and (http://8080-(\S+)\.localhost:(\d+)) on`)
	for _, network := range []string{"none", "internet"} {
		t.Run(network, func(t *testing.T) {
			bin, err := harness.Binary()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute) // a template may have to be built first
			defer cancel()
			cmd := exec.CommandContext(ctx, "ip", "netns", "exec", l.host, bin, "run", "--nats", l.paddock.URL, "--image", "python", "--network", network, "--port", "8080",
				"--time", "10m", "--", "python3", "-u", "-c", serveUntilTold)
			errs, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			end, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var said bytes.Buffer
			for !told.Match(said.Bytes()) || !strings.Contains(said.String(), "listening") {
				b := make([]byte, 4096)
				n, err := errs.Read(b)
				if err != nil {
					t.Fatalf("%v: %s", err, said.String())
				}
				said.Write(b[:n])
			}
			m := told.FindStringSubmatch(said.String())
			at, url, job, proxy := m[1], m[2], m[3], "127.0.0.1:"+m[4]
			host := strings.TrimPrefix(url, "http://")
			fetched := func(at, host string) string {
				out, err := exec.CommandContext(ctx, "ip", "netns", "exec", l.host, "python3", "-c", fetch, at, host).CombinedOutput()
				if err != nil {
					return fmt.Sprintf("%v: %s", err, out)
				}
				return string(out)
			}
			for _, c := range []struct{ at, host, want string }{
				{at, at, "200 from inside for " + at},
				{proxy, host, "200 from inside for " + host},
				{proxy, "9" + host[1:], "404 paddock: the job's spec does not list port 9080"},
				{proxy, proxy, "404 paddock: nothing is here"},
			} {
				if got := fetched(c.at, c.host); !strings.HasPrefix(got, c.want) {
					t.Errorf("%s, asked for %s: %s, want %s", c.at, c.host, got, c.want)
				}
			}
			want := []jobs.Port{{Guest: 8080, Host: at, URL: url}}
			if diff := cmp.Diff(want, l.ports(t, job)); diff != "" {
				t.Errorf("paddock ports:\n%s", diff)
			}
			if err := end.Close(); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("the job: %v", err)
			}
			if got := fetched(at, at); !strings.Contains(got, "refused") {
				t.Errorf("after the job's end %s: %s", at, got)
			}
			if got := fetched(proxy, host); !strings.HasPrefix(got, "404 paddock: job "+job+" has no ports here") {
				t.Errorf("after the job's end %s: %s", url, got)
			}
			if diff := cmp.Diff([]jobs.Port{}, l.ports(t, job)); diff != "" {
				t.Errorf("after the job's end paddock ports:\n%s", diff)
			}
		})
	}
}

// ports is what `paddock ports` lists.
func (l *lan) ports(t *testing.T, job string) (ports []jobs.Port) {
	t.Helper()
	bin, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "ip", "netns", "exec", l.host, bin, "ports", "--nats", l.paddock.URL, "-o", "json", job).Output()
	if err == nil {
		err = json.Unmarshal(out, &ports)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return ports
}

const serveUntilTold = `
import http.server, os, sys, threading
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"from inside for " + self.headers["Host"].encode())
s = http.server.ThreadingHTTPServer(("127.0.0.1", 8080), H)
threading.Thread(target=s.serve_forever, daemon=True).start()
print("listening", file=sys.stderr)
sys.stdin.read()
os._exit(0)
`

const fetch = `
import http.client, sys
c = http.client.HTTPConnection(sys.argv[1], timeout=60)
c.request("GET", "/", headers={"Host": sys.argv[2]})
r = c.getresponse()
print(r.status, r.read().decode())
`
