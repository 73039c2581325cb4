package hostvsock_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm/hostvsock"
)

// answer is a struct vsock_diag_msg: family, type, state, shutdown; then the addresses of both ends, an inode and a cookie.
func answer(state byte, cid, port uint32) []byte {
	b := []byte{unix.AF_VSOCK, unix.SOCK_STREAM, state, 0}
	for _, n := range []uint32{cid, port, math.MaxUint32, math.MaxUint32, 4711, 1, 0} {
		b = binary.NativeEndian.AppendUint32(b, n)
	}
	return b
}

func TestParse(t *testing.T) {
	l, err := hostvsock.Parse(answer(10, unix.VMADDR_CID_HOST, 22))
	if err != nil || l != (hostvsock.Listener{CID: 2, Port: 22}) {
		t.Errorf("%+v, %v", l, err)
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "short": answer(10, 2, 22)[:31], "another family": append([]byte{unix.AF_INET}, answer(10, 2, 22)[1:]...), "one that is connected": answer(1, 2, 22),
	} {
		if l, err := hostvsock.Parse(b); err == nil {
			t.Errorf("%s: %+v", name, l)
		}
	}
}

func TestJudge(t *testing.T) {
	const own, loopback = 5, unix.VMADDR_CID_LOCAL
	if err := hostvsock.Judge([]hostvsock.Listener{{loopback, 22}, {own, 22}}); err != nil {
		t.Errorf("no guest reaches those: %v", err)
	}
	for want, all := range map[string][]hostvsock.Listener{
		"port 22 of":          {{unix.VMADDR_CID_ANY, 22}, {loopback, 23}},
		"ports 22, 100000 of": {{unix.VMADDR_CID_HOST, 22}, {unix.VMADDR_CID_ANY, 100_000}},
	} {
		if err := hostvsock.Judge(all); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: want one that names %q", err, want)
		}
	}
}

// TestListener: somebody who listens is named, and where the kernel cannot tell, that is no word that nobody does. The network namespace in
// which he listens is the test's own, so that he is in nobody's way.
func TestListener(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("it wants root")
		}
		t.Skip("SKIPPED: a network namespace wants root")
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		if os.Getenv("REQUIRE_KVM") != "" {
			t.Fatalf("this kernel has no vsock: %v", err)
		}
		t.Skipf("SKIPPED: %v: this kernel has no vsock", err)
	}
	_ = unix.Close(fd)
	var port uint32
	var before, while error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		before = hostvsock.Strangers()
		fd, port, err = listen()
		while = hostvsock.Strangers()
		_ = unix.Close(fd)
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("before: %v; while somebody listens: %v", before, while)
	switch told := !errors.Is(while, os.ErrNotExist); {
	case while == nil:
		t.Error("somebody listens, and nobody is seen")
	case told && before != nil:
		t.Errorf("nobody listened: %v", before)
	case told && !strings.Contains(while.Error(), fmt.Sprintf("port %d of", port)):
		t.Errorf("port %d: %v", port, while)
	case !told && (!errors.Is(before, os.ErrNotExist) || !strings.Contains(while.Error(), "modprobe vsock_diag")):
		t.Errorf("a kernel that cannot tell: %v, %v", before, while)
	}
}

// listen takes connections on a port that the kernel chooses.
func listen() (fd int, port uint32, err error) {
	if fd, err = unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, 0, err
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: unix.VMADDR_PORT_ANY}), unix.Listen(fd, 1)); err != nil {
		return fd, 0, err
	}
	own, err := unix.Getsockname(fd)
	if err != nil {
		return fd, 0, err
	}
	return fd, own.(*unix.SockaddrVM).Port, nil
}
