package qemu

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/paddockvm/paddock/vmm"
)

// probeGuest is a firmware of a few instructions: probe_guest.asm.
//
//go:embed probe_guest.bin
var probeGuest []byte

// emulated is how long the probe's guest may run without KVM at least. Under KVM it may never come through; an emulator's gets there, on a host
// that does much else too.
const emulated = 30 * time.Second

// prober remembers what a probe found.
type prober struct {
	held   chan struct{} // by the one who probes
	caps   *vmm.Caps
	kvmErr error // why KVM is not used, where it was tried
	vsock  error // why vsock is not used, where it was tried
}

// Probe runs a guest of a few instructions with KVM, and where that does not come through in time, with TCG. That /dev/kvm exists,
// opens and makes virtual machines proves nothing. The first success is remembered.
func (d *Driver) Probe(ctx context.Context) (vmm.Caps, error) {
	caps, _, err := d.probed(ctx)
	return caps, err
}

// KVMError tells why KVM is not used; nil where it is, or where the driver was told not to.
func (d *Driver) KVMError(ctx context.Context) error {
	_, kvmErr, err := d.probed(ctx)
	return errors.Join(kvmErr, err)
}

// VsockError tells why vsock is not used; nil where it is, or where the driver was told not to.
func (d *Driver) VsockError(ctx context.Context) error {
	if _, _, err := d.probed(ctx); err != nil {
		return err
	}
	return d.prober.vsock // never changes after the first success
}

func (d *Driver) probed(ctx context.Context) (caps vmm.Caps, kvmErr, err error) {
	p := &d.prober
	select {
	case p.held <- struct{}{}:
		defer func() { <-p.held }()
	case <-ctx.Done():
		return vmm.Caps{}, nil, fmt.Errorf("probe qemu: %w", context.Cause(ctx))
	}
	if p.caps == nil {
		caps, kvmErr, err := d.probe(ctx)
		if err != nil {
			return vmm.Caps{}, nil, fmt.Errorf("probe qemu: %w", err)
		}
		vsockErr, err := d.probeChannel(ctx, &caps)
		if err != nil {
			return vmm.Caps{}, nil, fmt.Errorf("probe qemu: %w", err)
		}
		p.caps, p.kvmErr, p.vsock = &caps, kvmErr, vsockErr
	}
	caps = *p.caps
	caps.Degraded = slices.Clone(caps.Degraded)
	return caps, p.kvmErr, nil
}

func (d *Driver) probe(ctx context.Context) (caps vmm.Caps, kvmErr, err error) {
	accel := d.cfg.Accel
	if accel != accelTCG {
		caps, kvmErr = d.try(ctx, accelKVM)
		if kvmErr == nil {
			return caps, nil, nil
		}
		if err := context.Cause(ctx); err != nil || accel == accelKVM {
			return vmm.Caps{}, nil, kvmErr
		}
	}
	caps, err = d.try(ctx, accelTCG)
	return caps, kvmErr, err
}

// try runs the guest with one accelerator, and the processor that machines will have.
func (d *Driver) try(ctx context.Context, accel string) (caps vmm.Caps, err error) {
	platform := manifest{Accel: accel, CPU: "max"}
	if accel == accelKVM {
		if _, err := os.Stat("/dev/kvm"); err != nil {
			return vmm.Caps{}, fmt.Errorf("kvm: %w", err)
		}
		platform.CPU = "host,migratable=on"
	}
	firmware, err := newMemory("firmware", 0)
	if err != nil {
		return vmm.Caps{}, err
	}
	image := make([]byte, 64<<10)
	copy(image, probeGuest)
	copy(image[0xfff0:], []byte{0xe9, 0x0d, 0x00}) // the reset vector: jmp to the start of the segment
	if _, err := firmware.Write(image); err != nil {
		firmware.Close()
		return vmm.Caps{}, err
	}
	port, theirs, err := socketPair("probe")
	if err != nil {
		firmware.Close()
		return vmm.Caps{}, err
	}
	defer port.Close()
	c := &commandLine{}
	c.add("-machine", "q35", "-m", "16M",
		"-bios", procFDNumber(c.file(firmware)),
		"-chardev", fmt.Sprintf("socket,id=probe,fd=%d,server=off", c.file(theirs)), "-device", "isa-debugcon,iobase=0xe9,chardev=probe")
	p, err := d.start(ctx, "probe-"+accel, platform, c, nil, vmm.Command{AddressSpaceBytes: vmmSpace, FileBytes: vmmSpace})
	if err != nil {
		return vmm.Caps{}, fmt.Errorf("%s: %w", accel, err)
	}
	within := d.cfg.ProbeTimeout
	if accel == accelTCG {
		within = max(within, emulated)
	}
	took, version, machine, err := d.runProbe(ctx, p, port, within)
	if err != nil {
		return vmm.Caps{}, fmt.Errorf("%s: %w", accel, p.fail("run", err))
	}
	caps = vmm.Caps{
		Version: version, Accel: accel, Machine: machine, CPU: platform.CPU,
		Isolated: true, Degraded: slices.Clone(d.cfg.Launcher.Degraded()), BootProbe: took,
	}
	if accel == accelTCG {
		// QEMU's project gives no security promise for TCG: only the jail stands behind the emulator then.
		caps.Degraded = append(caps.Degraded, "kvm")
	}
	return caps, p.close()
}

func (d *Driver) runProbe(ctx context.Context, p *process, port *os.File, within time.Duration) (took time.Duration, version, machine string, err error) {
	stepCtx, cancel := d.step(ctx)
	defer cancel()
	var v struct {
		QEMU struct{ Major, Minor, Micro int } `json:"qemu"`
		// Package is the distribution's own version, with its patches: a snapshot is not carried over those.
		Package string `json:"package"`
	}
	if err := p.qmp.execute(stepCtx, "query-version", nil, &v); err != nil {
		return 0, "", "", err
	}
	version = fmt.Sprintf("%d.%d.%d", v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro)
	if v.Package != "" {
		version += " (" + v.Package + ")"
	}
	if err := p.qmp.execute(stepCtx, "qom-get", map[string]string{"path": "/machine", "property": "type"}, &machine); err != nil {
		return 0, "", "", err
	}
	machine = strings.TrimSuffix(machine, "-machine")

	start := time.Now()
	if err := port.SetReadDeadline(start.Add(within)); err != nil {
		return 0, "", "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = port.SetReadDeadline(start) })
	defer stop()
	if err := p.qmp.execute(stepCtx, "cont", nil, nil); err != nil {
		return 0, "", "", err
	}
	said := make([]byte, 1)
	_, err = port.Read(said)
	took = time.Since(start)
	switch {
	case ctx.Err() != nil:
		return 0, "", "", context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, "", "", fmt.Errorf("a guest of a few instructions did not come through in %v", within)
	case err != nil:
		return 0, "", "", fmt.Errorf("the guest died: %w", err)
	case said[0] != '+':
		return 0, "", "", errors.New("the guest computed wrongly")
	}
	return took, version, machine, nil
}
