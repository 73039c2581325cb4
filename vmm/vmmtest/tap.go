package vmmtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
)

// etherType is IEEE 802's for experiments: what the suite's frames are.
const etherType = 0x88b5

// Frame is one between the machine and its host.
func Frame(toGuest bool, payload string) []byte {
	guest, err := net.ParseMAC(vmm.GuestMAC)
	if err != nil {
		panic(err)
	}
	host := []byte{0x02, 0xfc, 0, 0, 0, 1}
	from, to := []byte(guest), host
	if toGuest {
		from, to = to, from
	}
	frame := binary.BigEndian.AppendUint16(append(append([]byte{}, to...), from...), etherType)
	return append(frame, payload...)
}

// Wire is a tap interface in a network namespace of its own, which lives as long as the test. What a machine sends by it can be seen, and
// frames be sent to the machine.
type Wire struct {
	// Tap is a machine's end.
	Tap  *os.File
	wire *os.File // a raw socket on the interface
	// announced says that the VMM sends announcements, which are passed over.
	announced bool
}

// NewWire makes one. It needs root, and skips, or fails where REQUIRE_ROOT is set, where it cannot have it.
func NewWire(t testing.TB) *Wire {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("needs root")
		}
		t.Skip("SKIPPED: needs root to make a network namespace: no network card is tried")
	}
	var w Wire
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		made <- w.make()
	}()
	must(t, <-made)
	t.Cleanup(func() {
		_ = w.Tap.Close()
		_ = w.wire.Close()
	})
	return &w
}

// make makes it in the calling thread's new namespace, which its descriptors hold.
func (w *Wire) make() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("new network namespace: %w", err)
	}
	tap, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	w.Tap = tap
	ifr, err := unix.NewIfreq("tap0")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(int(tap.Fd()), unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("make a tap: %w", err)
	}
	// Without IPv6 the interface itself says nothing.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	w.wire = os.NewFile(uintptr(fd), "wire")
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring the tap up: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: int(ifr.Uint32())})
}

func networkOrder(v uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v))
}

// Attach is what a machine on the wire is given.
func (w *Wire) Attach() vmm.Attach { return vmm.Attach{Tap: w.Tap} }

// Send sends a frame to the machine.
func (w *Wire) Send(frame []byte) error {
	_, err := w.wire.Write(frame)
	return err
}

// Receive waits for a frame that the machine sends; os.ErrDeadlineExceeded where it sends none within d.
func (w *Wire) Receive(d time.Duration) ([]byte, error) {
	if err := w.wire.SetReadDeadline(time.Now().Add(d)); err != nil {
		return nil, err
	}
	mac, err := net.ParseMAC(vmm.GuestMAC)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 64<<10)
	for {
		n, err := w.wire.Read(b)
		if w.announced && n >= 14 && b[12] == 0x80 && b[13] == 0x35 { // RARP
			continue
		}
		if err != nil || n >= 12 && bytes.Equal(b[6:12], mac) {
			return b[:n], err
		}
	}
}
