package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// boot is the whole life of process 1: the initramfs, the host's root, the plan, the end.
func boot() {
	err := setUp()
	if err == nil {
		err = supervise(filepath.Join(dir, "bin", "inside"))
	}
	if err != nil {
		fmt.Println("kvmhost:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // not reached
}

// mount is a line of what is mounted in the host, as systemd would.
type mount struct {
	from, to, kind string
	flags          uintptr
	data           string
}

const private = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

var system = []mount{
	{"proc", "/proc", "proc", private, ""},
	{"sysfs", "/sys", "sysfs", private, ""},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", private, "nsdelegate"},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=000"},
	{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, ""},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	{"/dev/vdb", dir, "ext4", 0, ""},
	{dir + "/tmp", "/tmp", "", unix.MS_BIND, ""},
	{"/run/netns", "/run/netns", "", unix.MS_BIND, ""}, // as the first `ip netns add` leaves it for good
	{"", "/", "", unix.MS_REC | unix.MS_SHARED, ""},
}

// wanted are modules that nothing loads by itself: docs/kvm-host.md lists the same.
var wanted = []string{"kvm_amd", "vhost_vsock", "vhost_net", "tun", "nf_tables"}

func setUp() error {
	for _, m := range []mount{{"devtmpfs", "/dev", "devtmpfs", 0, ""}, {"proc", "/proc", "proc", 0, ""}} {
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := enterRoot("/dev/vda"); err != nil {
		return err
	}
	for _, m := range system {
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := os.Setenv("PATH", dir+"/bin:/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return err
	}
	return errors.Join(
		os.Setenv("HOME", "/root"), os.Setenv("LANG", "C.UTF-8"),
		unix.Sethostname([]byte("kvmhost")),
		tool("modprobe", append([]string{"-a"}, wanted...)...),
		tool("ip", "link", "set", "lo", "up"),
		// Hosts have one; nobody answers there until a test makes that so.
		os.WriteFile("/etc/resolv.conf", []byte("nameserver 127.0.0.1\n"), 0o644),
		giveDevices(),
		makeSlice(),
	)
}

// kvmGroup is the group kvm, whatever its number.
const kvmGroup = 104

// giveDevices gives devices to whom systemd's udev gives them on Debian (50-udev-default.rules).
func giveDevices() error {
	var errs []error
	for _, device := range []string{"/dev/kvm", "/dev/vhost-net", "/dev/vhost-vsock"} {
		errs = append(errs, os.Chown(device, 0, kvmGroup), os.Chmod(device, 0o660))
	}
	return errors.Join(append(errs, os.Chmod("/dev/net/tun", 0o666))...)
}

func (m mount) do() error {
	if err := os.MkdirAll(m.to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.from, m.to, m.kind, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.from, m.to, err)
	}
	return nil
}

// loadModules loads what the initramfs holds, in its order.
func loadModules() error {
	order, err := os.ReadFile("/modules.order")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(order)) {
		f, err := os.Open(filepath.Join("/modules", name))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}

// enterRoot makes a disk the root of all that comes: the initramfs stays below it, empty of processes.
func enterRoot(disk string) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(disk); err == nil {
			break
		} else if time.Now().After(deadline) {
			return err
		}
	}
	if err := (mount{disk, "/new", "ext4", 0, ""}).do(); err != nil {
		return err
	}
	if err := unix.Chdir("/new"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	return errors.Join(unix.Chroot("."), unix.Chdir("/"))
}

func tool(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// supervise runs a program and reaps whatever loses its parent until that ends.
func supervise(program string) error {
	p, err := os.StartProcess(program, []string{program, "run"}, &os.ProcAttr{Env: os.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case pid == p.Pid:
			return nil // it has said on the console what went wrong
		}
	}
}
