package qemu_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// channels are the ways to guests that this host has.
func channels(t testing.TB) []string {
	t.Helper()
	need(t)
	if vsockMissing(t) != nil {
		return []string{"serial"}
	}
	return []string{"serial", "vsock"}
}

func vsockMissing(t testing.TB) error {
	t.Helper()
	d := newDriver(t, qemu.Config{})
	caps, err := d.Probe(within(t))
	must(t, err)
	if caps.Channel == "vsock" {
		return nil
	}
	err = d.VsockError(within(t))
	if err != nil && os.Getenv("REQUIRE_KVM") != "" {
		t.Fatal(err)
	}
	return err
}

func needVsock(t testing.TB) {
	t.Helper()
	need(t)
	if err := vsockMissing(t); err != nil {
		t.Skipf("SKIPPED: %v: no machine with vsock is tested here (make test-kvm does)", err)
	}
}

// TestConformanceVsock is the suite once more: TestConformance has it over the serial port.
func TestConformanceVsock(t *testing.T) {
	needVsock(t)
	conformance(t, "vsock")
}

// TestNoVsock shows what a host without vsock says to who insists on it.
func TestNoVsock(t *testing.T) {
	need(t)
	d := newDriver(t, qemu.Config{Channel: "serial"})
	caps, err := d.Probe(within(t))
	must(t, err)
	if caps.Channel != "serial" || d.VsockError(within(t)) != nil || !strings.HasSuffix(caps.Key(), "|serial") {
		t.Errorf("%+v, %v, key %q", caps, d.VsockError(within(t)), caps.Key())
	}
	dir := t.TempDir()
	vmmtest.NoLeaks(t, dir)
	insisting := newDriver(t, qemu.Config{RunDir: dir, Channel: "vsock", CIDLock: filepath.Join(t.TempDir(), "no", "such", "directory")})
	if caps, err := insisting.Probe(within(t)); !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EAFNOSUPPORT) {
		t.Errorf("%+v, %v", caps, err)
	}
	auto := newDriver(t, qemu.Config{RunDir: dir, CIDLock: filepath.Join(t.TempDir(), "no", "such", "directory")})
	caps, err = auto.Probe(within(t))
	if err != nil || caps.Channel != "serial" || auto.VsockError(within(t)) == nil {
		t.Errorf("%+v, %v; vsock: %v", caps, err, auto.VsockError(within(t)))
	}
}

// TestCIDs shows that each machine has an address of its own, among all drivers of a host, and that it comes back with the machine's end.
func TestCIDs(t *testing.T) {
	needVsock(t)
	lock, guest := filepath.Join(t.TempDir(), "cids"), vmmtest.TestGuest{}
	cfg := qemu.Config{Channel: "vsock", CIDBase: 4242, CIDCount: 2, CIDLock: lock}
	one, two := newDriver(t, cfg), newDriver(t, cfg)
	template := vmmtest.Build(t, one, linux(t), guest)
	clone := func(d *qemu.Driver) (vmm.Machine, error) {
		p, err := d.Prepare(within(t), template, vmm.Attach{})
		if err != nil {
			return nil, err
		}
		m, err := p.Restore(within(t))
		must(t, err)
		t.Cleanup(func() { must(t, m.Close()) })
		return m, nil
	}
	own := func(m vmm.Machine) string {
		answer, err := guest.Ask(within(t), m, "vsock-dial 2")
		must(t, err)
		return answer
	}
	a, err := clone(one)
	must(t, err)
	b, err := clone(two)
	must(t, err)
	if x, y := own(a), own(b); x == y || !strings.HasPrefix(x, "own 424") || !strings.HasPrefix(y, "own 424") {
		t.Errorf("addresses %q and %q", x, y)
	}
	for _, d := range []*qemu.Driver{one, two} {
		if m, err := clone(d); err == nil {
			t.Errorf("a third of two: %s", own(m))
		} else if !strings.Contains(err.Error(), "all 2 from 4242 on are in use") {
			t.Error(err)
		}
	}
	before := own(a)
	must(t, a.Close())
	c, err := clone(two) // the other driver's
	must(t, err)
	if got := own(c); got != before {
		t.Errorf("address %q, want %q that was given back", got, before)
	}
	must(t, b.Close())
	must(t, c.Close())

	// Who knows nothing of the file is told of by the kernel.
	other, err := os.OpenFile("/dev/vhost-vsock", os.O_RDWR, 0)
	must(t, err)
	defer other.Close()
	must(t, qemu.SetCID(other, 4242))
	d, err := clone(one)
	must(t, err)
	if got := own(d); got != "own 4243:" {
		t.Errorf("address %q, want the one that is free", got)
	}
}

// stranger is a process that listens on this host's vsock, on a port of the kernel's choice, until it is ended.
type stranger struct {
	cmd  *exec.Cmd
	in   io.Closer
	port string
}

// newStranger starts one; apart from us it is in a network namespace of its own, as in a container.
func newStranger(t testing.TB, apart bool) *stranger {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "python3", "-c", `import socket, sys
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
s.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
s.listen(16)
print(s.getsockname()[1], flush=True)
sys.stdin.read()`)
	if apart {
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET}
	}
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	s := &stranger{cmd: cmd, in: in}
	t.Cleanup(s.end)
	if _, err := fmt.Fscan(out, &s.port); err != nil {
		t.Fatalf("who is to listen on vsock does not: %v", err)
	}
	return s
}

// end returns when nobody listens any more. It may be called again.
func (s *stranger) end() {
	_ = s.in.Close()
	_ = s.cmd.Wait()
}

// TestVsockReaches shows what a guest with a vsock reaches: nothing of its neighbour, nor its own agent, but who listens on the host. Nothing
// keeps it from him, so who asks for vsock by its name is told of a wall that is missing.
func TestVsockReaches(t *testing.T) {
	needVsock(t)
	guest := vmmtest.TestGuest{}
	d := newDriver(t, qemu.Config{Channel: "vsock"})
	caps, err := d.Probe(within(t))
	must(t, err)
	if !slices.Contains(caps.Degraded, qemu.NoVsockWall) {
		t.Errorf("with vsock whoever listens, degraded: %q", caps.Degraded)
	}
	boot := linux(t)
	boot.VCPUs = 2
	template := vmmtest.Build(t, d, boot, guest)
	clone := func() vmm.Machine {
		p, err := d.Prepare(within(t), template, vmm.Attach{})
		must(t, err)
		m, err := p.Restore(within(t))
		must(t, err)
		t.Cleanup(func() { must(t, m.Close()) })
		return m
	}
	a, b := clone(), clone()
	ports := " 22 1024" // what nobody refuses takes two seconds each
	ask := func(m vmm.Machine, cid, ports string) string {
		t.Helper()
		answer, err := guest.Ask(within(t), m, "vsock-dial "+cid+ports)
		must(t, err)
		return answer
	}
	var ownA, ownB string
	_, err = fmt.Sscanf(strings.NewReplacer(":", " ").Replace(ask(a, "2", "")+" "+ask(b, "2", "")), "own %s own %s", &ownA, &ownB)
	must(t, err)
	listening := newStranger(t, true).port
	host := ask(a, "2", " 1 1023 1024 1025 4222 6443 65535 "+listening)
	if want := "own " + ownA + ": " + listening; host != want {
		t.Errorf("a machine reaches of the host: %s, want %s", host, want)
	}
	for to, answer := range map[string]string{"its neighbour": ask(a, ownB, ports), "itself": ask(a, ownA, ports), "the hypervisor": ask(a, "0", ports)} {
		if answer != "own "+ownA+":" {
			t.Errorf("a machine reaches of %s: %s", to, answer)
		}
	}
}

// TestVsockGivesWay: where somebody listens on the host's vsock, machines have none, unless it is asked for by name.
func TestVsockGivesWay(t *testing.T) {
	needVsock(t)
	guest := vmmtest.TestGuest{}
	for where, apart := range map[string]bool{"beside us": false, "in another network namespace": true} {
		t.Run(where, func(t *testing.T) {
			s := newStranger(t, apart)
			d := newDriver(t, qemu.Config{})
			caps, err := d.Probe(within(t))
			must(t, err)
			if why := d.VsockError(within(t)); caps.Channel != "serial" || slices.Contains(caps.Degraded, qemu.NoVsockWall) || why == nil || !strings.Contains(why.Error(), "port "+s.port+" of") {
				t.Fatalf("somebody listens on port %s, and machines have %+v; %v", s.port, caps, why)
			}
			if apart {
				return // the same machine
			}
			p, err := d.Prepare(within(t), vmmtest.Build(t, d, linux(t), guest), vmm.Attach{})
			must(t, err)
			m, err := p.Restore(within(t))
			must(t, err)
			defer func() { must(t, m.Close()) }()
			if got, err := guest.Ask(within(t), m, "vsock-dial 2 "+s.port); err != nil || strings.HasSuffix(got, " "+s.port) {
				t.Errorf("a machine reaches who listens: %q, %v", got, err)
			} else {
				t.Logf("the machine says: %s", got)
			}
		})
	}
}

// TestVsockLate: while somebody listens who was not there at first, machines with vsock are neither made nor woken.
func TestVsockLate(t *testing.T) {
	needVsock(t)
	d := newDriver(t, qemu.Config{})
	template := vmmtest.Build(t, d, linux(t), vmmtest.TestGuest{})
	waiting, err := d.Prepare(within(t), template, vmm.Attach{})
	must(t, err)
	s := newStranger(t, false)
	if p, err := d.Prepare(within(t), template, vmm.Attach{}); err == nil {
		t.Errorf("port %s is listened on, and a machine was prepared", s.port)
		must(t, p.Close())
	} else if !strings.Contains(err.Error(), "port "+s.port+" of") {
		t.Error(err)
	}
	if m, err := waiting.Restore(within(t)); err == nil {
		t.Errorf("port %s is listened on, and a machine was restored", s.port)
		must(t, m.Close())
	} else if !strings.Contains(err.Error(), "port "+s.port+" of") {
		t.Error(err)
	}
	s.end()
	p, err := d.Prepare(within(t), template, vmm.Attach{})
	must(t, err)
	m, err := p.Restore(within(t))
	must(t, err)
	must(t, m.Close())
}

// TestVsockRestores has machines dialled as soon as they are restored, many times: the guest's kernel breaks connections off that are made
// before it has noticed its restore.
func TestVsockRestores(t *testing.T) {
	needVsock(t)
	guest := vmmtest.TestGuest{}
	d := newDriver(t, qemu.Config{Channel: "vsock"})
	template := vmmtest.Build(t, d, linux(t), guest)
	for i := range 20 {
		p, err := d.Prepare(within(t), template, vmm.Attach{})
		must(t, err)
		m, err := p.Restore(within(t))
		must(t, err)
		if got, err := guest.Echo(within(t), m, []byte("at once")); err != nil || string(got) != "at once" {
			t.Errorf("restore %d: %q, %v", i, got, err)
		}
		must(t, m.Close())
	}
}

// broken is a connection that takes what is written and is reset when it is read, or when it is written to.
type broken struct {
	net.Conn
	write error
	once  sync.Once
	ended chan struct{}
}

func (b *broken) Read([]byte) (int, error) {
	return 0, &net.OpError{Op: "read", Err: syscall.ECONNRESET}
}

func (b *broken) Write(p []byte) (int, error) {
	if b.write != nil {
		return 0, b.write
	}
	return len(p), nil
}

func (b *broken) Close() error                     { b.once.Do(func() { close(b.ended) }); return nil }
func (b *broken) SetReadDeadline(time.Time) error  { return nil }
func (b *broken) SetWriteDeadline(time.Time) error { return nil }

// TestEarly shows that a connection which the guest's restore broke off is made once more, with what was said, and that no other is.
func TestEarly(t *testing.T) {
	for name, writeFails := range map[string]error{"reset when read": nil, "reset when written": &net.OpError{Op: "write", Err: syscall.ECONNRESET}} {
		t.Run(name, func(t *testing.T) {
			ours, guest := net.Pipe()
			defer guest.Close()
			heard := make(chan string, 1)
			go func() {
				b := make([]byte, 100)
				n, _ := io.ReadAtLeast(guest, b, len("hello, guest"))
				heard <- string(b[:n])
				_, _ = guest.Write([]byte("hello, host"))
			}()
			first, dials := &broken{write: writeFails, ended: make(chan struct{})}, 0
			c := qemu.NewEarly(first, func(context.Context) (net.Conn, error) {
				dials++
				return ours, nil
			})
			defer c.Close()
			must(t, c.SetDeadline(time.Now().Add(time.Minute)))
			if n, err := c.Write([]byte("hello, guest")); err != nil || n != 12 {
				t.Fatalf("write: %d, %v", n, err)
			}
			b := make([]byte, 100)
			n, err := c.Read(b)
			if err != nil || !bytes.Equal(b[:n], []byte("hello, host")) {
				t.Errorf("read %q, %v", b[:n], err)
			}
			if got := <-heard; got != "hello, guest" {
				t.Errorf("the guest heard %q", got)
			}
			<-first.ended
			guest.Close()
			if _, err := c.Read(b); err == nil || dials != 1 {
				t.Errorf("after the guest has spoken: %v, %d dials", err, dials)
			}
		})
	}
	t.Run("closed", func(t *testing.T) {
		c := qemu.NewEarly(&broken{ended: make(chan struct{})}, func(context.Context) (net.Conn, error) {
			t.Error("dialled after Close")
			return nil, io.EOF
		})
		must(t, c.Close())
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v", err)
		}
	})
	t.Run("again in vain", func(t *testing.T) {
		c := qemu.NewEarly(&broken{ended: make(chan struct{})}, func(context.Context) (net.Conn, error) { return nil, io.ErrUnexpectedEOF })
		defer c.Close()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read: %v", err)
		}
	})
}
