package vmmtest

import (
	"context"

	"github.com/paddockvm/paddock/vmm"
)

// Onlooker is a launcher that looks at each VMM before the driver tells it anything: QEMU waits for that when it is made.
type Onlooker struct {
	vmm.Launcher
	Look func(vmm.Process)
}

// Launch implements vmm.Launcher.
func (l Onlooker) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	p, err := l.Launcher.Launch(ctx, c)
	if err == nil {
		l.Look(p)
	}
	return p, err
}
