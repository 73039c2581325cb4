package guestagent

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// cgroupRoot is where the guest's cgroup v2 hierarchy is mounted.
const cgroupRoot = "/sys/fs/cgroup"

// cgroups makes the programs' cgroups, each ahead of its program: under an emulated processor that takes milliseconds.
type cgroups struct {
	reaper *reaper

	mu    sync.Mutex
	spare *cgroup
}

// cgroup confines a program to a cgroup v2 of its own (kernel: Documentation/admin-guide/cgroup-v2.rst).
type cgroup struct {
	from *cgroups
	dir  string
	fd   *os.File
}

// prepare makes a spare one, if there is none.
func (g *cgroups) prepare() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.spare == nil {
		g.spare, _ = g.make() // who needs one tries again, and says why it fails
	}
}

// confine gives a program's cgroup with its limits. A limit that cannot be set is an error: nothing runs unconfined.
func (g *cgroups) confine(e *wire.Exec) (_ confinement, err error) {
	g.mu.Lock()
	c := g.spare
	g.spare = nil
	g.mu.Unlock()
	if c == nil {
		if c, err = g.make(); err != nil {
			return nil, err
		}
	}
	for file, limit := range map[string]int64{"memory.max": e.Limits.MemoryBytes, "pids.max": e.Limits.PIDs} {
		if limit == 0 {
			continue
		}
		if err := c.write(file, strconv.FormatInt(limit, 10)); err != nil {
			return nil, errors.Join(err, c.remove())
		}
	}
	return c, nil
}

func (g *cgroups) make() (_ *cgroup, err error) {
	c := &cgroup{dir: filepath.Join(cgroupRoot, "exec-"+strconv.FormatInt(time.Now().UnixNano(), 36)), from: g}
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		return nil, err
	}
	for file, value := range map[string]string{"memory.swap.max": "0", "memory.oom.group": "1"} {
		if err := c.write(file, value); err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without swap has no swap.max
			return nil, errors.Join(err, c.remove())
		}
	}
	if c.fd, err = os.Open(c.dir); err != nil {
		return nil, errors.Join(err, c.remove())
	}
	return c, nil
}

func (c *cgroup) write(file, value string) error {
	return os.WriteFile(filepath.Join(c.dir, file), []byte(value), 0)
}

func (c *cgroup) attr(a *syscall.SysProcAttr) {
	a.UseCgroupFD, a.CgroupFD = true, int(c.fd.Fd())
}

func (c *cgroup) signal(s syscall.Signal) error {
	if s == syscall.SIGKILL {
		return c.write("cgroup.kill", "1")
	}
	pids, err := os.ReadFile(filepath.Join(c.dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, f := range strings.Fields(string(pids)) {
		if pid, err := strconv.Atoi(f); err == nil {
			_ = syscall.Kill(pid, s) // one that has ended meanwhile needs no signal
		}
	}
	return nil
}

// killWithin is how long SIGKILL may take to be obeyed by a whole cgroup, under an emulated processor and with thousands of processes.
const killWithin = 10 * time.Second

func (c *cgroup) kill() error {
	if !c.populated() {
		return nil
	}
	if err := c.signal(syscall.SIGKILL); err != nil {
		return err
	}
	for wait, end := 200*time.Microsecond, time.Now().Add(killWithin); c.populated(); wait = min(2*wait, 10*time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("processes in %s do not die", c.dir)
		}
		time.Sleep(wait)
		c.from.reaper.reap()
	}
	return nil
}

// populated tells whether a process lives in it; one whose end nobody has waited for yet does not (cgroup.events).
func (c *cgroup) populated() bool { return c.value("cgroup.events", "populated") != 0 }

func (c *cgroup) cpu() time.Duration {
	return time.Duration(c.value("cpu.stat", "usage_usec")) * time.Microsecond
}

func (c *cgroup) peaks() (memory, pids int64) { return c.single("memory.peak"), c.single("pids.peak") }

func (c *cgroup) refusals() (oomKills, pids int64) {
	return c.value("memory.events", "oom_kill"), c.value("pids.events", "max")
}

// value reads one key of a flat-keyed file; 0 where there is none.
func (c *cgroup) value(file, key string) int64 {
	f, err := os.Open(filepath.Join(c.dir, file))
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, _ := strings.Cut(s.Text(), " "); k == key {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}

func (c *cgroup) single(file string) int64 {
	b, err := os.ReadFile(filepath.Join(c.dir, file))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n
}

// close lets the cgroup go, in which nothing lives, and makes the next while the program's end is on its way to the host.
func (c *cgroup) close() error {
	go func() { // ends in a moment
		_ = c.remove() // what is left of one machine's programs ends with the machine
		c.from.prepare()
	}()
	return nil
}

func (c *cgroup) remove() error {
	if c.fd != nil {
		_ = c.fd.Close()
	}
	// A process that has just been reaped may hold the directory for a moment.
	var err error
	for range 100 {
		if err = os.Remove(c.dir); !errors.Is(err, syscall.EBUSY) {
			break
		}
		c.from.reaper.reap()
		time.Sleep(time.Millisecond)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
