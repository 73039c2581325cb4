package build

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// needTools says at once what is missing, and which Debian package has it.
func needTools(names ...string) error {
	packages := map[string]string{
		"mmdebstrap": "mmdebstrap", "mkfs.erofs": "erofs-utils", "mkfs.ext4": "e2fsprogs", "dpkg-deb": "dpkg", "depmod": "kmod", "xz": "xz-utils",
	}
	var missing []string
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			if _, err := os.Stat("/usr/sbin/" + n); err != nil {
				missing = append(missing, n+" (Debian package "+packages[n]+")")
			}
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not installed: %s", strings.Join(missing, ", "))
	}
	return nil
}

// command runs a tool; its error holds the last of what it said. All that the tool started and mounted has ended when command returns,
// and ends with this process too, however that dies: as root a tool has namespaces of its own. A chroot's processes could else go on
// for minutes in a tree that is being removed, with the host's /dev and /sys mounted in it.
func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	// mke2fs takes the time 0 for none, and writes the present one.
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "SOURCE_DATE_EPOCH=0", "E2FSPROGS_FAKE_TIME=1", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if filepath.Base(name) == name {
		if _, err := exec.LookPath(name); err != nil {
			cmd.Path = "/usr/sbin/" + name
			cmd.Err = nil
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS // unlike a clone flag, it makes the mounts private
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	runtime.LockOSThread() // Pdeathsig is sent at the end of the thread that forked (prctl(2))
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%s: %w: %s", name, err, lastLines(out, 12))
	}
	return nil
}

func lastLines(b []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
