package jail

import (
	"encoding/json"
	"fmt"
	"os"
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
		{"cgroup", s.enterCgroups},
		{"hostname", func() error { return unix.Sethostname([]byte(s.Hostname)) }},
		{"root", s.root},
		{"limits", s.limits},
		{"privileges", s.drop},
		{"death signal", func() error { return dieWith(parent) }},
		{"system calls", s.seccomp},
		{"descriptors", func() error { return unix.CloseRange(uint(3+s.Files), 1<<31-1, unix.CLOSE_RANGE_CLOEXEC) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return s.execute(int(parent.Fd()))
}

// enterCgroups goes by the doors that it was given: this thread does, which becomes the VMM. And it shuts the host's tree of cgroups off: this one looks like the root from inside.
func (s *setup) enterCgroups() error {
	for i := range s.Doors {
		if _, err := unix.Write(5+s.Files+i, []byte("0")); err != nil {
			return err
		}
	}
	return unix.Unshare(unix.CLONE_NEWCGROUP)
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
