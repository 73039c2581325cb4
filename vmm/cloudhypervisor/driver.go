// Package cloudhypervisor drives Cloud Hypervisor, v51 or newer: machines with KVM that are cloned in milliseconds.
//
// A machine is one VMM process. It is given what it uses by descriptor: a directory of its own in memory that is mounted nowhere
// (directory.go), disks, pipes and sockets; Cloud Hypervisor opens them by /proc/self/fd/N, the same numbers in every machine. So it needs
// no path but its program and libraries, nothing of it has a name on disk, and whatever is killed, Paddock included, leaves nothing behind.
//
// A template is a directory with the memory of a machine that was stopped, sparse, and what Cloud Hypervisor says of its devices.
// The memory was one zone mapped shared from a file, which vm.snapshot does not copy; clones map the template's file private, so that
// vm.restore copies nothing either. That is Cloud Hypervisor's restore by Copy, with nothing to copy: OnDemand is never used, as v53
// then reads all memory in the background.
//
// A machine can be kept while it runs on (checkpoint.go); a clone cannot be ended with a snapshot.
//
// What it cannot: keep a machine that has grown (resize.go), and tell that a disk's file failed (Cloud Hypervisor tells its guest only, so the machines are
// no vmm.HostFault).
//
// Linux, and root for the directories. It may import vmm, what drivers share and golang.org/x/sys, and knows nothing of jobs, images or what is said to the agent.
package cloudhypervisor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/hostfile"
)

// Config is how a Driver runs Cloud Hypervisor.
type Config struct {
	// Binary is Cloud Hypervisor; empty means cloud-hypervisor in PATH.
	Binary string
	// RunDir is made if it does not exist. Its file system holds what machines write to their scratch disks, as files without names.
	RunDir string
	// Launcher starts the processes.
	Launcher vmm.Launcher
	// Disk bounds what each machine does to its disks, the root and the scratch disk together.
	Disk vmm.DiskLimits
	// ProbeTimeout is how long the probe's guest may run; 0 means 2 s. It needs milliseconds where KVM works.
	ProbeTimeout time.Duration
	// StepTimeout is how long Cloud Hypervisor may take for one thing: to start, to answer a request. 0 means 30 s.
	StepTimeout time.Duration
}

// Driver is vmm.Driver for Cloud Hypervisor.
type Driver struct {
	cfg    Config
	binary os.FileInfo // when this process began
	prober prober
}

var _ vmm.Driver = (*Driver)(nil)

// New checks what can be checked without running anything.
func New(cfg Config) (*Driver, error) {
	if cfg.Launcher == nil || cfg.RunDir == "" {
		return nil, errors.New("cloud-hypervisor: a launcher and a run directory are needed")
	}
	if cfg.Disk.BytesPerSecond < 0 || cfg.Disk.OpsPerSecond < 0 {
		return nil, errors.New("cloud-hypervisor: a disk limit below zero")
	}
	if cfg.Binary == "" {
		cfg.Binary = "cloud-hypervisor"
	}
	path, err := exec.LookPath(cfg.Binary)
	if err != nil {
		return nil, fmt.Errorf("cloud-hypervisor: %w (its releases, v51.0 or newer, are single static binaries)", err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, fmt.Errorf("cloud-hypervisor: %w", err)
	}
	if cfg.Binary, err = filepath.EvalSymlinks(path); err != nil { // a jail shows the file, not what leads to it
		return nil, fmt.Errorf("cloud-hypervisor: %w", err)
	}
	if cfg.RunDir, err = filepath.Abs(cfg.RunDir); err != nil {
		return nil, fmt.Errorf("cloud-hypervisor: %w", err)
	}
	if err := os.MkdirAll(cfg.RunDir, 0o700); err != nil {
		return nil, fmt.Errorf("cloud-hypervisor: %w", err)
	}
	binary, err := os.Stat(cfg.Binary)
	if err != nil {
		return nil, fmt.Errorf("cloud-hypervisor: %w", err)
	}
	if cfg.ProbeTimeout == 0 {
		cfg.ProbeTimeout = 2 * time.Second
	}
	if cfg.StepTimeout == 0 {
		cfg.StepTimeout = 30 * time.Second
	}
	return &Driver{cfg: cfg, binary: binary, prober: prober{held: make(chan struct{}, 1)}}, nil
}

// Name is "cloud-hypervisor".
func (*Driver) Name() string { return "cloud-hypervisor" }

// step bounds one step of the VMM's.
func (d *Driver) step(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d.cfg.StepTimeout, fmt.Errorf("cloud-hypervisor took more than %v", d.cfg.StepTimeout))
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
