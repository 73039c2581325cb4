package jail_test

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker/jail"
)

// A device that its group may use, like Debian's /dev/kvm, can be opened in a jail that is given it; one that is root's alone cannot. No
// other group comes along.
func TestDeviceOfAGroup(t *testing.T) {
	l := newLauncher(t, jail.Config{})
	const group = 54321
	dir := t.TempDir()
	node := func(name string, mode uint32, gid int) string {
		path := filepath.Join(dir, name)
		must(t, unix.Mknod(path, unix.S_IFCHR, int(unix.Mkdev(1, 5)))) // /dev/zero
		must(t, unix.Chown(path, 0, gid))
		must(t, unix.Chmod(path, mode))
		return path
	}
	shared, reading, own := node("shared", 0o660, group), node("reading", 0o640, group+1), node("own", 0o660, 0)
	for _, c := range []struct {
		name, want string
		devices    []string
	}{
		{"the group's", "opened 54321", []string{shared, shared}},
		{"for reading only", "refused", []string{reading}},
		{"root's", "refused", []string{own}},
	} {
		line := "(: <>" + c.devices[0] + ") 2>/dev/null && echo opened $(sed -n 's/^Groups:[[:space:]]*//p' /proc/self/status) || echo refused"
		if said, _ := run(t, l, vmm.Command{Devices: c.devices}, line); said != c.want {
			t.Errorf("%s: %q, want %q", c.name, said, c.want)
		}
	}
}
