package hostnet_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/paddockvm/paddock/worker/hostnet"
)

// needThrowaway skips on a host that is somebody's: what is started changes more of it than a namespace's rules, and its package would start it
// there for good.
func needThrowaway(t *testing.T) {
	t.Helper()
	if os.Getenv("THROWAWAY_HOST") == "" {
		t.Skip("SKIPPED: the real firewalld and dockerd run only in a host that is thrown away: look-alikes of their rules stand in for them here (make test-kvm)")
	}
}

// daemon is somebody's program in the lab's host.
type daemon struct {
	*lab
	env  []string
	argv []string
	cmd  *exec.Cmd
	said bytes.Buffer // to be read when it has ended
}

func (d *daemon) start(t *testing.T) {
	t.Helper()
	d.cmd = exec.Command(d.argv[0], d.argv[1:]...)
	d.cmd.Env = append(os.Environ(), d.env...)
	d.cmd.Stdout, d.cmd.Stderr, d.cmd.WaitDelay = &d.said, &d.said, 10*time.Second
	must(t, in(d.host, d.cmd.Start))
}

func (d *daemon) stop(t *testing.T) {
	t.Helper()
	if d.cmd == nil {
		return
	}
	must(t, d.cmd.Process.Signal(syscall.SIGTERM))
	late := time.AfterFunc(time.Minute, func() { _ = d.cmd.Process.Kill() })
	err := d.cmd.Wait()
	if !late.Stop() {
		t.Errorf("%s does not end: %v", d.argv[0], err)
	}
	d.cmd = nil
}

// daemon starts a program that ends with the test. What it said is shown where that failed.
func (l *lab) daemon(t *testing.T, env []string, argv ...string) *daemon {
	t.Helper()
	d := &daemon{lab: l, env: env, argv: argv}
	d.start(t)
	t.Cleanup(func() {
		d.stop(t)
		if t.Failed() {
			t.Logf("%s said:\n%s", argv[0], &d.said)
		}
	})
	return d
}

// tool runs a command in the lab's host.
func (l *lab) tool(env []string, argv ...string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := in(l.host, cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("%q: %w: %s", argv, err, &out)
	}
	return nil
}

// answers waits until a daemon does.
func (l *lab) answers(t *testing.T, env []string, argv ...string) {
	t.Helper()
	var err error
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = l.tool(env, argv...); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// change is something that makes a firewall load its rules anew.
type change struct {
	name string
	make func(*testing.T)
}

// realFirewalld starts it with a bus of its own. The uplink has a zone of its own: within one, as the default zone
// that somebody else and the machines are in, firewalld lets everybody through.
func realFirewalld(t *testing.T, l *lab) []change {
	t.Helper()
	dir := t.TempDir()
	bus, settings := filepath.Join(dir, "bus"), filepath.Join(dir, "etc")
	must(t, os.MkdirAll(filepath.Join(settings, "zones"), 0o755))
	must(t, os.WriteFile(filepath.Join(settings, "zones", "external.xml"), []byte(`<zone><forward/><service name="ssh"/><interface name="up0"/></zone>`), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "bus.conf"), fmt.Appendf(nil, `<busconfig>
<type>system</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
</busconfig>`, bus), 0o644))
	env := []string{"DBUS_SYSTEM_BUS_ADDRESS=unix:path=" + bus}
	l.daemon(t, nil, "dbus-daemon", "--nofork", "--nopidfile", "--config-file="+filepath.Join(dir, "bus.conf"))
	l.answers(t, nil, "test", "-S", bus)
	d := l.daemon(t, env, "firewalld", "--nofork", "--nopid", "--system-config="+settings, "--log-target=console")
	l.answers(t, env, "firewall-cmd", "--state")
	reload := func(how string) func(*testing.T) {
		return func(t *testing.T) {
			t.Helper()
			if err := l.tool(env, "firewall-cmd", how); err != nil && !strings.Contains(err.Error(), "Did not receive a reply") { // within 25 s
				t.Fatal(err)
			}
			l.answers(t, env, "firewall-cmd", "--state") // it does one thing after the other
		}
	}
	return []change{
		{"a reload", reload("--reload")},
		{"a complete reload", reload("--complete-reload")},
		{"a restart", func(t *testing.T) {
			d.stop(t)
			d.start(t)
			l.answers(t, env, "firewall-cmd", "--state")
		}},
	}
}

// realDocker starts dockerd, which starts its containerd. There is no image to make a container of: a namespace on a network of Docker's is one.
func realDocker(t *testing.T, l *lab) []change {
	t.Helper()
	dir := t.TempDir()
	at := "unix://" + filepath.Join(dir, "docker.sock")
	d := l.daemon(t, nil, "dockerd", "--host="+at, "--data-root="+filepath.Join(dir, "data"), "--exec-root="+filepath.Join(dir, "exec"),
		"--pidfile="+filepath.Join(dir, "pid"), "--storage-driver=vfs", "--exec-opt=native.cgroupdriver=cgroupfs")
	l.answers(t, nil, "docker", "--host="+at, "info")
	const network = "172.30.0"
	must(t, l.tool(nil, "docker", "--host="+at, "network", "create", "--subnet="+network+".0/24", "--opt=com.docker.network.bridge.name=dk0", "lan"))
	container := namespace(t)
	wire(t, container, "eth0", l.host, "c0")
	must(t, l.tool(nil, "ip", "link", "set", "c0", "master", "dk0"))
	address(t, container, "eth0", network+".2/24")
	route(t, container, "0.0.0.0/0", network+".1")
	echo(t, container, 80)
	l.container = container
	return []change{
		{"another network", func(t *testing.T) { must(t, l.tool(nil, "docker", "--host="+at, "network", "create", "other")) }},
		{"a restart", func(t *testing.T) {
			d.stop(t)
			d.start(t)
			l.answers(t, nil, "docker", "--host="+at, "info")
		}},
	}
}

// TestBesideRealFirewalls has firewalld and dockerd themselves keep somebody else out, and what machines may do be their policies' matter: started
// before the machines' network or after it, and whenever they load their rules anew.
func TestBesideRealFirewalls(t *testing.T) {
	needRoot(t)
	needThrowaway(t)
	for name, firewall := range map[string]func(*testing.T, *lab) []change{"docker": realDocker, "firewalld": realFirewalld} {
		for _, before := range []bool{true, false} {
			order := map[bool]string{true: "before", false: "after"}[before]
			t.Run(name+" "+order, func(t *testing.T) { // no comma: Docker's database takes paths apart at it
				l := newLab(t)
				l.dns.set("ok.example.", "ok.example. 60 A "+web)
				by := bystander(t, l)
				var changes []change
				if before {
					changes = firewall(t, l)
					isRefused(t, "somebody else, whom the firewall should keep out,", by, every(web))
				}
				h := run(t, l.config(t))
				s := take(t, h)
				g := newGuest(t, s)
				allow(t, s, hostnet.Policy{Kind: hostnet.Internet})
				reaches(t, "the guest", g.ns, every(web))
				if !before {
					changes = firewall(t, l)
				}
				policies(t, l, h, s, g, by)
				if !before {
					changes = changes[len(changes)-1:] // the others make no difference to who came first
				}
				for _, c := range changes {
					c.make(t)
					t.Logf("after %s", c.name)
					policies(t, l, h, s, g, by)
				}
			})
		}
	}
}

// policies wants of a machine beside a firewall what is wanted of any, as soon as the firewall has been looked at.
func policies(t *testing.T, l *lab, h *hostnet.Host, s *hostnet.Slot, g *guest, by *os.File) {
	t.Helper()
	allow(t, s, hostnet.Policy{Kind: hostnet.Internet})
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if _, err := tcp(g.ns, "", web, 80, denied); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the guest does not get out")
		}
	}
	reaches(t, "the guest", g.ns, every(web, other))
	isRefused(t, "somebody else, whom the firewall should keep out,", by, every(web))
	if l.container != nil {
		reaches(t, "the container", l.container, every(web))
		isDenied(t, l, g, every("172.30.0.2"))
	}
	allow(t, s, hostnet.Policy{Kind: hostnet.Allowlist, Domains: []string{"ok.example"}})
	wantAnswer(t, g, s, "ok.example.", 1, web)
	reaches(t, "the guest", g.ns, every(web))
	isDenied(t, l, g, every(other))
	always(t, l, g)
	if p := h.Problems(); len(p) > 0 {
		t.Errorf("problems: %q", p)
	}
}
