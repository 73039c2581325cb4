package jail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup2"

	"github.com/paddockvm/paddock/vmm"
)

const cgroupMount = "/sys/fs/cgroup"

// machinesCgroup is the parent's name where none is configured, ownCgroup that of where this process goes to make room for it.
const (
	machinesCgroup = "paddock-machines"
	ownCgroup      = "paddock-process"
)

// controllers are what bounds a machine.
var controllers = []string{"cpu", "memory", "pids", "io"}

// unified is cgroup v2 (kernel: Documentation/admin-guide/cgroup-v2.rst).
type unified struct {
	path string          // of the parent, from the mount
	ours bool            // nobody configured it
	room string          // this process's own, which it has left so that it can be divided; empty: none
	have map[string]bool // controllers
	swap bool            // can be bounded
	all  vmm.Weight      // of all machines together
}

func openUnified(cfg Config) (*cgroups, error) {
	parent := cfg.CgroupParent
	u := &unified{ours: parent == "", have: map[string]bool{}, all: cfg.whole()}
	if u.ours {
		var err error
		if parent, err = u.choose(); err != nil {
			return nil, err
		}
	}
	u.path = filepath.Clean("/" + parent)
	c := &cgroups{hierarchy: u, unified: true, overcommit: cfg.Overcommit, parents: []string{filepath.Join(cgroupMount, u.path)}}
	if err := errors.Join(u.makeRoom(), os.MkdirAll(c.parents[0], 0o755)); err != nil {
		return nil, err
	}
	held, err := c.lockParent() // until all that is looked at has been
	if err != nil {
		return nil, err
	}
	defer func() { _ = held.Close() }() // only locked
	for _, name := range controllers {
		if err := u.enable(name); err != nil {
			c.lacks = append(c.lacks, Lack{NoCgroup + "." + name, err.Error()})
			continue
		}
		u.have[name] = true
	}
	if err := u.weigh(); err != nil {
		return nil, err
	}
	if u.have["memory"] {
		u.swap = c.boundsSwap(filepath.Join(c.parents[0], "memory.swap.max"))
	}
	return c, nil
}

// choose says where machines' cgroups are to be. A cgroup that bounds others by a controller has no processes of its own (the "no internal
// process constraint"), but for the root. So: where this process has a cgroup to itself, as a service with Delegate=yes, it makes room
// there; else the parent is below the root.
func (u *unified) choose() (string, error) {
	own, err := unifiedOwn()
	if err != nil {
		return "", err
	}
	if filepath.Base(own) == ownCgroup { // it has made room before
		return filepath.Join(filepath.Dir(own), machinesCgroup), nil
	}
	here := filepath.Join(cgroupMount, own)
	b, err := os.ReadFile(filepath.Join(here, "cgroup.procs"))
	if err != nil {
		return "", err
	}
	_, err = os.Stat(filepath.Join(here, "cgroup.type")) // which the root does not have
	if root := errors.Is(err, os.ErrNotExist); root || strings.TrimSpace(string(b)) != strconv.Itoa(os.Getpid()) {
		return "/" + machinesCgroup, nil
	}
	u.room = here
	return filepath.Join(own, machinesCgroup), nil
}

// makeRoom moves this process into a cgroup below its own, where that is to be divided.
func (u *unified) makeRoom() error {
	if u.room == "" {
		return nil
	}
	below := filepath.Join(u.room, ownCgroup)
	if err := os.Mkdir(below, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := set(filepath.Join(below, "cgroup.procs"), "0"); err != nil {
		return fmt.Errorf("make room in %s: %w", u.room, err)
	}
	return nil
}

// leave moves it back, and leaves its cgroup as it was.
func (u *unified) leave() {
	if u.room == "" {
		return
	}
	for name := range u.have {
		_ = set(filepath.Join(u.room, "cgroup.subtree_control"), "-"+name) // whoever has taken its place there needs it
	}
	if set(filepath.Join(u.room, "cgroup.procs"), "0") == nil {
		_ = os.Remove(filepath.Join(u.room, ownCgroup)) // others of this program may be in it
	}
}

// unifiedOwn is this process's cgroup (cgroups(7), /proc/pid/cgroup).
func unifiedOwn() (string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if own, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return own, nil
		}
	}
	return "", errors.New("this process is in no cgroup")
}

// enable has the parent bound what is below it by a controller. All above it must do so before.
func (u *unified) enable(controller string) error {
	child, err := cgroup2.Load(filepath.Join(u.path, "machine"), cgroup2.WithMountpoint(cgroupMount))
	if err != nil {
		return err
	}
	if err := child.ToggleControllers([]string{controller}, cgroup2.Enable); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(cgroupMount, u.path, "cgroup.subtree_control"))
	if err == nil && !strings.Contains(" "+strings.TrimSpace(string(b))+" ", " "+controller+" ") {
		err = errors.New("the kernel does not enable it")
	}
	return err
}

func (u *unified) ensure() error {
	dir := filepath.Join(cgroupMount, u.path)
	if u.divides(dir) {
		return nil
	}
	if err := errors.Join(u.makeRoom(), os.MkdirAll(dir, 0o755)); err != nil {
		return err
	}
	for name := range u.have {
		if err := u.enable(name); err != nil {
			return err
		}
	}
	return u.weigh()
}

// weigh has all machines together weigh against the rest of the host what they would each for itself, if they had all processors, and all
// memory that is theirs: what a cgroup's parent has not is nothing to it (kernel, as above, "memory.low").
func (u *unified) weigh() error {
	if !u.ours {
		return nil
	}
	return apply(u.weights("", u.all))
}

// weights of v2: the disks' is io.weight where the kernel has iocost, io.bfq.weight where it has BFQ (Documentation/block/bfq-iosched.rst); each
// counts on the disks that are scheduled by it.
func (u *unified) weights(name string, w vmm.Weight) (all []setting) {
	dir := filepath.Join(cgroupMount, u.path, name)
	add := func(file string, n uint64) {
		all = append(all, setting{filepath.Join(dir, file), strconv.FormatUint(n, 10)})
	}
	cpus := weight(w.CPUs)
	if w.CPUs > 0 && u.have["cpu"] {
		add("cpu.weight", cpus)
	}
	if w.CPUs > 0 && u.have["io"] {
		add("io.weight", cpus)
		add("io.bfq.weight", min(cpus, mostBFQ))
	}
	if w.MemoryBytes > 0 && u.have["memory"] {
		add("memory.low", uint64(w.MemoryBytes))
	}
	return all
}

func (u *unified) bounds(name string, memoryBytes int64) []setting {
	if !u.have["memory"] {
		return nil
	}
	return []setting{{filepath.Join(cgroupMount, u.path, name, "memory.max"), strconv.FormatInt(memoryBytes, 10)}}
}

// divides tells whether the parent is there, and bounds what is below it: another launcher may have made it this moment, and be at that.
func (u *unified) divides(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	on := strings.Fields(string(b))
	for name := range u.have {
		if !slices.Contains(on, name) {
			return false
		}
	}
	return err == nil
}

func (u *unified) create(name string, s vmm.Share, disks []device) error {
	g, err := cgroup2.Load(filepath.Join(u.path, name), cgroup2.WithMountpoint(cgroupMount))
	if err != nil {
		return err
	}
	return g.Update(u.resources(s, disks))
}

func (u *unified) resources(s vmm.Share, disks []device) *cgroup2.Resources {
	r := &cgroup2.Resources{}
	if s.CPUs > 0 && u.have["cpu"] {
		quota := quota(s.CPUs)
		r.CPU = &cgroup2.CPU{Max: cgroup2.NewCPUMax(&quota, nil)}
	}
	if s.MemoryBytes > 0 && u.have["memory"] {
		// A VMM that has lost one of its processes is none any more.
		none, all := int64(0), true
		r.Memory = &cgroup2.Memory{Max: &s.MemoryBytes, OOMGroup: &all}
		if u.swap {
			r.Memory.Swap = &none
		}
	}
	if s.PIDs > 0 && u.have["pids"] {
		r.Pids = &cgroup2.Pids{Max: pids(s)}
	}
	if s.DiskBytesPerSecond > 0 && u.have["io"] {
		r.IO = &cgroup2.IO{}
		for _, d := range disks {
			for _, kind := range []cgroup2.IOType{cgroup2.ReadBPS, cgroup2.WriteBPS} {
				r.IO.Max = append(r.IO.Max, cgroup2.Entry{Type: kind, Major: d.major, Minor: d.minor, Rate: uint64(s.DiskBytesPerSecond)})
			}
		}
	}
	return r
}

// weight is v2's: 100, the kernel's default, for each processor.
func weight(cpus float64) uint64 { return min(max(uint64(100*cpus), 1), 10_000) }

// quota is the processor time in each period of 100 ms, the kernel's default, in µs; no less than 1 ms, the kernel's least.
func quota(cpus float64) int64 { return max(int64(cpus*100_000), 1000) }

// pids is no less than the stub needs, which is in the cgroup before it becomes the VMM.
func pids(s vmm.Share) int64 { return int64(max(s.PIDs, 24)) }
