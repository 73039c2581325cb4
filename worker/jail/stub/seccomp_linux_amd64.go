package stub

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// denied are system calls that no VMM makes once it runs, and that a hostile one could use against the kernel or the host. Some want a
// capability, which it does not have: this is the second wall there.
var denied = []uint32{
	// file systems and mounts
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN,
	unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_QUOTACTL,
	unix.SYS_QUOTACTL_FD, unix.SYS_ACCT, unix.SYS_MKNOD, unix.SYS_MKNODAT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT,
	unix.SYS_FANOTIFY_INIT,
	// other processes, namespaces
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_KCMP, unix.SYS_UNSHARE, unix.SYS_SETNS,
	// the kernel's own programs and its inside
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE,
	unix.SYS_DELETE_MODULE, unix.SYS_SYSLOG, unix.SYS_REBOOT, unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT,
	// what is large, little used, and where many holes were: QEMU and Cloud Hypervisor go on without io_uring
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_USERFAULTFD, unix.SYS_KEYCTL, unix.SYS_ADD_KEY,
	unix.SYS_REQUEST_KEY,
	// what is the whole host's
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME,
	unix.SYS_VHANGUP,
}

// newNamespaces are clone(2)'s flags of what unshare(2) is denied for.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID |
	unix.CLONE_NEWNET

// seccomp takes the denied system calls away from this thread and what it becomes, for good. no_new_privs is set before.
func (*Setup) seccomp() error {
	filter := seccompFilter()
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

// seccompFilter is a program of the classic BPF over struct seccomp_data (seccomp(2)). What it does not name is allowed.
func seccompFilter() []unix.SockFilter {
	const (
		load     = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal    = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		notBelow = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		anyOf    = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		end      = unix.BPF_RET | unix.BPF_K

		number, arch, argument = 0, 4, 16 // offsets; of the first argument the lower half
		x32                    = 0x40000000
		deny                   = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
		lacking                = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	)
	f := []unix.SockFilter{
		{Code: load, K: arch},
		{Code: equal, K: unix.AUDIT_ARCH_X86_64, Jt: 1},
		{Code: end, K: unix.SECCOMP_RET_KILL_PROCESS}, // another architecture's numbers mean other calls
		{Code: load, K: number},
		{Code: notBelow, K: x32, Jf: 1},
		{Code: end, K: deny},
		// clone3 keeps its flags where no filter sees them; C libraries go on with clone where it is not there.
		{Code: equal, K: unix.SYS_CLONE3, Jf: 1},
		{Code: end, K: lacking},
		{Code: equal, K: unix.SYS_CLONE, Jf: 4},
		{Code: load, K: argument},
		{Code: anyOf, K: newNamespaces, Jf: 1},
		{Code: end, K: deny},
		{Code: end, K: unix.SECCOMP_RET_ALLOW},
		// Sockets are local, or of the empty network namespace. Others do not know of namespaces: by AF_VSOCK one machine would reach
		// the others' agents.
		{Code: equal, K: unix.SYS_SOCKET, Jf: 5},
		{Code: load, K: argument},
		{Code: equal, K: unix.AF_UNIX, Jt: 2},
		{Code: equal, K: unix.AF_INET, Jt: 1},
		{Code: end, K: deny},
		{Code: end, K: unix.SECCOMP_RET_ALLOW},
	}
	for i, call := range denied {
		f = append(f, unix.SockFilter{Code: equal, K: call, Jt: uint8(len(denied) - i)})
	}
	return append(f, unix.SockFilter{Code: end, K: unix.SECCOMP_RET_ALLOW}, unix.SockFilter{Code: end, K: deny})
}

// FilterLack asks the kernel whether it can do all of that.
func FilterLack() error {
	for _, action := range []uint32{unix.SECCOMP_RET_ERRNO, unix.SECCOMP_RET_KILL_PROCESS} {
		if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action))); errno != 0 {
			return fmt.Errorf("this kernel has no seccomp filters: %w", errno)
		}
	}
	return nil
}
