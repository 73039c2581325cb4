package cloudhypervisor_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor/api"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// needLandlock skips where the kernel has not what Cloud Hypervisor wants of it.
func needLandlock(t *testing.T) {
	t.Helper()
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno == 0 && version >= 3 {
		return
	}
	why := "this kernel has no version 3 of Landlock, which is in Linux 6.2"
	if os.Getenv("REQUIRE_LANDLOCK") != "" {
		t.Fatal(why)
	}
	t.Skipf("SKIPPED: %s: that the VMM is kept to its files is not tested here (go run ./test/kvmhost/cmd --kernel backports ./vmm/cloudhypervisor)", why)
}

// apiOf is the API of a driver's machine.
func (l *lab) apiOf(t *testing.T, m vmm.Machine) *api.Client {
	pid := l.pid(m.ID())
	c := api.New(func(ctx context.Context) (*net.UnixConn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", fmt.Sprintf("/proc/%d/fd/3/api", pid))
		if err != nil {
			return nil, err
		}
		return conn.(*net.UnixConn), nil
	})
	t.Cleanup(c.Close)
	return c
}

// elsewhere is a file of the host's that is no machine's, and that all may read.
func elsewhere(t *testing.T) api.Disk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "elsewhere")
	must(t, os.WriteFile(path, make([]byte, 64<<10), 0o644))
	return api.Disk{ID: "elsewhere", Path: path, ReadOnly: true, ImageType: "Raw"}
}

// kept wants a VMM that cannot open a file which is not its machine's: Landlock says EACCES, also to root.
func kept(t *testing.T, c *api.Client) {
	t.Helper()
	_, err := c.AddDisk(within(t), elsewhere(t))
	if _, refused := errors.AsType[*api.Error](err); !refused || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("a file that is not its machine's: %v", err)
	}
	t.Log(err)
}

// TestRealLandlock has the VMM of machines that were booted and cloned kept to their files, and able to do with those what it has to.
func TestRealLandlock(t *testing.T) {
	boot := linux(t)
	needLandlock(t)
	t.Run("without", func(t *testing.T) {
		h := newHand(t, vmm.Direct{}, binary(t), boot)
		if _, err := h.api.AddDisk(within(t), elsewhere(t)); err != nil {
			t.Errorf("a file that is not its machine's, without Landlock: %v", err)
		}
		must(t, h.api.ShutdownVMM(within(t)))
	})
	t.Run("by hand", func(t *testing.T) {
		vmmtest.NoLeaks(t)
		h := newHand(t, vmm.Direct{}, binary(t), boot, api.PathRule{Path: handDir, Access: "rw"}, api.PathRule{Path: handMore, Access: "r"})
		h.linux = true
		kept(t, h.api)
		requests(t, h)
	})
	l := newLab(t, vmm.Direct{}, func(_ *cloudhypervisor.Config, b *vmm.Boot) { b.MaxVCPUs = 2 })
	for name, start := range map[string]func(*testing.T) (vmm.Machine, error){
		"booted": func(t *testing.T) (vmm.Machine, error) { return l.driver.Boot(within(t), l.Boot, vmm.Attach{}) },
		"cloned": func(t *testing.T) (vmm.Machine, error) { return l.Machine(t), nil },
	} {
		t.Run(name, func(t *testing.T) {
			vmmtest.NoLeaks(t, l.runDir)
			m, err := start(t)
			must(t, err)
			defer m.Close()
			l.ask(t, m, "get")
			kept(t, l.apiOf(t, m))
			must(t, m.(vmm.Resizer).Resize(within(t), 2, l.Boot.MemoryMiB))
			must(t, m.(vmm.Resizer).Resize(within(t), 1, l.Boot.MemoryMiB))
			_, err = m.(vmm.Checkpointer).Checkpoint(within(t), t.TempDir(), l.Template)
			must(t, err)
			kept(t, l.apiOf(t, m))
			must(t, l.Do(within(t), m, "disk-put kept"))
		})
	}
}
