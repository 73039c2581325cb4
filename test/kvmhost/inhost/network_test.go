package inhost_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

// site is two network namespaces of the test's own: Paddock's host, and an internet that it is connected to.
type site struct{ host, internet string }

const (
	website = "93.184.216.34" // what the internet has
	another = "151.101.1.69"
	private = "10.9.9.9"    // and what no machine shall reach of it
	gateway = "203.0.113.1" // the internet's, to the host
	here    = "203.0.113.2" // the host's
)

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func newSite(t *testing.T) site {
	t.Helper()
	s := site{fmt.Sprintf("pd-host-%d", os.Getpid()), fmt.Sprintf("pd-net-%d", os.Getpid())}
	for _, ns := range []string{s.host, s.internet} {
		ip(t, "netns", "add", ns)
		var st unix.Stat_t
		if err := unix.Stat(path(ns), &st); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ip(t, "netns", "del", ns)
			_ = os.RemoveAll(fmt.Sprintf("/run/paddock/net/%d", st.Ino)) // what workers in it have agreed by
		})
		ip(t, "-n", ns, "link", "set", "lo", "up")
	}
	ip(t, "link", "add", "pd-up", "netns", s.host, "type", "veth", "peer", "name", "pd-down", "netns", s.internet)
	for _, a := range []string{website, another, private} {
		ip(t, "-n", s.internet, "addr", "add", a+"/32", "dev", "lo")
	}
	ip(t, "-n", s.internet, "addr", "add", gateway+"/24", "dev", "pd-down")
	ip(t, "-n", s.host, "addr", "add", here+"/24", "dev", "pd-up")
	ip(t, "-n", s.internet, "link", "set", "pd-down", "up")
	ip(t, "-n", s.host, "link", "set", "pd-up", "up")
	ip(t, "-n", s.host, "route", "add", "default", "via", gateway)
	serve(t, s.internet)
	serve(t, s.host)
	return s
}

func path(netns string) string { return filepath.Join("/run/netns", netns) }

// serve says a word to whoever connects to port 80 of any address of a namespace.
func serve(t *testing.T, netns string) {
	t.Helper()
	var l net.Listener
	if err := harness.InNetns(netns, func() (err error) {
		l, err = net.Listen("tcp4", ":80")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "answers\n")
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
}

// dialer connects from within a namespace.
type dialer string

func (d dialer) Dial(network, address string) (conn net.Conn, err error) {
	err = harness.InNetns(string(d), func() (err error) {
		conn, err = net.DialTimeout(network, address, time.Minute)
		return err
	})
	return conn, err
}

// program gives a program that starts another in the site's host. It is not `ip netns exec`, which puts a /sys without cgroups in place of the
// host's: no jail would have all of its walls.
func (s site) program(t *testing.T, dir, program string) string {
	t.Helper()
	name := filepath.Join(dir, "in-host")
	script := fmt.Sprintf("#!/bin/sh\nexec nsenter --net=%s %s \"$@\"\n", path(s.host), program)
	if err := os.WriteFile(name, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

// reaches holds machines to their policies: what is denied answers the host itself.
func (s site) reaches(t *testing.T, c *client.Client) {
	t.Helper()
	for _, at := range []string{website, another, private, here} {
		conn, err := dialer(s.host).Dial("tcp", net.JoinHostPort(at, "80"))
		if err != nil {
			t.Fatal("the host itself: ", err)
		}
		conn.Close()
	}
	for _, p := range []struct {
		jobs.Network
		cards   int
		answers []string
	}{
		{Network: jobs.Network{}},
		{jobs.Network{Policy: jobs.NetworkInternet}, 1, []string{website, another}},
		{jobs.Network{Policy: jobs.NetworkAllowlist, Allow: []string{website + "/32"}}, 1, []string{website}},
	} {
		shell, want := "ls /sys/class/net | grep -vc '^lo$'\n", fmt.Sprintln(p.cards)
		for _, at := range []string{website, another, private, here} {
			word, wait := "denied", 4 // what is denied may be silent
			if slices.Contains(p.answers, at) {
				word, wait = "answers", 60
			}
			want += at + " " + word + "\n"
			shell += fmt.Sprintf("echo %s $(timeout %d bash -c 'cat < /dev/tcp/%s/80' 2> /dev/null || echo denied)\n", at, wait, at)
		}
		start := time.Now()
		r := run(t, c, jobs.Spec{Image: "base", Network: p.Network, Limits: jobs.Limits{WallMS: within.Milliseconds()}, Steps: []jobs.Step{{Shell: shell}}})
		t.Logf("network %q: %s after %s; phases %+v", p.Policy, r.Ending, time.Since(start).Round(time.Millisecond), r.Phases)
		if !r.Success() {
			t.Fatalf("network %q ended %s: %s %s: %+v", p.Policy, r.Ending, r.Limit, r.Reason, r.Steps)
		}
		if got := string(r.Steps[len(r.Steps)-1].Stdout.Data()); got != want {
			t.Errorf("network %q reached:\n%swant:\n%s", p.Policy, got, want)
		}
	}
}
