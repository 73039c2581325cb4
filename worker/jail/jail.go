// Package jail starts VMMs behind walls of their own: new mount, pid, net, ipc, uts and cgroup namespaces, an empty root with only what a
// VMM reads, a uid for each machine, no capabilities, no_new_privs, a filter of system calls, resource limits, a cgroup. What a guest's
// escape from its VMM would find is that. Without root the machine is in a user namespace too, and its uid is this process's.
//
// The walls are built by a stub, this same program started anew (package stub), which then becomes the VMM. A wall that this host cannot give is
// named by Degraded; docs/jail.md tells what each one is for. Linux only.
package jail

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	cgroupfs "github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker/jail/stub"
)

// Config says how the jail is made. Its zero value, but for Self, is what production uses.
type Config struct {
	// Self starts the stub: a command line of this program that ends in stub.Command, or of another that ends in Child.
	Self []string
	// UIDBase and UIDCount are the machines' uids: 200000 and 10000 where 0. No other user of the host may have one of them.
	UIDBase, UIDCount int
	// UIDLock is the file by which the launchers of a host agree on who has which uid; /run/paddock-uids where empty.
	UIDLock string
	// CgroupParent is the cgroup, as /proc/self/cgroup names them, below which machines get theirs. It is made where it is not there, and
	// has no processes of its own. Empty: paddock-machines, in this process's own cgroup; with cgroup v2, where others are in that
	// too, in the root.
	CgroupParent string
	// MemoryBytes is how much of this host's memory is all machines' together, all of it where 0; and Overcommit how often over that is given to
	// them, once where 0.
	MemoryBytes int64
	Overcommit  float64
}

// whole is what all machines together weigh.
func (cfg Config) whole() vmm.Weight {
	w := vmm.Weight{CPUs: float64(runtime.NumCPU()), MemoryBytes: cfg.MemoryBytes}
	var info unix.Sysinfo_t
	if w.MemoryBytes == 0 && unix.Sysinfo(&info) == nil {
		w.MemoryBytes = int64(info.Totalram) * int64(info.Unit)
	}
	return w
}

// The walls that a host may not be able to give.
const (
	NoUID     = "jail.uid"     // every machine has this process's uid
	NoCgroup  = "jail.cgroup"  // none at all; with ".cpu", ".memory", ".pids", ".io" or ".kill", that part of it
	NoSwap    = "jail.swap"    // a machine may fill the host's swap
	NoSeccomp = "jail.seccomp" // no filter of system calls
	Leftovers = "jail.leftovers"
)

// Lack is a wall that this host cannot give, by one of the names above, and why.
type Lack struct{ Name, Why string }

// Launcher starts VMMs in jails. It implements vmm.Launcher.
type Launcher struct {
	cfg     Config
	uids    *uids    // nil: without root
	cgroups *cgroups // nil: there are none
	lacks   []Lack
}

var _ vmm.Launcher = (*Launcher)(nil)

// New finds out what of a jail can be made here, by making it, and removes what launchers left that were killed. The error is for where
// none can be made, or not as the configuration says.
func New(cfg Config) (*Launcher, error) {
	if len(cfg.Self) == 0 {
		return nil, errors.New("jail: Self is required")
	}
	if cfg.UIDBase == 0 {
		cfg.UIDBase = 200_000
	}
	if cfg.UIDCount == 0 {
		cfg.UIDCount = 10_000
	}
	if cfg.UIDLock == "" {
		cfg.UIDLock = "/run/paddock-uids"
	}
	l := &Launcher{cfg: cfg}
	if os.Geteuid() != 0 {
		l.lack(NoUID, "only root can give machines uids of their own")
	} else {
		var err error
		if l.uids, err = openUIDs(cfg); err != nil {
			return nil, fmt.Errorf("jail: %w", err)
		}
	}
	if err := stub.FilterLack(); err != nil {
		l.lack(NoSeccomp, err.Error())
	}
	if err := l.openCgroups(); err != nil {
		return nil, errors.Join(fmt.Errorf("jail: %w", err), l.Close())
	}
	return l, nil
}

func (l *Launcher) lack(name, why string) { l.lacks = append(l.lacks, Lack{name, why}) }

// openCgroups tries namespaces with a cgroup, and without where that does not work and was not asked for.
func (l *Launcher) openCgroups() (err error) {
	switch cgroupfs.Mode() {
	case cgroupfs.Unified:
		l.cgroups, err = openUnified(l.cfg)
	case cgroupfs.Legacy, cgroupfs.Hybrid:
		l.cgroups, err = openLegacy(l.cfg)
	default:
		err = errors.New("no cgroup file system in " + cgroupMount)
	}
	if err == nil {
		if sweepErr := l.cgroups.sweep(); sweepErr != nil {
			l.lack(Leftovers, sweepErr.Error())
		}
		if err = l.probe(); err == nil {
			l.lacks = append(l.lacks, l.cgroups.lacks...)
			return nil
		}
		_ = l.cgroups.close()
		l.cgroups = nil
	}
	if l.cfg.CgroupParent != "" {
		return fmt.Errorf("cgroup %s: %w", l.cfg.CgroupParent, err)
	}
	l.lack(NoCgroup, err.Error())
	return l.probe()
}

// Close lets go of what the launchers of this host share. All machines have ended before.
func (l *Launcher) Close() (err error) {
	if l.cgroups != nil {
		err = l.cgroups.close()
	}
	if l.uids != nil {
		err = errors.Join(err, l.uids.close())
	}
	return err
}

// Degraded names the walls that are missing.
func (l *Launcher) Degraded() (names []string) {
	for _, lack := range l.lacks {
		names = append(names, lack.Name)
	}
	return names
}

// Lacks are the walls that are missing, and why.
func (l *Launcher) Lacks() []Lack { return slices.Clone(l.lacks) }
