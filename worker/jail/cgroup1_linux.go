package jail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/paddockvm/paddock/vmm"
)

// legacy is cgroup v1 (kernel: Documentation/admin-guide/cgroup-v1), where each controller has a tree of its own.
type legacy struct {
	path    cgroup1.Path // the parent's in each
	systems []cgroup1.Subsystem
	parents []string
	ours    bool // nobody configured it
	have    map[cgroup1.Name]bool
	swap    bool       // can be bounded
	all     vmm.Weight // of all machines together
}

// legacyControllers are those that bound a machine, by v2's names; the freezer, which comes first, is how one is killed.
var legacyControllers = []struct {
	system cgroup1.Name
	name   string
}{{cgroup1.Freezer, "kill"}, {cgroup1.Cpu, "cpu"}, {cgroup1.Memory, "memory"}, {cgroup1.Pids, "pids"}, {cgroup1.Blkio, "io"}}

func openLegacy(cfg Config) (*cgroups, error) {
	parent := cfg.CgroupParent
	// A limit of all machines' memory together would be none to one of them: v1 looks at each cgroup for itself.
	l := &legacy{path: cgroup1.NestedPath(machinesCgroup), ours: parent == "", have: map[cgroup1.Name]bool{}, all: vmm.Weight{CPUs: cfg.whole().CPUs}}
	if parent != "" {
		l.path = cgroup1.StaticPath(filepath.Clean("/" + parent))
	}
	c := &cgroups{hierarchy: l, overcommit: cfg.Overcommit}
	all, err := cgroup1.Default()
	if err != nil {
		return nil, err
	}
	found := map[cgroup1.Name]cgroup1.Subsystem{}
	for _, s := range all {
		found[s.Name()] = s
	}
	for _, want := range legacyControllers {
		dir, err := l.parent(found[want.system])
		if err == nil {
			err = os.MkdirAll(dir, 0o755)
		}
		if err != nil {
			c.lacks = append(c.lacks, Lack{NoCgroup + "." + want.name, string(want.system) + ": " + err.Error()})
			continue
		}
		l.systems, l.have[want.system] = append(l.systems, found[want.system]), true
		l.parents = append(l.parents, dir)
	}
	if len(l.systems) == 0 {
		return nil, fmt.Errorf("no controller of cgroup v1 can be used: %s", c.lacks[0].Why)
	}
	c.parents = l.parents
	held, err := c.lockParent() // until all that is looked at has been
	if err != nil {
		return nil, err
	}
	defer func() { _ = held.Close() }() // only locked
	if l.have[cgroup1.Blkio] {
		c.lacks = append(c.lacks, Lack{NoCgroup + ".io", "cgroup v1 does not bound what is written by way of the page cache"})
	}
	if l.have[cgroup1.Memory] {
		dir, err := l.parent(found[cgroup1.Memory])
		if err != nil {
			return nil, err
		}
		l.swap = c.boundsSwap(filepath.Join(dir, "memory.memsw.limit_in_bytes"))
	}
	return c, nil
}

// parent is the parent's directory in the tree of one controller.
func (l *legacy) parent(s cgroup1.Subsystem) (string, error) {
	tree, ok := s.(interface{ Path(string) string })
	if !ok {
		return "", errors.New("this host does not have it")
	}
	p, err := l.path(s.Name())
	if err != nil {
		return "", err
	}
	return tree.Path(p), nil
}

func (l *legacy) ensure() error {
	for _, dir := range l.parents {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if !l.ours {
		return nil
	}
	return apply(l.weights("", l.all)) // as in v2
}

// weights of v1: the disks' is BFQ's, or CFQ's; that of memory is a soft limit, beyond which memory is taken first where it is short.
func (l *legacy) weights(name string, w vmm.Weight) (all []setting) {
	add := func(system cgroup1.Name, file string, n uint64) {
		if i := slices.IndexFunc(l.systems, func(s cgroup1.Subsystem) bool { return s.Name() == system }); i >= 0 {
			all = append(all, setting{filepath.Join(l.parents[i], name, file), strconv.FormatUint(n, 10)})
		}
	}
	if w.CPUs > 0 {
		add(cgroup1.Cpu, "cpu.shares", shares(w.CPUs))
		add(cgroup1.Blkio, "blkio.bfq.weight", min(weight(w.CPUs), mostBFQ))
		add(cgroup1.Blkio, "blkio.weight", min(max(weight(w.CPUs), leastCFQ), mostBFQ))
	}
	if w.MemoryBytes > 0 {
		add(cgroup1.Memory, "memory.soft_limit_in_bytes", uint64(w.MemoryBytes))
	}
	return all
}

func (l *legacy) bounds(name string, memoryBytes int64) (all []setting) {
	i := slices.IndexFunc(l.systems, func(s cgroup1.Subsystem) bool { return s.Name() == cgroup1.Memory })
	if i < 0 {
		return nil
	}
	files := []string{"memory.limit_in_bytes"}
	if l.swap {
		files = append(files, "memory.memsw.limit_in_bytes")
	}
	for _, file := range files {
		all = append(all, setting{filepath.Join(l.parents[i], name, file), strconv.FormatInt(memoryBytes, 10)})
	}
	return all
}

func (*legacy) leave() {}

// shares are v1's weight: 1024, the kernel's default, for each processor.
func shares(cpus float64) uint64 { return min(max(uint64(1024*cpus), 2), 1<<18) }

func (l *legacy) create(name string, s vmm.Share, disks []device) error {
	path := func(system cgroup1.Name) (string, error) {
		p, err := l.path(system)
		return filepath.Join(p, name), err
	}
	_, err := cgroup1.New(path, l.resources(s, disks), cgroup1.WithHierarchy(func() ([]cgroup1.Subsystem, error) { return l.systems, nil }))
	return err
}

func (l *legacy) resources(s vmm.Share, disks []device) *specs.LinuxResources {
	r := &specs.LinuxResources{}
	if s.CPUs > 0 && l.have[cgroup1.Cpu] {
		quota := quota(s.CPUs)
		r.CPU = &specs.LinuxCPU{Quota: &quota}
	}
	if s.MemoryBytes > 0 && l.have[cgroup1.Memory] {
		r.Memory = &specs.LinuxMemory{Limit: &s.MemoryBytes}
		if l.swap {
			r.Memory.Swap = &s.MemoryBytes // with memory, together
		}
	}
	if s.PIDs > 0 && l.have[cgroup1.Pids] {
		most := pids(s)
		r.Pids = &specs.LinuxPids{Limit: &most}
	}
	if s.DiskBytesPerSecond > 0 && l.have[cgroup1.Blkio] {
		r.BlockIO = &specs.LinuxBlockIO{}
		for _, d := range disks {
			limit := specs.LinuxThrottleDevice{Rate: uint64(s.DiskBytesPerSecond)}
			limit.Major, limit.Minor = d.major, d.minor
			r.BlockIO.ThrottleReadBpsDevice = append(r.BlockIO.ThrottleReadBpsDevice, limit)
			r.BlockIO.ThrottleWriteBpsDevice = append(r.BlockIO.ThrottleWriteBpsDevice, limit)
		}
	}
	return r
}
