package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
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
}

const (
	website  = "93.184.216.34" // what the internet has
	another  = "151.101.1.69"
	private  = "10.9.9.9" // and what no machine shall reach of it
	metadata = "169.254.169.254"
	gateway  = "203.0.113.1"
	hostAddr = "203.0.113.2"
)

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func newLAN(t *testing.T) *lan {
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
			ip(t, "netns", "del", ns)
			_ = os.RemoveAll(fmt.Sprintf("/run/paddock/net/%d", st.Ino)) // what workers in it have agreed by
		})
		ip(t, "-n", ns, "link", "set", "lo", "up")
	}
	ip(t, "link", "add", "pd-up", "netns", l.host, "type", "veth", "peer", "name", "pd-down", "netns", l.internet)
	for _, a := range []string{website + "/32", another + "/32", private + "/32", metadata + "/32"} {
		ip(t, "-n", l.internet, "addr", "add", a, "dev", "lo")
	}
	ip(t, "-n", l.internet, "addr", "add", gateway+"/24", "dev", "pd-down")
	ip(t, "-n", l.host, "addr", "add", hostAddr+"/24", "dev", "pd-up")
	ip(t, "-n", l.internet, "link", "set", "pd-down", "up")
	ip(t, "-n", l.host, "link", "set", "pd-up", "up")
	ip(t, "-n", l.host, "route", "add", "default", "via", gateway)
	l.serve(t)
	l.names(t)
	l.paddock = start(t, harness.Options{Netns: l.host, Args: []string{"--images", "python", "--network", "on", "--network-dns", gateway, "--ready", "1"}})
	return l
}

// serve answers HTTP on port 80 of every address of the internet.
func (l *lan) serve(t *testing.T) {
	t.Helper()
	ready := make(chan error, 1)
	server := &http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "the internet sees", r.RemoteAddr) }),
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		listener, err := listenIn(l.internet, ":80")
		ready <- err
		if err == nil {
			_ = server.Serve(listener)
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close(); <-ended })
}

// names is the internet's DNS: site.example and what is below it are the website, everything else is the other one.
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
			at := another
			if dns.IsSubDomain("site.example.", asked.Name) {
				at = website
			}
			answer.Answer = append(answer.Answer, &dns.A{Hdr: dns.RR_Header{Name: asked.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(at)})
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

// reach is a program that tries to connect to each of its arguments, address:port, and prints what came of it.
const reach = `
import socket, sys
for where in sys.argv[1:]:
    host, port = where.rsplit(":", 1)
    try:
        s = socket.create_connection((host, int(port)), timeout=5)
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        print(where, "answers" if s.recv(16).startswith(b"HTTP/1.0 200") else "says nothing")
    except OSError as e:
        print(where, "denied")
`

// TestNetworkPolicies: what machines with real network cards reach. That the website and the private address answer the host itself shows
// that a denial is the policy's.
func TestNetworkPolicies(t *testing.T) {
	l := newLAN(t)
	for _, at := range []string{website, private} {
		if out, err := exec.Command("ip", "netns", "exec", l.host, "python3", "-c", reach, at+":80").Output(); err != nil || !strings.Contains(string(out), "answers") {
			t.Fatalf("the host itself: %s %v", out, err)
		}
	}
	nats := strings.TrimPrefix(l.paddock.URL, "nats://127.0.0.1:")
	never := []string{private + ":80", metadata + ":80", hostAddr + ":" + nats, website + ":25", "169.254.0.1:22", "127.0.0.1:" + nats}
	for _, c := range []struct {
		name   string
		flags  []string
		opened []string
		denied []string
	}{
		{"internet", []string{"--network", "internet"}, []string{website + ":80", another + ":80"}, never},
		{"allowlist", []string{"--allow", website + "/32"}, []string{website + ":80"}, append([]string{another + ":80"}, never...)},
		{
			"domains", []string{"--allow", "site.example", "--allow", "*.site.example"}, []string{"site.example:80", "www.site.example:80"},
			append([]string{"other.example:80", another + ":80"}, never...),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append(append([]string{}, c.flags...), "--", "python3", "-c", reach)
			out, errs, exit := l.run(t, append(append(args, c.opened...), c.denied...)...)
			if exit != 0 {
				t.Fatalf("exit %d: %s", exit, errs)
			}
			var want strings.Builder
			for _, at := range c.opened {
				fmt.Fprintln(&want, at, "answers")
			}
			for _, at := range c.denied {
				fmt.Fprintln(&want, at, "denied")
			}
			if out != want.String() {
				t.Errorf("printed\n%s\nwant\n%s", out, want.String())
			}
		})
	}
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
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "ip", "netns", "exec", l.host, bin, "run", "--nats", l.paddock.URL, "--image", "python", "--network", network, "--port", "8080",
				"--", "python3", "-u", "-c", serveUntilTold)
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
c = http.client.HTTPConnection(sys.argv[1], timeout=10)
c.request("GET", "/", headers={"Host": sys.argv[2]})
r = c.getresponse()
print(r.status, r.read().decode())
`

func listenIn(netns, at string) (l net.Listener, err error) {
	err = harness.InNetns(netns, func() error {
		l, err = net.Listen("tcp", at)
		return err
	})
	return l, err
}
