package jail_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// prey is what the hostile program is told of the host, to try it.
type prey struct {
	Secret   string // a file that it was not given
	ReadOnly string // a directory that it may read, with the files "file" and "suid", a copy of id(1)
	Writable string // a directory that it may write, with the file "device"
	TCP      string // a listener on the host's loopback
	Abstract string // a listener without a path
	Other    string // a directory of another machine, with the file "file"
	Act      string // what it does, of the acts; empty: it tries everything and tells what came of it
}

// hostile is the program in the jail: it tries what a guest that has escaped from its VMM would, and tells on descriptor 3 what came of it.
func hostile(arg string) {
	var p prey
	if err := json.Unmarshal([]byte(arg), &p); err != nil {
		panic(err)
	}
	if p.Act != "" {
		acts[p.Act]()
		return
	}
	got := map[string]string{}
	for name, try := range p.tries() {
		err := try()
		var errno syscall.Errno
		switch {
		case err == nil:
			got[name] = "done"
		case errors.As(err, &errno):
			got[name] = unix.ErrnoName(errno)
		default:
			got[name] = err.Error()
		}
	}
	for name, see := range p.sights() {
		got[name] = see()
	}
	got["processes it can start"] = forks() // last: nothing can be started afterwards
	if err := json.NewEncoder(os.NewFile(3, "findings")).Encode(got); err != nil {
		panic(err)
	}
}

func (p prey) tries() map[string]func() error {
	read := func(name string) func() error {
		return func() error { _, err := os.ReadFile(name); return err }
	}
	write := func(name string) func() error {
		return func() error { return os.WriteFile(name, []byte("x"), 0o600) }
	}
	dial := func(network, address string) func() error {
		return func() error {
			c, err := net.Dial(network, address)
			if err == nil {
				c.Close()
			}
			return err
		}
	}
	return map[string]func() error{
		"read shadow":             read("/etc/shadow"),
		"read passwd":             read("/etc/passwd"),
		"read a file not given":   read(p.Secret),
		"read another machine's":  read(p.Other + "/file"),
		"read the host's cmdline": read("/proc/cmdline"),
		"read the host's sysctls": read("/proc/sys/kernel/hostname"),
		"read what it was given":  read(p.ReadOnly + "/file"),
		"leave by ..":             read(strings.Repeat("../", 40) + p.Secret),
		"write /":                 write("/x"),
		"write /usr":              write("/usr/x"),
		"write /dev":              write("/dev/x"),
		"write read-only":         write(p.ReadOnly + "/file"),
		"create in read-only":     write(p.ReadOnly + "/x"),
		"write writable":          write(p.Writable + "/x"),
		"chmod read-only":         func() error { return os.Chmod(p.ReadOnly+"/file", 0o777) },
		"remount read-only":       func() error { return unix.Mount("", p.ReadOnly, "", unix.MS_REMOUNT|unix.MS_BIND, "") },
		"mount":                   func() error { return unix.Mount("none", p.Writable, "tmpfs", 0, "") },
		"unmount":                 func() error { return unix.Unmount("/proc", unix.MNT_DETACH) },
		"chroot":                  func() error { return unix.Chroot(p.Writable) },
		"make a device":           func() error { return unix.Mknod(p.Writable+"/dev", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) },
		"open a device":           read(p.Writable + "/device"),
		"open kvm":                read("/dev/kvm"),
		"open the host's memory":  read("/dev/mem"),
		"write a device's file":   write("/dev/null"),
		"setuid":                  func() error { return syscall.Setuid(0) },
		"setgid":                  func() error { return syscall.Setgid(0) },
		"setgroups":               func() error { return syscall.Setgroups([]int{0}) },
		"chown":                   func() error { return os.Chown(p.Writable, 0, 0) },
		"hostname":                func() error { return unix.Sethostname([]byte("x")) },
		"raise nofile":            raise(unix.RLIMIT_NOFILE),
		"raise nproc":             raise(unix.RLIMIT_NPROC),
		"raise core":              raise(unix.RLIMIT_CORE),
		"raise file size":         raise(unix.RLIMIT_FSIZE),
		"open files without end":  openAll,
		"lock memory":             func() error { return unix.Mlock(make([]byte, 1<<20)) },
		"user namespace":          inNamespace(syscall.CLONE_NEWUSER),
		"network namespace":       inNamespace(syscall.CLONE_NEWNET),
		"reach loopback":          dial("tcp", p.TCP),
		"reach an address":        dial("udp", "192.0.2.1:9"),
		"reach a socket":          dial("unix", p.Abstract),
		"raise the loopback":      loopbackUp,
		"packet socket":           socket(unix.AF_PACKET, unix.SOCK_RAW, 0),
		"raw socket":              socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP),
		"vsock":                   socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0),
		"netlink":                 socket(unix.AF_NETLINK, unix.SOCK_RAW, 0),
		"ipv6":                    socket(unix.AF_INET6, unix.SOCK_STREAM, 0),
		"crypto socket":           socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0),
		"trace its parent":        func() error { return unix.PtraceAttach(os.Getppid()) },
		"trace itself":            func() error { return unix.PtraceAttach(1) },
		"kill everybody":          func() error { return unix.Kill(-1, unix.SIGKILL) },
		"kill a neighbour":        func() error { return unix.Kill(2, unix.SIGKILL) },
		"be given new privileges": func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0) },
		"leave by way of /proc":   func() error { return unix.Access("/proc/1/root/etc/shadow", unix.R_OK) },
	}
}

func socket(family, kind, protocol int) func() error {
	return func() error {
		fd, err := unix.Socket(family, kind, protocol)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
}

func (p prey) sights() map[string]func() string {
	return map[string]func() string{
		"processes": func() string { return strings.Join(list("/proc"), " ") },
		"devices":   func() string { return strings.Join(list("/dev"), " ") },
		"etc":       func() string { return strings.Join(list("/etc"), " ") },
		"env":       func() string { return strings.Join(os.Environ(), " ") },
		"name":      func() string { n, _ := os.Hostname(); return n },
		"interfaces": func() string {
			b, _ := os.ReadFile("/proc/self/net/dev") // two lines of heading, then one for each
			var s []string
			for _, line := range strings.Split(string(b), "\n")[2:] {
				name, _, ok := strings.Cut(line, ":")
				if ok {
					s = append(s, strings.TrimSpace(name))
				}
			}
			return strings.Join(s, " ")
		},
		"cgroup": func() string {
			b, _ := os.ReadFile("/proc/self/cgroup")
			paths := map[string]bool{}
			for line := range strings.Lines(string(b)) {
				fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
				if slices.Contains([]string{"", "cpu", "memory", "pids", "blkio", "freezer"}, fields[1]) && (fields[1] != "" || len(b) < 20) {
					paths[fields[2]] = true
				}
			}
			return strings.Join(slices.Sorted(maps.Keys(paths)), " ")
		},
		"a program's capabilities": func() string {
			out, err := exec.Command(p.ReadOnly+"/capable", "/proc/self/status").CombinedOutput()
			for line := range strings.Lines(string(out)) {
				if set, ok := strings.CutPrefix(line, "CapEff:"); ok {
					return strings.TrimSpace(set)
				}
			}
			return string(out) + errString(err)
		},
		"setuid program's uid": func() string {
			out, err := exec.Command(p.ReadOnly+"/suid", "-u").CombinedOutput()
			return strings.TrimSpace(string(out)) + errString(err)
		},
		"credentials": func() string {
			b, _ := os.ReadFile("/proc/self/status")
			var s []string
			for _, line := range strings.Split(string(b), "\n") {
				name, value, _ := strings.Cut(line, ":")
				if slices.Contains([]string{"Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"}, name) {
					s = append(s, name+" "+strings.Join(slices.Compact(strings.Fields(value)), " "))
				}
			}
			slices.Sort(s) // the kernel's order has changed over time
			return strings.Join(s, ", ")
		},
	}
}

func errString(err error) string {
	if err == nil {
		return ""
	}
	return " " + err.Error()
}

func list(dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return []string{err.Error()}
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func raise(resource int) func() error {
	return func() error {
		var l unix.Rlimit
		if err := unix.Getrlimit(resource, &l); err != nil {
			return err
		}
		return unix.Setrlimit(resource, &unix.Rlimit{Cur: l.Max + 1, Max: l.Max + 1})
	}
}

func openAll() error {
	var all []*os.File
	defer func() {
		for _, f := range all {
			f.Close()
		}
	}()
	for range 2000 {
		f, err := os.Open("/dev/null")
		if err != nil {
			return err
		}
		all = append(all, f)
	}
	return nil
}

func inNamespace(flag uintptr) func() error {
	return func() error {
		cmd := exec.Command("/bin/true")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flag}
		return cmd.Run()
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

func forks() string {
	for n := range 1000 {
		if err := exec.Command("/bin/sleep", "1000").Start(); err != nil {
			if n < 256 && errors.Is(err, unix.EAGAIN) {
				return "less than 256"
			}
			return fmt.Sprintf("%d, then %v", n, err)
		}
	}
	return "1000"
}

// programs copies id(1), setuid root, and cat(1), which has all capabilities, to where the hostile program will find them.
func programs(dir string) error {
	all := make([]byte, 20) // struct vfs_cap_data: revision 2, effective; permitted and inheritable, twice
	binary.LittleEndian.PutUint32(all, 0x02000001)
	binary.LittleEndian.PutUint32(all[4:], 1<<32-1)
	return errors.Join(copyTo("/usr/bin/id", dir+"/suid"), os.Chmod(dir+"/suid", 0o755|os.ModeSetuid),
		copyTo("/bin/cat", dir+"/capable"), unix.Setxattr(dir+"/capable", "security.capability", all, 0))
}

func copyTo(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}
