package qemu

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/hostvsock"
)

// NoVsockWall is what Caps.Degraded names where machines have vsock whoever listens on the host's.
const NoVsockWall = "vsock"

// probeChannel finds the way to guests' agents: vsock where that is wanted and works, and where nobody is whom guests would reach by it, for
// nothing else keeps them off. vsockErr tells why it is not taken.
func (d *Driver) probeChannel(ctx context.Context, caps *vmm.Caps) (vsockErr, err error) {
	caps.Channel = channelSerial
	switch {
	case d.cfg.Channel == channelSerial:
		return nil, nil
	case d.cfg.Channel == channelAuto && caps.Accel != accelKVM:
		return errors.New("vsock: with an emulated processor it is used only when it is asked for"), nil
	}
	vsockErr = d.tryVsock(ctx, manifestOf(*caps))
	if vsockErr == nil && d.cfg.Channel == channelAuto {
		if err := hostvsock.StrangersEverywhere(); err != nil {
			vsockErr = fmt.Errorf("vsock: %w", err)
		}
	}
	switch {
	case vsockErr == nil:
		caps.Channel = channelVsock
		if d.cfg.Channel == channelVsock {
			caps.Degraded = append(caps.Degraded, NoVsockWall)
		}
		return nil, nil
	case ctx.Err() != nil || d.cfg.Channel == channelVsock:
		return nil, vsockErr
	}
	return vsockErr, nil
}

// tryVsock gives a QEMU in its jail a vhost-vsock device. That one exists, and opens, proves nothing: the kernel and QEMU must agree on it.
func (d *Driver) tryVsock(ctx context.Context, platform manifest) error {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("vsock: %w (modprobe vhost_vsock)", err)
	}
	_ = unix.Close(fd)
	l, err := d.cids.take()
	if err != nil {
		return fmt.Errorf("vsock: %w (modprobe vhost_vsock)", err)
	}
	defer l.give()
	c := &commandLine{}
	c.add("-machine", platform.Machine, "-m", "16M")
	c.vsock(l)
	p, err := d.start(ctx, "probe-vsock", platform, c, nil, vmm.Command{AddressSpaceBytes: vmmSpace, FileBytes: vmmSpace})
	if err != nil {
		return fmt.Errorf("vsock: %w", err)
	}
	return p.close()
}

// unreached refuses a machine with vsock while somebody is there whom it would reach, unless vsock was asked for by name. It looks in this
// process's network namespace: the probe has looked in all.
func (d *Driver) unreached(platform manifest) error {
	if platform.Channel != channelVsock || d.cfg.Channel == channelVsock {
		return nil
	}
	if err := hostvsock.Strangers(); err != nil {
		return fmt.Errorf("vsock: %w; end that, or start this anew: machines then have no vsock", err)
	}
	return nil
}

// vsock is the device that leads to the guest's agent, with a CID that is this machine's.
func (c *commandLine) vsock(l *lease) {
	c.add("-device", fmt.Sprintf("vhost-vsock-pci,guest-cid=%d,vhostfd=%d", l.cid, c.file(l.device)))
}
