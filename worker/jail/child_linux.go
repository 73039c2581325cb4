package jail

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func memfile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// lockByte locks a byte of f for this open file (fcntl(2), "Open file description locks"); false where another has it.
func lockByte(f *os.File, n int) (bool, error) {
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: int64(n), Len: 1})
	if err == unix.EAGAIN || err == unix.EACCES {
		return false, nil
	}
	return err == nil, err
}

func unlockByte(f *os.File, n int) {
	_ = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Start: int64(n), Len: 1}) // a lock of ours is there
}

// executing is the stub's last word, if the VMM can be executed: the launcher tells that from a stub that died.
const executing = "\x00"

// Child is the stub: it builds the walls around itself and becomes the VMM. arg is what Launch gave after Self: how many descriptors
// are the VMM's. It does not return; what fails is written to the launcher.
func Child(arg string) {
	runtime.LockOSThread() // credentials are a thread's, and this one executes
	files, err := strconv.Atoi(arg)
	if err != nil {
		fmt.Fprintln(os.Stderr, "jail: started by hand")
		os.Exit(2)
	}
	told, failure := os.NewFile(uintptr(3+files), "setup"), os.NewFile(uintptr(4+files), "failure")
	unix.CloseOnExec(3 + files)
	unix.CloseOnExec(4 + files)
	var s setup
	err = json.NewDecoder(told).Decode(&s)
	if err == nil {
		err = s.become(failure)
	}
	_, _ = failure.WriteString(err.Error()) // nobody else could be told
	os.Exit(1)
}

// become builds the walls, in this order: what needs privileges first, then the privileges go.
func (s *setup) become(parent *os.File) error {
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"hostname", func() error { return unix.Sethostname([]byte(s.Hostname)) }},
		{"root", s.root},
		{"limits", s.limits},
		{"privileges", s.drop},
		{"death signal", func() error { return dieWith(parent) }},
		{"descriptors", func() error { return unix.CloseRange(uint(3+s.Files), 1<<31-1, unix.CLOSE_RANGE_CLOEXEC) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return s.execute(int(parent.Fd()))
}

// execute says its last word and becomes the VMM. It bounds the address space before, where the command says by what, and this program
// itself has mapped more than a VMM may: from there on nothing is allocated, not even for an error, which is told from here.
func (s *setup) execute(parent int) error {
	path, err := unix.BytePtrFromString(s.Path)
	if err != nil {
		return fmt.Errorf("execute %q: %w", s.Path, err)
	}
	argv, err := syscall.SlicePtrFromStrings(append([]string{s.Path}, s.Args...))
	if err != nil {
		return fmt.Errorf("arguments of %s: %w", s.Path, err)
	}
	env, err := syscall.SlicePtrFromStrings([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
	if err != nil {
		return err
	}
	failure := append(make([]byte, 0, len(s.Path)+200), "execute "+s.Path+": "...)
	if _, err := unix.Write(parent, []byte(executing)); err != nil {
		return err
	}
	limit := unix.Rlimit{Cur: s.Memory, Max: s.Memory}
	errno := syscall.Errno(0)
	if s.Memory > 0 {
		_, _, errno = unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_AS, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	}
	if errno == 0 {
		_, _, errno = unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&env[0])))
	}
	_, _ = unix.Write(parent, append(failure, errno.Error()...)) // nobody else could be told
	os.Exit(1)
	return nil
}

// bind is one thing from outside that is seen inside.
type bind struct {
	path     string
	fd       int // of the thing, opened before anything is covered
	link     string
	dir      bool
	readOnly bool
	device   bool
}

// newTree is where the new root is built: a directory that every system has. It is covered in this mount namespace only. The root is a
// directory in it and not its top: who is chrooted cannot make user namespaces (user_namespaces(7), EPERM), in which it would have
// all capabilities again.
const (
	newTree = "/tmp"
	newRoot = newTree + "/root"
)

// root makes an empty root, puts into it what the VMM may see, and leaves the old one.
func (s *setup) root() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	var binds []bind
	for _, group := range []struct {
		paths []string
		as    bind
		may   bool // be missing
	}{
		{s.System, bind{readOnly: true}, true},
		{s.ReadOnly, bind{readOnly: true}, false},
		{s.Writable, bind{}, false},
		{s.Devices, bind{device: true}, false},
	} {
		for _, p := range group.paths {
			b, err := group.as.open(p)
			if os.IsNotExist(err) && group.may {
				continue
			}
			if err != nil {
				return err
			}
			binds = append(binds, b)
		}
	}
	if err := unix.Mount("tmpfs", newTree, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m,nr_inodes=1k"); err != nil {
		return fmt.Errorf("mount the new root: %w", err)
	}
	if err := os.Mkdir(newRoot, 0o755); err != nil {
		return err
	}
	for _, b := range binds {
		if err := b.mount(); err != nil {
			return fmt.Errorf("%s: %w", b.path, err)
		}
	}
	proc := filepath.Join(newRoot, "proc")
	if err := os.Mkdir(proc, 0o555); err != nil {
		return err
	}
	// Of /proc a VMM needs itself; the rest tells of the host (proc(5), "subset").
	if err := unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, "subset=pid"); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	if err := unix.Chdir(newTree); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil { // the old root lies over the new one (pivot_root(2))
		return fmt.Errorf("leave the old root: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	if err := unix.Chroot(filepath.Base(newRoot)); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	return unix.Chdir("/")
}

// open holds on to a path, as what b says.
func (b bind) open(p string) (bind, error) {
	st, err := os.Lstat(p)
	if err != nil {
		return b, err
	}
	b.path, b.dir = p, st.IsDir()
	switch {
	case b.device && st.Mode()&os.ModeCharDevice == 0:
		return b, fmt.Errorf("%s is no character device", p)
	case st.Mode()&os.ModeSymlink != 0:
		b.link, err = os.Readlink(p)
	default:
		b.fd, err = unix.Open(p, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	}
	return b, err
}

func (b *bind) mount() error {
	to := filepath.Join(newRoot, b.path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	switch {
	case b.link != "":
		return os.Symlink(b.link, to)
	case b.dir:
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
	default:
		f, err := os.OpenFile(to, os.O_CREATE, 0o444)
		if err != nil {
			return err
		}
		_ = f.Close()
	}
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(b.fd), to, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND | unix.MS_NOSUID)
	if b.readOnly {
		flags |= unix.MS_RDONLY
	}
	if !b.device {
		flags |= unix.MS_NODEV
	}
	return unix.Mount("", to, "", flags, "")
}

// limits are the process's, whatever its guest makes it do.
func (s *setup) limits() error {
	for _, l := range []struct {
		resource int
		value    uint64
	}{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_NOFILE, 1024},
		{unix.RLIMIT_NPROC, 256}, // threads of this uid, which is this machine's alone
		{unix.RLIMIT_MEMLOCK, 64 << 10},
		{unix.RLIMIT_MSGQUEUE, 0},
	} {
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: l.value, Max: l.value}); err != nil {
			return err
		}
	}
	return nil
}

// drop gives up every privilege for good. All of it is of this thread, which then executes: the kernel ends the others.
func (s *setup) drop() error {
	for capability := uintptr(0); ; capability++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); err == unix.EINVAL {
			break // past the last that this kernel has
		} else if err != nil {
			return fmt.Errorf("drop capability %d: %w", capability, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	id := uintptr(s.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("drop groups: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, id, id, id); errno != 0 {
		return fmt.Errorf("set gid: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, id, id, id); errno != 0 {
		return fmt.Errorf("set uid: %w", errno)
	}
	// With the uid go all capabilities but the inheritable ones, which root may have been given (capabilities(7)).
	none := [2]unix.CapUserData{}
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		return fmt.Errorf("drop inheritable capabilities: %w", err)
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// dieWith has the kernel kill this process with the thread that forked it. A change of uid clears that, so it comes after; a launcher
// that has died before it shows in the pipe that it held.
func dieWith(parent *os.File) error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	fds := []unix.PollFd{{Fd: int32(parent.Fd()), Events: unix.POLLOUT}}
	if _, err := unix.Poll(fds, 0); err == nil && fds[0].Revents&unix.POLLERR != 0 {
		os.Exit(1)
	}
	return nil
}
