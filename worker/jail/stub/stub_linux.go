// Package stub is the process that becomes a VMM: it builds the jail's walls around itself, gives up what it may do, and executes. The
// launcher's side, and what the walls are for, is package jail.
//
// It imports little, and begins as soon as that is initialised: see the init function below.
package stub

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

// Setup is what the stub is told.
type Setup struct {
	Path         string
	Args         []string
	UID          int
	Files        int // descriptors from 3 on that the VMM gets
	Doors        int // descriptors after those and our two, by which it enters its cgroups
	Userns       bool
	AddressSpace uint64
	FileSize     uint64
	System       []string // read-only too, where they exist
	ReadOnly     []string
	Writable     []string
	Devices      []string
	Groups       []uint32 // by which it may open its devices
	Hostname     string
}

// Command starts the stub in whatever program has this package: its first argument, the second being Child's.
const Command = "jail-exec"

// A program that is started as the stub never gets to its main function, nor to the initialisation of what else it is made of: that takes
// the paddock binary 6 ms of processor time, for each machine. Go initialises a package as soon as those that it imports are (Go
// specification, "Package initialization"). docs/adr/0004-the-stub-begins-early.md has the figures.
func init() { //nolint:gochecknoinits // see above
	if len(os.Args) == 3 && os.Args[1] == Command {
		Child(os.Args[2])
	}
}

// Executing is the stub's last word, if the VMM can be executed: the launcher tells that from a stub that died.
const Executing = "\x00"

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
	var s Setup
	err = json.NewDecoder(told).Decode(&s)
	if err == nil {
		err = s.become(failure)
	}
	_, _ = failure.WriteString(err.Error()) // nobody else could be told
	os.Exit(1)
}

// become builds the walls, in this order: what needs privileges first, then the privileges go.
func (s *Setup) become(parent *os.File) error {
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
func (s *Setup) enterCgroups() error {
	for i := range s.Doors {
		if _, err := unix.Write(5+s.Files+i, []byte("0")); err != nil {
			return err
		}
	}
	return unix.Unshare(unix.CLONE_NEWCGROUP)
}

// execute says its last word and becomes the VMM. It bounds the address space before, where the command says by what, and this program
// itself has mapped more than a VMM may: from there on nothing is allocated, not even for an error, which is told from here.
func (s *Setup) execute(parent int) error {
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
	if _, err := unix.Write(parent, []byte(Executing)); err != nil {
		return err
	}
	limit := unix.Rlimit{Cur: s.AddressSpace, Max: s.AddressSpace}
	errno := syscall.Errno(0)
	if s.AddressSpace > 0 {
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
