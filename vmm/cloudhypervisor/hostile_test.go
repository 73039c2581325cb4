package cloudhypervisor_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// A VMM that a guest has taken over leads nobody to another socket of the host's.
func TestHostileSocket(t *testing.T) {
	l, d := newFakes(t, "v53.0")
	template := vmmtest.Build(t, d, fakeBoot(t), vmmtest.TestGuest{})
	other, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "other"), Net: "unix"})
	must(t, err)
	t.Cleanup(func() { must(t, other.Close()) })
	vmmtest.NoLeaks(t)
	p, err := d.Prepare(within(t), template, vmm.Attach{})
	must(t, err)
	m, err := p.Restore(within(t))
	must(t, err)
	defer m.Close()
	dir := fmt.Sprintf("/proc/self/fd/%d", l.procs[m.ID()].vm.files[3].Fd())
	must(t, os.Remove(dir+"/vsock"))
	must(t, os.Symlink(other.Addr().String(), dir+"/vsock"))
	if conn, err := m.DialGuest(within(t)); !errors.Is(err, unix.ELOOP) {
		t.Errorf("dial: %v", err)
		if err == nil {
			conn.Close()
		}
	}
	must(t, other.SetDeadline(time.Now().Add(10*time.Millisecond)))
	if _, err := other.Accept(); err == nil {
		t.Error("somebody came")
	}
	if _, err := os.Stat(dir + "/../etc"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory leads out: %v", err)
	}
	must(t, m.Close())
}

// What it leaves in place of a snapshot is no template.
func TestHostileSnapshot(t *testing.T) {
	l, d := newFakes(t, "v53.0")
	boot := fakeBoot(t)
	_, err := d.Probe(within(t))
	must(t, err)
	replace := func(name string, by func(path string) error) func(string) error {
		return func(dir string) error {
			return errors.Join(os.Remove(dir+"/"+name), by(dir+"/"+name))
		}
	}
	write := func(b string) func(string) error {
		return func(path string) error { return os.WriteFile(path, []byte(b), 0o600) }
	}
	for name, spoil := range map[string]func(string) error{
		"a link":            replace("state.json", func(path string) error { return os.Symlink("/etc/passwd", path) }),
		"a pipe":            replace("state.json", func(path string) error { return unix.Mkfifo(path, 0o666) }),
		"a directory":       replace("state.json", func(path string) error { return os.Mkdir(path, 0o777) }),
		"nothing":           func(dir string) error { return os.Remove(dir + "/state.json") },
		"too much":          replace("state.json", write(strings.Repeat("x", 17<<20))),
		"no configuration":  replace("config.json", write("[]")),
		"two zones":         replace("config.json", write(`{"memory":{"zones":[{"id":"memory"},{"id":"more"}]}}`)),
		"other memory":      replace("config.json", write(`{"memory":{"zones":[{"id":"other","file":"/etc/passwd"}]}}`)),
		"memory, once more": func(dir string) error { return os.WriteFile(dir+"/memory-ranges", nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			vmmtest.NoLeaks(t)
			m, err := d.Boot(within(t), boot, vmm.Attach{})
			must(t, err)
			defer m.Close()
			l.spoil(spoil)
			defer l.spoil(nil)
			dir := t.TempDir()
			if _, err = m.Snapshot(within(t), dir); err == nil {
				t.Error("a template came out of it")
			}
			t.Log(err)
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("files left: %v", left)
			}
		})
	}
}
