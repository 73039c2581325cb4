package qemu_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
)

// What is released is loaded anew; machines that have it keep it, and this process does not.
func testRelease(t *testing.T, l *lab) {
	m := l.Machine(t)
	must(t, l.Set(within(t), m, "kept"))
	if held(t) == 0 {
		t.Error("the template is not kept for other clones")
	}
	must(t, vmm.Releaser(l.driver).Release(l.Template.Dir))
	if n := held(t); n > 0 {
		t.Errorf("the template is still held by %d descriptors", n)
	}
	if got := l.ask(t, m, "get"); got != "kept" {
		t.Errorf("value: %q", got)
	}
	if got := l.ask(t, l.Machine(t), "get"); got != "" {
		t.Errorf("value of a new one: %q", got)
	}
}

// held counts this process's descriptors of templates' memory.
func held(t testing.TB) (n int) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	must(t, err)
	for _, fd := range fds {
		if target, _ := os.Readlink(fd); strings.Contains(target, "paddock-template") {
			n++
		}
	}
	return n
}

// Who prepares a machine gets its memory, whoever releases it meanwhile.
func TestReleaseWhilePreparing(t *testing.T) {
	l := &striker{Launcher: vmm.Direct{}}
	d := newDriver(t, qemu.Config{Launcher: l})
	caps, err := d.Probe(within(t))
	must(t, err)
	template := vmm.Template{Dir: t.TempDir(), Driver: d.Name(), Boot: vmm.Boot{VCPUs: 1, MemoryMiB: 1}}
	manifest, err := json.Marshal(map[string]string{"version": caps.Version, "accel": caps.Accel, "machine": caps.Machine, "cpu": caps.CPU, "channel": caps.Channel})
	must(t, err)
	for name, content := range map[string][]byte{"qemu.json": manifest, "state": nil, "memory": make([]byte, 1<<20)} {
		must(t, os.WriteFile(filepath.Join(template.Dir, name), content, 0o444))
	}
	l.strikes.Store(true) // the memory is got before a QEMU is started
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := d.Release(template.Dir); err != nil {
				t.Error(err)
			}
		}
	}()
	for range 300 {
		if _, err := d.Prepare(within(t), template, vmm.Attach{}); !errors.Is(err, errStrike) {
			t.Errorf("prepare: %v", err)
			break
		}
	}
	close(stop)
	<-stopped
}

// striker launches until it strikes.
type striker struct {
	vmm.Launcher
	strikes atomic.Bool
}

func (s *striker) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	if s.strikes.Load() {
		return nil, errStrike
	}
	return s.Launcher.Launch(ctx, c)
}
