package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor"
)

// chooseDriver gives Cloud Hypervisor where its binary is there and a guest runs with it, else QEMU, which itself takes KVM where that
// works. A Cloud Hypervisor that is there and not used is told of.
func chooseDriver(ctx context.Context, c config, run string) (vmm.Driver, vmm.Caps, func() error, error) {
	if c.Accel != "tcg" { // which is a QEMU's word
		c.Driver = "cloud-hypervisor"
		d, caps, closeDriver, err := openNamed(ctx, c, run)
		if err == nil {
			return d, caps, closeDriver, nil
		}
		if c.CloudHypervisor != "" || !errors.Is(err, exec.ErrNotFound) {
			zerolog.Ctx(ctx).Warn().Err(err).Msg("cloud-hypervisor is not used, but qemu")
		}
	}
	c.Driver = "qemu"
	return openNamed(ctx, c, run)
}

// isMachine says whether a driver's machines are such: booted from an image.
func isMachine(driver string) bool { return driver != "hostproc" && driver != "inproc" }

func openCloudHypervisor(c config, run string) (vmm.Driver, func() error, error) {
	launcher, closeLauncher, err := openLauncher(c)
	if err != nil {
		return nil, nil, err
	}
	d, err := cloudhypervisor.New(cloudhypervisor.Config{
		Binary: c.CloudHypervisor, RunDir: run, Launcher: launcher, Disk: diskLimits(c), ProbeTimeout: c.ProbeTimeout, StepTimeout: c.StepTimeout,
	})
	if err != nil {
		return nil, nil, errors.Join(err, closeLauncher())
	}
	return d, closeLauncher, nil
}

func examineCloudHypervisor(ctx context.Context) finding {
	const name, advice = "cloud-hypervisor", "where this host has KVM, put v53.0 of it in PATH, or name it with paddock up --cloud-hypervisor"
	dir, err := os.MkdirTemp("", "pd-")
	if err != nil {
		return finding{name, missing, err.Error(), "give it a directory for temporary files with TMPDIR"}
	}
	defer os.RemoveAll(dir)
	d, err := cloudhypervisor.New(cloudhypervisor.Config{Binary: os.Getenv("PADDOCK_CLOUD_HYPERVISOR"), RunDir: dir, Launcher: vmm.Direct{}})
	if errors.Is(err, exec.ErrNotFound) {
		return finding{name, note, "none in PATH; machines are QEMU's", advice}
	}
	if err != nil {
		return finding{name, degraded, err.Error(), advice}
	}
	caps, err := d.Probe(ctx)
	if err != nil {
		return finding{name, degraded, err.Error() + "; machines are QEMU's", advice}
	}
	return finding{name, ok, fmt.Sprintf("%s, a guest ran with it in %s", caps.Version, caps.BootProbe.Round(time.Millisecond)), ""}
}
