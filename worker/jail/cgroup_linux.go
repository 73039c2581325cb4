package jail

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
)

// cgroups makes a cgroup for each machine, all below one parent, which launchers of several processes may have in common. A machine's
// cgroup belongs to whoever holds a lock (flock(2)) on its directory: the kernel gives that back when a launcher dies, and what nobody
// holds is a leftover, for the next launcher to remove.
type cgroups struct {
	hierarchy
	// parents are the parent's directories: one in v2, one for each controller in v1. Locks are on those of the first.
	parents []string
	unified bool
	lacks   []Lack
	// overcommit is how often over this host's memory is given to machines.
	overcommit float64
}

// hierarchy is the cgroup file system of one version.
type hierarchy interface {
	// ensure makes the parent, where it is not there.
	ensure() error
	// create makes the cgroup of that name in the parent, with its bounds.
	create(name string, s vmm.Share, disks []device) error
	// weights are the files by which the cgroup of that name would weigh so much.
	weights(name string, w vmm.Weight) []setting
	// bounds are the files by which the cgroup of that name would have so much memory at most: in v1 memory, and that with swap where it is bounded.
	bounds(name string, memoryBytes int64) []setting
	// leave undoes what ensure did besides. The parent is gone.
	leave()
}

// cgroup is one machine's.
type cgroup struct {
	name    string
	dirs    []string
	unified bool
	held    *os.File // the first of dirs, locked
}

// settling is how long processes that were killed may take to be gone: one that the kernel holds up in I/O takes its time.
const settling = 10 * time.Second

// make makes a cgroup, and holds it. It is empty; start puts a process into it.
func (c *cgroups) make(name string, s vmm.Share, disks []device) (_ *cgroup, err error) {
	parent, err := c.lockParent()
	if err != nil {
		return nil, err
	}
	defer func() { _ = parent.Close() }() // only locked
	// A machine's name is its own, "probe" is not. The directory's is, in the first hierarchy and so in all.
	first, err := os.MkdirTemp(c.parents[0], name+".")
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	g := c.cgroup(filepath.Base(first))
	if err := errors.Join(c.create(g.name, s, disks), c.weigh(g.name, weightOf(s))); err != nil {
		return nil, errors.Join(fmt.Errorf("cgroup: %w", err), g.remove())
	}
	if g.held, err = lockDir(first, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("cgroup: %w", err), g.remove())
	}
	return g, nil
}

// remakings is how often the parent is made anew because other launchers have removed it meanwhile. That takes them microseconds.
const remakings = 100

// lockParent keeps whoever looks for leftovers, or would remove the parent, off it; and makes it anew where that was done before.
func (c *cgroups) lockParent() (*os.File, error) {
	for left := remakings; ; left-- {
		err := c.ensure()
		if left > 0 && removedMeanwhile(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cgroup: %w", err)
		}
		f, err := lockDir(c.parents[0], unix.LOCK_SH)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cgroup: %w", err)
		}
		opened, err := f.Stat()
		if err == nil {
			var named os.FileInfo
			if named, err = os.Stat(c.parents[0]); err == nil && os.SameFile(opened, named) {
				if err = c.ensure(); err == nil { // all of it: now nobody removes any
					return f, nil
				}
			}
		}
		_ = f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("cgroup: %w", err)
		}
	}
}

// removedMeanwhile tells an error of who makes the parent, or opens or writes a file in it, while another launcher removes it.
func removedMeanwhile(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENODEV)
}

func lockDir(dir string, how int) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
		}
	}
}

func (c *cgroups) cgroup(name string) *cgroup {
	g := &cgroup{name: name, unified: c.unified}
	for _, p := range c.parents {
		g.dirs = append(g.dirs, filepath.Join(p, name))
	}
	return g
}

// sweep removes what launchers left that are dead.
func (c *cgroups) sweep() error {
	leftovers, err := c.leftovers()
	for _, g := range leftovers {
		err = errors.Join(err, g.kill(), g.remove())
	}
	return err
}

// leftovers are the cgroups that nobody holds; now they are held. Nobody makes one meanwhile: between its making and its locking it
// would look like one of them.
func (c *cgroups) leftovers() (all []*cgroup, _ error) {
	parent, err := lockDir(c.parents[0], unix.LOCK_EX)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = parent.Close() }() // only locked
	var names []string
	for _, p := range c.parents {
		entries, err := os.ReadDir(p)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() && !slices.Contains(names, e.Name()) {
				names = append(names, e.Name())
			}
		}
	}
	for _, name := range names {
		g := c.cgroup(name)
		held, err := lockDir(g.dirs[0], unix.LOCK_EX|unix.LOCK_NB)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // somebody's; without the first directory it is half removed
			continue
		}
		g.held = held
		all = append(all, g)
	}
	return all, nil
}

// close removes the parent, unless others have machines in it.
func (c *cgroups) close() error {
	parent, err := lockDir(c.parents[0], unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, fs.ErrNotExist): // another launcher has removed it
		c.leave()
		return nil
	case errors.Is(err, unix.EWOULDBLOCK): // or is at it
		return nil
	case err != nil:
		return err
	}
	for _, p := range slices.Backward(c.parents) {
		err = os.Remove(p) // not where it is not empty
	}
	if err == nil {
		c.leave()
	}
	return parent.Close()
}

// boundsSwap tells whether a file by which swap is bounded is there. A kernel without swap needs none.
func (c *cgroups) boundsSwap(file string) bool {
	if _, err := os.Stat(file); err == nil {
		return true
	}
	if _, err := os.Stat("/proc/swaps"); err == nil {
		c.lacks = append(c.lacks, Lack{NoSwap, "the kernel has no " + filepath.Base(file)})
	}
	return false
}

// processes are in it now.
func (g *cgroup) processes() (pids []int, _ error) {
	b, err := os.ReadFile(filepath.Join(g.dirs[0], "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) { // it was removed, before or after the file was opened
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// kill ends all that is in it. Nothing can fork away from it: cgroup.kill (Linux 5.14) sees to that, and before it the freezer.
func (g *cgroup) kill() error {
	if g == nil {
		return nil
	}
	err := set(filepath.Join(g.dirs[0], "cgroup.kill"), "1")
	switch {
	case err == nil, errors.Is(err, unix.ENODEV):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return g.killEach()
	}
	return fmt.Errorf("kill: %w", err)
}

// killEach stops all processes, so that none forks and none's number becomes another's, and has each die as it goes on.
func (g *cgroup) killEach() error {
	file, frozen, thawed := "freezer.state", "FROZEN", "THAWED" // kernel: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst
	if g.unified {
		file, frozen, thawed = "cgroup.freeze", "1", "0"
	}
	file = filepath.Join(g.dirs[0], file)
	for deadline := time.Now().Add(settling); ; time.Sleep(time.Millisecond) {
		_ = set(file, frozen) // without a freezer, or without success, there are more rounds
		pids, err := g.processes()
		for _, pid := range pids {
			if killErr := unix.Kill(pid, unix.SIGKILL); killErr != nil && killErr != unix.ESRCH {
				err = errors.Join(err, fmt.Errorf("kill process %d: %w", pid, killErr))
			}
		}
		_ = set(file, thawed)
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill: %d processes are still in %s", len(pids), g.dirs[0])
		}
	}
}

// remove removes it, once its processes are gone, and lets go of it.
func (g *cgroup) remove() (err error) {
	if g == nil {
		return nil
	}
	for _, dir := range slices.Backward(g.dirs) { // that which is locked last
		err = errors.Join(err, removeDir(dir))
	}
	return errors.Join(err, g.release())
}

func (g *cgroup) release() error {
	if g.held == nil {
		return nil
	}
	return g.held.Close()
}

// removeDir waits for the kernel, which says that a process is gone a moment before its cgroup knows.
func removeDir(dir string) error {
	for deadline := time.Now().Add(settling); ; time.Sleep(time.Millisecond) {
		err := unix.Rmdir(dir)
		switch {
		case err == nil, err == unix.ENOENT:
			return nil
		case err != unix.EBUSY && err != unix.EINTR, time.Now().After(deadline):
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
}

// doors are the files by which the stub's thread enters a cgroup of v1 by itself, "0" for its number; v2's is entered with the process's
// making. It is one thread that enters, and becomes the VMM alone: to move a whole process, the kernel would wait for all processors
// (cgroup_attach_lock), 3 ms and more each time.
func (g *cgroup) doors() (files []*os.File, _ error) {
	if g == nil || g.unified {
		return nil, nil
	}
	for _, dir := range g.dirs {
		f, err := os.OpenFile(filepath.Join(dir, "tasks"), os.O_WRONLY, 0)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// enter puts another process into a cgroup of v1; into v2's it was born.
func (g *cgroup) enter(pid int) (err error) {
	if g.unified {
		return nil
	}
	for _, dir := range g.dirs {
		err = errors.Join(err, set(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)))
	}
	return err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing was to be written by us
	}
}

// set writes a file of the cgroup file system, which cannot be made.
func set(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
