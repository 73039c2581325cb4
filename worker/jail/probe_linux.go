package jail

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/paddockvm/paddock/vmm"
)

// probed bounds the probe's cgroup by all that a cgroup bounds by.
var probed = vmm.Share{CPUs: 1, MemoryBytes: 64 << 20, PIDs: 64}

// probe starts a program in namespaces and a cgroup, as machines are, and kills it by way of the cgroup: files that are there prove nothing.
// It takes milliseconds, and is bounded by settling.
func (l *Launcher) probe() (err error) {
	var g *cgroup
	if l.cgroups != nil {
		if g, err = l.cgroups.make("probe", probed, nil); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, g.remove()) }()
	}
	ctx, cancel := context.WithTimeout(context.Background(), settling)
	defer cancel()
	p, err := l.direct(g).Launch(ctx, vmm.Command{Name: "probe", Path: "/bin/sleep", Args: []string{"60"}})
	if err != nil {
		return fmt.Errorf("start a process in namespaces of its own: %w", err)
	}
	defer func() { err = errors.Join(err, p.Kill()) }()
	if g == nil {
		return nil
	}
	if err := g.enter(p.PID()); err != nil {
		return fmt.Errorf("enter the cgroup: %w", err)
	}
	if pids, err := g.processes(); err != nil || len(pids) != 1 {
		return errors.Join(err, fmt.Errorf("a process that was put into a cgroup is not in it: %v", pids))
	}
	if err := g.kill(); err != nil {
		return err
	}
	select {
	case <-p.Done():
		return nil
	case <-time.After(settling):
		return errors.New("a process outlives its cgroup")
	}
}
