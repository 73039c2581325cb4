package jail_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker/jail"
	"github.com/paddockvm/paddock/worker/jail/stub"
)

// none are the arguments of a system call that does not matter: it fails whatever they are, and by its own error.
const none = ^uintptr(0)

// calls are all that the filter denies. With nonsense for arguments none of them does anything, and the kernel's own errors are others,
// or the same where a capability is wanted first: root's answers tell them apart.
var calls = map[string][]uintptr{
	"mount": {unix.SYS_MOUNT}, "umount2": {unix.SYS_UMOUNT2}, "pivot_root": {unix.SYS_PIVOT_ROOT}, "chroot": {unix.SYS_CHROOT},
	"open_tree": {unix.SYS_OPEN_TREE}, "move_mount": {unix.SYS_MOVE_MOUNT}, "fsopen": {unix.SYS_FSOPEN}, "fsconfig": {unix.SYS_FSCONFIG},
	"fsmount": {unix.SYS_FSMOUNT}, "fspick": {unix.SYS_FSPICK}, "mount_setattr": {unix.SYS_MOUNT_SETATTR}, "swapon": {unix.SYS_SWAPON},
	"swapoff": {unix.SYS_SWAPOFF}, "quotactl": {unix.SYS_QUOTACTL}, "quotactl_fd": {unix.SYS_QUOTACTL_FD}, "acct": {unix.SYS_ACCT},
	"mknod": {unix.SYS_MKNOD}, "mknodat": {unix.SYS_MKNODAT}, "name_to_handle_at": {unix.SYS_NAME_TO_HANDLE_AT},
	"open_by_handle_at": {unix.SYS_OPEN_BY_HANDLE_AT}, "fanotify_init": {unix.SYS_FANOTIFY_INIT}, "ptrace": {unix.SYS_PTRACE},
	"process_vm_readv": {unix.SYS_PROCESS_VM_READV}, "process_vm_writev": {unix.SYS_PROCESS_VM_WRITEV}, "pidfd_getfd": {unix.SYS_PIDFD_GETFD},
	"kcmp": {unix.SYS_KCMP}, "unshare": {unix.SYS_UNSHARE}, "setns": {unix.SYS_SETNS}, "bpf": {unix.SYS_BPF},
	"perf_event_open": {unix.SYS_PERF_EVENT_OPEN}, "kexec_load": {unix.SYS_KEXEC_LOAD}, "kexec_file_load": {unix.SYS_KEXEC_FILE_LOAD},
	"init_module": {unix.SYS_INIT_MODULE}, "finit_module": {unix.SYS_FINIT_MODULE}, "delete_module": {unix.SYS_DELETE_MODULE},
	"syslog": {unix.SYS_SYSLOG}, "reboot": {unix.SYS_REBOOT}, "iopl": {unix.SYS_IOPL}, "ioperm": {unix.SYS_IOPERM},
	"modify_ldt": {unix.SYS_MODIFY_LDT}, "io_uring_setup": {unix.SYS_IO_URING_SETUP}, "io_uring_enter": {unix.SYS_IO_URING_ENTER},
	"io_uring_register": {unix.SYS_IO_URING_REGISTER}, "userfaultfd": {unix.SYS_USERFAULTFD}, "keyctl": {unix.SYS_KEYCTL},
	"add_key": {unix.SYS_ADD_KEY}, "request_key": {unix.SYS_REQUEST_KEY}, "settimeofday": {unix.SYS_SETTIMEOFDAY},
	"clock_settime": {unix.SYS_CLOCK_SETTIME}, "clock_adjtime": {unix.SYS_CLOCK_ADJTIME}, "adjtimex": {unix.SYS_ADJTIMEX},
	"sethostname": {unix.SYS_SETHOSTNAME}, "setdomainname": {unix.SYS_SETDOMAINNAME}, "vhangup": {unix.SYS_VHANGUP},
	"clone a namespace": {unix.SYS_CLONE, unix.CLONE_NEWUTS}, "a call of x32": {0x40000000 | unix.SYS_GETPID},
	"a socket of vsock": {unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0}, "a socket of netlink": {unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, 0},
	"a socket of xdp": {unix.SYS_SOCKET, unix.AF_XDP, unix.SOCK_RAW, 0}, "a socket of inet6": {unix.SYS_SOCKET, unix.AF_INET6, unix.SOCK_STREAM, 0},
}

// tryCalls makes each of them, and tells the error. It is the hostile program's, and the tests' own to see what there is without a filter.
func tryCalls() (lines []string) {
	for name, call := range calls {
		lines = append(lines, name+" "+try(call))
	}
	slices.Sort(lines)
	return append(lines, "clone3 "+try([]uintptr{unix.SYS_CLONE3, 0, 0}), "getpid "+try([]uintptr{unix.SYS_GETPID}))
}

func try(call []uintptr) string {
	args := [6]uintptr{none, none, none, none, none, none}
	copy(args[:], call[1:])
	if _, _, errno := unix.RawSyscall6(call[0], args[0], args[1], args[2], args[3], args[4], args[5]); errno != 0 {
		return unix.ErrnoName(errno)
	}
	return "done"
}

// filtered is a program with all of root's capabilities behind the filter alone.
func filtered() {
	runtime.LockOSThread()
	if err := stub.Filter(); err != nil {
		panic(err)
	}
	for _, line := range tryCalls() {
		fmt.Println(line)
	}
}

// Each call is denied a VMM, and that by the filter: it is denied root too.
func TestFilter(t *testing.T) {
	l := newLauncher(t, jail.Config{})
	r, m := start(t, l, vmm.Command{}, prey{Act: "calls"})
	got := tells(t, r, "")
	<-m.Done()
	root, err := exec.CommandContext(t.Context(), self(t), "filtered", "").Output()
	must(t, err)
	var want []string
	for name := range calls {
		want = append(want, name+" EPERM")
	}
	slices.Sort(want)
	want = append(want, "clone3 ENOSYS", "getpid done")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("in the jail (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, strings.Split(strings.TrimSpace(string(root)), "\n")); diff != "" {
		t.Errorf("root, behind the filter (-want +got):\n%s", diff)
	}
}

// Programs of 32 bits have other numbers for their calls.
func TestFilterOtherArchitecture(t *testing.T) {
	l := newLauncher(t, jail.Config{})
	name := filepath.Join(t.TempDir(), "small")
	must(t, os.WriteFile(name, small(), 0o755))
	if err := exec.Command(name).Run(); err != nil { // it has nothing to deny then
		if !errors.Is(err, syscall.ENOEXEC) {
			t.Fatal(err)
		}
		return
	}
	m := launch(t, l, vmm.Command{Name: "m-0", Path: name, ReadOnly: []string{name}})
	<-m.Done()
	exit, ok := errors.AsType[*exec.ExitError](m.Err())
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGSYS {
		t.Errorf("it ended with %v, want SIGSYS", m.Err())
	}
}

// small is a program for i386 (elf(5)) that does nothing but exit(0).
func small() []byte {
	code := []byte{0x31, 0xdb, 0x31, 0xc0, 0x40, 0xcd, 0x80} // xor ebx,ebx; xor eax,eax; inc eax; int 0x80
	const base, headers = 0x08048000, 52 + 32
	b := []byte("\x7fELF\x01\x01\x01")
	b = append(b, make([]byte, 9)...)
	u16, u32 := binary.LittleEndian.AppendUint16, binary.LittleEndian.AppendUint32
	b = u32(u16(u16(b, 2), 3), 1)                              // executable, i386, version
	b = u32(u32(u32(u32(b, base+headers), 52), 0), 0)          // entry, program headers, sections, flags
	b = u16(u16(u16(u16(u16(u16(b, 52), 32), 1), 0), 0), 0)    // sizes and counts
	b = u32(u32(u32(u32(b, 1), 0), base), base)                // load, from 0, to
	b = u32(u32(u32(u32(b, headers+7), headers+7), 5), 0x1000) // sizes, read and execute, alignment
	return append(b, code...)
}
