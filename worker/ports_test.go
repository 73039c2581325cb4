package worker_test

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/worker/forward"
)

// TestPorts: a viewer hears where a job's port is, and it is there as long as the job runs. The in-process guest connects nowhere: what is
// behind the port is for test/e2e.
func TestPorts(t *testing.T) {
	r := newRig(t)
	ports, err := forward.ParseRange("127.28.0.2:28400-28499") // an address that nobody else listens on
	if err != nil {
		t.Fatal(err)
	}
	r.cfg.Ports = ports.Listen
	r.cfg.PortsHTTP = newProxy(t)
	s, end := r.untilEnd()
	r.run(t)
	s.Network.Ports = []int{80, 8080}
	l := r.put(s)
	var told []jobs.Port
	settled(t, "the event", func() bool {
		for _, e := range r.board.of(l.Job) {
			if e.Type == jobs.EventPorts {
				told = e.Ports
			}
		}
		return told != nil
	})
	if len(told) != 2 || told[0].Guest != 80 || told[1].Guest != 8080 || told[0].Host == told[1].Host {
		t.Fatalf("told: %+v", told)
	}
	c, err := net.DialTimeout("tcp", told[1].Host, patience)
	if err == nil {
		defer c.Close()
	} else if !errors.Is(err, syscall.ECONNRESET) { // that is the guest's refusal, which comes behind the host's consent
		t.Fatal("while the job runs:", err)
	}
	for i, port := range []string{"80", "8080"} {
		if want := "http://" + port + "-" + l.Job + ".localhost:"; !strings.HasPrefix(told[i].URL, want) {
			t.Errorf("port %s is at %s, want %s…", port, told[i].URL, want)
		}
	}
	if status, body := get(t, told[1].URL); status != http.StatusBadGateway || !strings.Contains(body, "nothing listens on port 8080") {
		t.Errorf("%s while the job runs: %d %q", told[1].URL, status, body)
	}
	end()
	if rep := r.report(t, l.Job); !rep.Result.Success() {
		t.Errorf("ended %s: %s", rep.Result.Ending, rep.Result.Reason)
	}
	if _, err := net.DialTimeout("tcp", told[1].Host, patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error("the port is open after the job's end:", err)
	}
	if status, body := get(t, told[1].URL); status != http.StatusNotFound || !strings.Contains(body, l.Job) {
		t.Errorf("%s after the job's end: %d %q", told[1].URL, status, body)
	}
	r.set(func() {
		if !strings.Contains(strings.Join(r.beats[0].Networks, " "), jobs.NetworkPorts) {
			t.Errorf("the worker offers %v", r.beats[0].Networks)
		}
	})
}

// newProxy serves until the test's end.
func newProxy(t *testing.T) *forward.Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := forward.NewProxy(l, "localhost", log.New(t.Output(), "", 0))
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error("proxy:", err)
		}
	})
	return p
}

// get asks a name below localhost, which not every resolver knows.
func get(t *testing.T, at string) (status int, body string) {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:"+u.Port(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host, r.Close = u.Host, true
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, string(b)
}

func TestNoPorts(t *testing.T) {
	r := newRig(t)
	r.cfg.Ports = func() (net.Listener, error) { return nil, errors.New("all ports are taken") }
	r.run(t)
	s := steps([]string{"true"})
	s.Network.Ports = []int{80}
	if rep := r.report(t, r.put(s).Job); rep.Result.Ending != jobs.HostResources || !strings.Contains(rep.Result.Reason, "all ports are taken") {
		t.Errorf("ended %s: %s", rep.Result.Ending, rep.Result.Reason)
	}
}
