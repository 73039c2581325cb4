// Package hostvsock tells who listens on this host's vsock (vsock(7)), where guests with a vhost-vsock device reach him.
//
// Nothing stands between those and him: Linux has no firewall for vsock, and that of Debian 12 and 13 has no namespaces for it. So all that can
// be done is to look, by sock_diag(7) as `ss --vsock -l` does, and to give no machine such a device while somebody is there. It looks and changes nothing.
//
// Linux only. It imports nothing of this module.
package hostvsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Listener is a socket that takes connections.
type Listener struct {
	// CID is the address that it is bound to: VMADDR_CID_ANY, or one of the host's own.
	CID, Port uint32
}

// Reached tells whether guests reach it: they may connect to the host's address, 2, alone.
func (l Listener) Reached() bool {
	return l.CID == unix.VMADDR_CID_ANY || l.CID == unix.VMADDR_CID_HOST
}

// Strangers gives an error that names the ports where guests would reach somebody; nil where there is none. Nothing of Paddock listens on a
// host's vsock, so whoever does is a stranger. It looks in the calling process's network namespace and is done in microseconds.
func Strangers() error {
	l, err := ask()
	if err != nil {
		return err
	}
	return strangers(l)
}

// StrangersEverywhere is Strangers for the network namespaces of all processes, to which a guest's connections do not keep: a container's
// listener is reached like the host's. Without root it looks only where this user may. A socket whose namespace no process is in any more
// is not found.
func StrangersEverywhere() error {
	var l []Listener
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, in whatever namespace it is
		l, err = everywhere()
	}()
	<-done
	if err != nil {
		return err
	}
	return strangers(l)
}

func strangers(all []Listener) error {
	var ports []string
	for _, l := range all {
		if l.Reached() {
			ports = append(ports, fmt.Sprint(l.Port))
		}
	}
	switch len(ports) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("port %s of this host's vsock is listened on, and guests would reach it (ss --vsock -lp)", ports[0])
	}
	return fmt.Errorf("ports %s of this host's vsock are listened on, and guests would reach them (ss --vsock -lp)", strings.Join(ports, ", "))
}

// everywhere asks in each network namespace that a process is in. It leaves the thread in one of them.
func everywhere() ([]Listener, error) {
	all, err := ask()
	if err != nil {
		return nil, err
	}
	own, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("network namespaces: %w", err)
	}
	seen := map[string]bool{own: true}
	paths, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		name, err := os.Readlink(path)
		if err != nil || seen[name] { // the process has ended, or is another user's
			continue
		}
		entered, err := enter(path)
		if err != nil {
			return nil, fmt.Errorf("network namespace of %s: %w", path, err)
		}
		if !entered {
			continue
		}
		seen[name] = true
		l, err := ask()
		if err != nil {
			return nil, err
		}
		all = append(all, l...)
	}
	return all, nil
}

// enter takes the thread into a process's network namespace, unless the process has ended or this user may not.
func enter(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrPermission) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
	if errors.Is(err, os.ErrPermission) {
		return false, nil
	}
	return err == nil, err
}

// The request and its answers (linux/sock_diag.h, linux/vm_sockets_diag.h).
const (
	sockDiagByFamily = 20
	requestSize      = 24 // struct vsock_diag_req
	answerSize       = 32 // struct vsock_diag_msg
	stateListen      = 10 // TCP_LISTEN, which vsock has too
)

// ask lists those that listen in the thread's network namespace.
func ask() ([]Listener, error) {
	b := make([]byte, requestSize)
	b[0] = unix.AF_VSOCK
	binary.NativeEndian.PutUint32(b[4:], 1<<stateListen)
	r := nl.NewNetlinkRequest(sockDiagByFamily, unix.NLM_F_DUMP)
	r.AddRawData(b)
	answers, err := r.Execute(unix.NETLINK_SOCK_DIAG, sockDiagByFamily)
	if errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("who listens on this host's vsock cannot be told: %w (modprobe vsock_diag)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("who listens on this host's vsock cannot be told: %w", err)
	}
	var l []Listener
	for _, a := range answers {
		one, err := parse(a)
		if err != nil {
			return nil, err
		}
		l = append(l, one)
	}
	return l, nil
}

func parse(b []byte) (Listener, error) {
	if len(b) < answerSize || b[0] != unix.AF_VSOCK || b[2] != stateListen {
		return Listener{}, fmt.Errorf("who listens on this host's vsock cannot be told: the kernel answered % x", b)
	}
	return Listener{CID: binary.NativeEndian.Uint32(b[4:]), Port: binary.NativeEndian.Uint32(b[8:])}, nil
}
