package cloudhypervisor_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/paddockvm/paddock/test/leak"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor"
	"github.com/paddockvm/paddock/vmm/vmmtest"
	"github.com/paddockvm/paddock/worker/jail"
)

// TestMain is the jail's stub too.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "jail-exec" {
		jail.Child(os.Args[2])
	}
	leak.VerifyTestMain(m)
}

// TestRealJailed boots, snapshots and clones inside the jail: another uid, no file of the host's but libraries, filters of system calls.
func TestRealJailed(t *testing.T) {
	needKVM(t)
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("the jail needs root")
		}
		t.Skip("SKIPPED: the jail needs root")
	}
	launcher, err := jail.New(jail.Config{Self: []string{"/proc/self/exe", "jail-exec"}, UIDLock: t.TempDir() + "/uids"})
	must(t, err)
	t.Cleanup(func() { must(t, launcher.Close()) })
	l := newLab(t, launcher, func(_ *cloudhypervisor.Config, b *vmm.Boot) { b.MaxMemoryMiB = b.MemoryMiB + 512 })
	t.Logf("degraded: %v", launcher.Degraded())
	must(t, l.Machine(t).Close())
	vmmtest.NoLeaks(t, l.runDir)
	m := l.Machine(t)
	must(t, l.Do(within(t), m, "disk-put x"))
	must(t, m.(vmm.Resizer).Resize(within(t), 1, l.Boot.MemoryMiB+512))
	must(t, m.(vmm.Resizer).Resize(within(t), 1, l.Boot.MemoryMiB))
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.pid(m.ID())))
	must(t, err)
	if !strings.Contains(string(status), "NoNewPrivs:\t1") || strings.Contains(string(status), "Uid:\t0\t") {
		t.Errorf("it is not jailed:\n%s", status)
	}
	// The jail's filter holds all threads, and Cloud Hypervisor's own hold all but the first, which only waits for the others.
	threads := vmmtest.Threads(t, l.pid(m.ID()))
	t.Logf("threads: %+v", threads)
	names, jails := map[string]bool{}, 0
	for _, th := range threads {
		names[th.Name] = true
		if th.Leads {
			jails = th.Filters
		}
	}
	for _, th := range threads {
		if th.Seccomp != 2 || !th.Leads && th.Filters <= jails {
			t.Errorf("a thread without its filter, where the jail has %d: %+v", jails, th)
		}
	}
	for _, name := range []string{"vmm", "http-server", "event-monitor", "vcpu0", "memory"} {
		if !names[name] {
			t.Errorf("no thread %s", name)
		}
	}
	must(t, m.Close())
}
