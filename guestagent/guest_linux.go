package guestagent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// guest is a Linux guest whose PID 1 this is. It begins in the initramfs, becomes the root of a warm overlay (erofs below, tmpfs above)
// for the commands before the snapshot, and after the restore the root of a fresh one with the scratch disk above.
type guest struct {
	initramfs  *os.File // the way back
	epoch      []byte   // of the latest restore; nil before the first
	bootMemory []int    // the memory blocks that were there at the boot; what comes later was plugged in
}

const (
	lowerDir   = "/ro"      // the erofs, below both overlays
	rootDisk   = "/dev/vda" // the first virtio disk
	scratchDev = "/dev/vdb" // the second
)

// Init is the agent as PID 1 of a guest. It returns only where the guest cannot be brought up; the caller then prints why and ends,
// which the kernel takes as a panic and the host as the machine's end.
func Init() error {
	g := &guest{}
	if err := g.boot(); err != nil {
		return err
	}
	m := &machine{work: "/work", sandboxUID: sandboxUID, guest: g, reaper: newReaper()}
	m.confine = (&cgroups{reaper: m.reaper}).confine
	a := newAgent(m)
	a.hello.PID1 = true
	a.hello.BootMS = uptime().Milliseconds()
	if vsockIsThere() {
		return serveVsock(a)
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	for {
		port.waitForHost()
		_ = wire.Guest(port, a.serve) // it ends when the host leaves; the next may come
	}
}

func uptime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return time.Duration(t.Nano())
}

// boot goes from the kernel's hand-over to a running warm root.
func (g *guest) boot() error {
	for _, m := range []mount{{"proc", "/proc", "proc", 0, ""}, {"sysfs", "/sys", "sysfs", 0, ""}, {"devtmpfs", "/dev", "devtmpfs", 0, ""}} {
		if err := m.mount(); err != nil {
			return err
		}
	}
	useConsole()
	if err := protectLinks(); err != nil {
		return err
	}
	loadModules()
	g.bootMemory, _ = numbered(memoryDir, "memory") // none where the kernel cannot plug memory
	if err := waitFor(rootDisk); err != nil {
		return err
	}
	if err := (mount{rootDisk, lowerDir, "erofs", unix.MS_RDONLY, ""}).mount(); err != nil {
		return err
	}
	if err := (mount{"tmpfs", "/warm-rw", "tmpfs", 0, "size=64m"}).mount(); err != nil {
		return err
	}
	var err error
	if g.initramfs, err = os.Open("/"); err != nil {
		return err
	}
	if err := overlay("/warm", "/warm-rw"); err != nil {
		return err
	}
	if err := enter("/warm"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(cgroupRoot, "cgroup.subtree_control"), []byte("+memory +pids +cpu"), 0); err != nil {
		return fmt.Errorf("enable cgroup controllers: %w", err)
	}
	return loopbackUp()
}

// protectLinks keeps the sandbox's user from naming root's files as its own, which a distribution's init would do and the kernel does not
// by itself (kernel: Documentation/admin-guide/sysctl/fs.rst). What root brings out by a name is then what its owner put there.
func protectLinks() error {
	for name, value := range map[string]string{"hardlinks": "1", "symlinks": "1", "fifos": "2", "regular": "2"} {
		if err := os.WriteFile("/proc/sys/fs/protected_"+name, []byte(value), 0); err != nil {
			return fmt.Errorf("protect links: %w", err)
		}
	}
	return nil
}

// mount is one file system to mount; its directory is made.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) mount() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
	}
	return nil
}

// overlay mounts the root disk with a writable layer above it.
func overlay(target, writable string) error {
	upper, work := writable+"/upper", writable+"/work"
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return mount{"overlay", target, "overlay", 0, "lowerdir=" + lowerDir + ",upperdir=" + upper + ",workdir=" + work}.mount()
}

// enter goes into a new root, with a way back.
func enter(root string) error {
	if err := furnish(root); err != nil {
		return err
	}
	return chroot(root)
}

// become goes into a new root for good: it is moved over the old one.
func become(root string) error {
	if err := furnish(root); err != nil {
		return err
	}
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("enter %s: %w", root, err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s over the root: %w", root, err)
	}
	return chroot(".")
}

func chroot(dir string) error {
	if err := unix.Chroot(dir); err != nil {
		return fmt.Errorf("change the root to %s: %w", dir, err)
	}
	return unix.Chdir("/")
}

// furnish gives a new root the kernel's file systems.
func furnish(root string) error {
	for _, m := range []mount{
		{"proc", root + "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", root + "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"cgroup2", root + cgroupRoot, "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devtmpfs", root + "/dev", "devtmpfs", unix.MS_NOSUID, ""},
		{"devpts", root + "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666"},
		{"tmpfs", root + "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmpfs", root + "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=16m"},
	} {
		if err := m.mount(); err != nil {
			return err
		}
	}
	for link, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(to, filepath.Join(root, "dev", link)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// useConsole makes the kernel's console the agent's standard streams.
func useConsole() {
	f, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err != nil {
		return // there is none: what is printed is lost
	}
	for fd := range 3 {
		_ = unix.Dup3(int(f.Fd()), fd, 0)
	}
}

// loadModules loads what the image's builder listed, in its order. One that is missing or fails is told on the console: what needed it
// will say so again.
func loadModules() {
	order, err := os.ReadFile("/modules.order")
	if err != nil {
		fmt.Println("paddock-agent: no modules:", err)
		return
	}
	for _, name := range strings.Fields(string(order)) {
		f, err := os.Open(filepath.Join("/modules", name))
		if err == nil {
			err = unix.FinitModule(int(f.Fd()), "", 0)
			_ = f.Close()
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			fmt.Printf("paddock-agent: module %s: %v\n", name, err)
		}
	}
}

// deviceWithin is how long a virtual device may take to appear after its driver was loaded.
const deviceWithin = 20 * time.Second

func waitFor(device string) error {
	for end := time.Now().Add(deviceWithin); ; time.Sleep(5 * time.Millisecond) {
		_, err := os.Stat(device)
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("wait for %s: %w", device, err)
		}
	}
}

// loopbackUp brings 127.0.0.1 up, which programs expect even without a network.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing to lose
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	return nil
}
