// Package qemu drives QEMU: machines with KVM where KVM works, and with QEMU's own emulator (TCG) everywhere else, slowly but truly.
//
// A machine is one QEMU process that is given everything by descriptor: its memory, its disks, its consoles, the sockets of QMP and
// of the guest's agent. It opens no path but its own program, libraries and firmware, and nothing of it has a name on disk, so
// whatever is killed, Paddock included, leaves nothing behind. A template is a directory with the memory of a machine that was
// stopped, sparse, and the state of its devices in QEMU's migration format; clones map the memory copy-on-write and load the state.
//
// Linux only. It may import vmm and what drivers share (docs/design.md), and knows nothing of jobs, images or what is said to the agent.
package qemu

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/hostfile"
)

// Names of accelerators.
const (
	accelAuto = "auto"
	accelKVM  = "kvm"
	accelTCG  = "tcg"
)

// Names of the ways to a guest's agent.
const (
	channelAuto   = "auto"
	channelVsock  = "vsock"
	channelSerial = "serial"
)

// Config is how a Driver runs QEMU.
type Config struct {
	// Binary is QEMU; empty means qemu-system-x86_64 in PATH.
	Binary string
	// RunDir is made if it does not exist. Its file system holds what machines write to their scratch disks, as files without names.
	RunDir string
	// Launcher starts the processes.
	Launcher vmm.Launcher
	// Accel is "kvm", "tcg", or "auto" (the default): kvm where a guest really runs with it.
	Accel string
	// ProbeTimeout is how long the probe's guest may run with KVM; 0 means 2 s. It needs milliseconds where KVM works.
	ProbeTimeout time.Duration
	// StepTimeout is how long QEMU may take for one thing: to start, to answer a command, to save or load a machine's state.
	// 0 means 30 s. Nested machines are 20 times slower than real ones.
	StepTimeout time.Duration
	// Channel is the way to the guest's agent: "vsock", "serial", or "auto" (the default): vsock where machines have KVM, the host's kernel a
	// vhost-vsock device that QEMU can use, and nobody listens on the host's vsock. Guests would reach him: while somebody does who came
	// later, no machine is made. With "vsock" they are made all the same, and Caps.Degraded says "vsock".
	Channel string
	// CIDBase and CIDCount are the vsock addresses that machines of this host get, one each; 0 means 65536 from 1000000 on.
	CIDBase, CIDCount int
	// CIDLock is the file by which the processes of a host agree on who has which; /run/paddock-cids where empty.
	CIDLock string
	// Disk bounds what each machine does to its disks, the root and the scratch disk together.
	Disk vmm.DiskLimits
}

// Driver is vmm.Driver for QEMU. Close it when its machines are closed.
type Driver struct {
	cfg      Config
	binary   os.FileInfo // when this process began
	memories memories
	prober   prober
	cids     cids
}

var (
	_ vmm.Driver   = (*Driver)(nil)
	_ vmm.Releaser = (*Driver)(nil)
)

// New checks what can be checked without running anything.
func New(cfg Config) (*Driver, error) {
	if cfg.Launcher == nil || cfg.RunDir == "" {
		return nil, errors.New("qemu: a launcher and a run directory are needed")
	}
	switch cfg.Accel {
	case "":
		cfg.Accel = accelAuto
	case accelAuto, accelKVM, accelTCG:
	default:
		return nil, fmt.Errorf("qemu: accelerator %q: want auto, kvm or tcg", cfg.Accel)
	}
	switch cfg.Channel {
	case "":
		cfg.Channel = channelAuto
	case channelAuto, channelVsock, channelSerial:
	default:
		return nil, fmt.Errorf("qemu: channel %q: want auto, vsock or serial", cfg.Channel)
	}
	if cfg.CIDBase == 0 && cfg.CIDCount == 0 {
		cfg.CIDBase, cfg.CIDCount = 1_000_000, 65_536
	}
	if cfg.CIDBase < 3 || cfg.CIDCount < 1 || cfg.CIDBase+cfg.CIDCount > math.MaxInt32 { // 0 to 2 are not machines' (vsock(7))
		return nil, fmt.Errorf("qemu: %d cids from %d on: they begin at 3", cfg.CIDCount, cfg.CIDBase)
	}
	if cfg.CIDLock == "" {
		cfg.CIDLock = "/run/paddock-cids"
	}
	if cfg.Disk.BytesPerSecond < 0 || cfg.Disk.OpsPerSecond < 0 {
		return nil, errors.New("qemu: a disk limit below zero")
	}
	if cfg.Binary == "" {
		cfg.Binary = "qemu-system-x86_64"
	}
	path, err := exec.LookPath(cfg.Binary)
	if err != nil {
		return nil, fmt.Errorf("qemu: %w (Debian: apt-get install qemu-system-x86)", err)
	}
	if cfg.Binary, err = filepath.Abs(path); err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	if cfg.RunDir, err = filepath.Abs(cfg.RunDir); err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	if err := os.MkdirAll(cfg.RunDir, 0o700); err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	binary, err := os.Stat(cfg.Binary)
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	if cfg.ProbeTimeout == 0 {
		cfg.ProbeTimeout = 2 * time.Second
	}
	if cfg.StepTimeout == 0 {
		cfg.StepTimeout = 30 * time.Second
	}
	return &Driver{
		cfg: cfg, binary: binary, prober: prober{held: make(chan struct{}, 1)},
		cids: cids{base: cfg.CIDBase, count: cfg.CIDCount, path: cfg.CIDLock, used: map[int]bool{}},
	}, nil
}

// Name is "qemu".
func (*Driver) Name() string { return "qemu" }

// Release gives up the memory of the template in dir.
func (d *Driver) Release(dir string) error { return d.memories.release(dir) }

// Close releases all templates. It ends no machine.
func (d *Driver) Close() error { return errors.Join(d.memories.release(""), d.cids.close()) }

// step bounds one step of QEMU's.
func (d *Driver) step(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d.cfg.StepTimeout, fmt.Errorf("qemu took more than %v", d.cfg.StepTimeout))
}

// orReplaced adds to a machine's failure that the VMM is another now than it was: what a template was made by is looked at when this process starts.
func (d *Driver) orReplaced(err error) error {
	if !hostfile.Replaced(d.cfg.Binary, d.binary) {
		return err
	}
	return fmt.Errorf("%w (%s was replaced since this process started: start it anew, and templates are made by the new one)", err, d.cfg.Binary)
}

// newID names a machine.
func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return "m-" + hex.EncodeToString(b[:])
}

// socketPair gives our end and QEMU's.
func socketPair(name string) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		_ = unix.Close(fds[1])
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// unixConn makes a connection of a socket and closes the file.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}
