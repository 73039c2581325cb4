package kvmhost_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/paddockvm/paddock/test/harness"
	"github.com/paddockvm/paddock/test/kvmhost"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// need skips where make test-kvm does not run: each of these tests boots a host.
func need(t *testing.T) {
	t.Helper()
	if os.Getenv("REQUIRE_KVM") == "" {
		t.Skip("SKIPPED: it boots a host: make test-kvm does that")
	}
	if _, err := kvmhost.HostImage(t.Context(), "", func(what string) { t.Log(what) }); err != nil {
		t.Fatal(err)
	}
	cache, err := harness.Cache()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(cache, "kvmhost", "lock"), os.O_CREATE|os.O_RDWR, 0o644) // it stays from the first run on
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	vmmtest.NoLeaks(t, filepath.Join(cache, "kvmhost"))
}

// shell is a set of one line.
func shell(name, line string, timeout time.Duration) kvmhost.Set {
	return kvmhost.Set{Name: name, Shell: line, Timeout: timeout}
}

// nested runs sets in emulated hosts.
func nested(ctx context.Context, t *testing.T, live *bytes.Buffer, hosts int, sets ...kvmhost.Set) (map[string]kvmhost.Result, string, error) {
	t.Helper()
	out := t.TempDir()
	o := kvmhost.Options{Place: kvmhost.Nested, Out: out, Live: live, VCPUs: 1, MemoryMiB: 2048, Hosts: hosts, Grace: 20 * time.Second}
	results, err := kvmhost.Run(ctx, sets, o)
	byName := map[string]kvmhost.Result{}
	for _, r := range results {
		byName[r.Set.Name] = r
	}
	return byName, out, err
}

// How programs end inside is known outside, whatever one of them does; and the host is what it should be.
func TestHost(t *testing.T) {
	need(t)
	var live bytes.Buffer
	got, out, err := nested(t.Context(), t, &live, 1,
		shell("host", `set -e; test -c /dev/kvm; test -c /dev/vhost-vsock; test -c /dev/net/tun; nft list ruleset; test "$(id -u)" = 0
			grep -q /system.slice/host.service /proc/self/cgroup; cat /sys/fs/cgroup/system.slice/cgroup.subtree_control
			grep -q 'cpu.*io.*memory.*pids' /sys/fs/cgroup/system.slice/host.service/cgroup.controllers
			test "$REQUIRE_KVM$REQUIRE_ROOT$REQUIRE_QEMU" = 111; test -f go.mod; qemu-system-x86_64 --version`, time.Minute),
		shell("files", `mkdir "$PADDOCK_TEST_OUT/sub"; seq 20000 >"$PADDOCK_TEST_OUT/sub/samples"`, time.Minute),
		shell("fails", "echo this is why; exit 3", time.Minute),
		shell("skips", "echo '--- SKIP: TestX (0.00s)'", time.Minute),
		shell("hangs", "echo I hang; sleep 600", 20*time.Second),
		shell("leaves a process", "sleep 600 </dev/null >/dev/null 2>&1 &", time.Minute),
		shell("leaves a cgroup", "mkdir /sys/fs/cgroup/system.slice/leaves-a-cgroup.service/below", time.Minute),
		shell("leaves a network", "ip netns add one; ip link add two type dummy; nft add table inet three; mount -t tmpfs four /mnt", time.Minute),
		shell("last", `! pgrep sleep; test -z "$(nft list ruleset)$(ls /run/netns)"; ! ip link show two; ! mountpoint /mnt`, time.Minute),
	)
	if err != nil {
		t.Fatalf("%v\n%s", err, live.Bytes())
	}
	for name, want := range map[string]string{
		"host": "", "files": "", "last": "",
		"fails": "exit status 3", "hangs": "took more than 20s", "leaves a process": "left a process", "leaves a cgroup": "left a cgroup",
	} {
		r := got[name]
		if !r.Ran || !r.Ended || r.OK() != (want == "") || !strings.Contains(r.Detail, want) {
			t.Errorf("%s: %+v, want %q", name, r, want)
		}
	}
	for _, thing := range []string{"a network namespace: one", "a link: two", "a nftables table: table inet three", "a mount: /mnt"} {
		if r := got["leaves a network"]; !strings.Contains(r.Detail, "left "+thing) {
			t.Errorf("%q was not found: %+v", thing, r)
		}
	}
	if r := got["skips"]; r.OK() || len(r.Skipped) != 1 {
		t.Errorf("skips: %+v", r)
	}
	for _, said := range []string{"this is why\n", "I hang\n", "QEMU emulator version"} {
		if !strings.Contains(live.String(), said) {
			t.Errorf("%q was not shown", said)
		}
	}
	if b, err := os.ReadFile(filepath.Join(out, "fails.log")); err != nil || string(b) != "this is why\n" {
		t.Errorf("log: %q, %v", b, err)
	}
	b, err := os.ReadFile(filepath.Join(out, "files", "sub", "samples"))
	if lines := strings.Fields(string(b)); err != nil || len(lines) != 20000 || lines[19999] != "20000" {
		t.Errorf("a file came back with %d bytes: %v", len(b), err)
	}
	if t.Failed() {
		t.Logf("%s", live.Bytes())
	}
}

// A host that dies, or of which nothing is heard, is an error that shows its console; and nothing of it stays. Another goes on beside it.
func TestHostThatDies(t *testing.T) {
	need(t)
	for name, c := range map[string]struct{ line, want string }{
		"panics":      {"echo c >/proc/sysrq-trigger; sleep 60", "sysrq triggered crash"},
		"falls still": {"kill -STOP $PPID; echo stopped >/dev/console; sleep 600", "the host took more than 36s for falls still"},
	} {
		var live bytes.Buffer
		got, _, err := nested(t.Context(), t, &live, 2,
			shell(name, c.line, 16*time.Second), shell("after", "true", time.Minute), shell("beside", "sleep 60; echo still here", 3*time.Minute))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "console") {
			t.Errorf("%s: %v", name, err)
		}
		if r := got[name]; !r.Ran || r.Ended || r.OK() {
			t.Errorf("%s: %+v", name, r)
		}
		if r := got["after"]; r.Ran || r.OK() {
			t.Errorf("after it %s: %+v", name, r)
		}
		if r := got["beside"]; !r.OK() || !strings.Contains(live.String(), "beside: still here\n") {
			t.Errorf("beside one that %s: %+v\n%s", name, r, live.Bytes())
		}
	}
}

// written cancels when something is written.
type written struct {
	bytes.Buffer
	what   string
	cancel context.CancelFunc
}

func (w *written) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(w.what)) {
		w.cancel()
	}
	return w.Buffer.Write(b)
}

// Ctrl-C ends the host at once, and leaves nothing.
func TestCancel(t *testing.T) {
	need(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	live := &written{what: "up to here", cancel: cancel}
	o := kvmhost.Options{Place: kvmhost.Nested, Out: t.TempDir(), Live: live, VCPUs: 1, MemoryMiB: 2048}
	results, err := kvmhost.Run(ctx, []kvmhost.Set{shell("waits", "echo up to here; sleep 600", time.Minute)}, o)
	if !errors.Is(err, context.Canceled) || len(results) != 1 || results[0].Ended {
		t.Errorf("%v, %+v\n%s", err, results, live.Bytes())
	}
}
