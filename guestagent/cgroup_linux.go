package guestagent

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// cgroupRoot is where the guest's cgroup v2 hierarchy is mounted.
const cgroupRoot = "/sys/fs/cgroup"

// cgroup confines a program to a cgroup v2 of its own (kernel: Documentation/admin-guide/cgroup-v2.rst).
type cgroup struct {
	dir    string
	fd     *os.File
	reaper *reaper
}

// newCgroup makes the program's cgroup with its limits. A limit that cannot be set is an error: nothing runs unconfined.
func newCgroup(r *reaper, e *wire.Exec) (_ *cgroup, err error) {
	c := &cgroup{dir: filepath.Join(cgroupRoot, "exec-"+strconv.FormatInt(time.Now().UnixNano(), 36)), reaper: r}
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = c.close()
		}
	}()
	if l := e.Limits.MemoryBytes; l > 0 {
		for _, kv := range [][2]string{{"memory.max", strconv.FormatInt(l, 10)}, {"memory.swap.max", "0"}, {"memory.oom.group", "1"}} {
			if err := c.write(kv[0], kv[1]); err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without swap has no swap.max
				return nil, err
			}
		}
	}
	if l := e.Limits.PIDs; l > 0 {
		if err := c.write("pids.max", strconv.FormatInt(l, 10)); err != nil {
			return nil, err
		}
	}
	c.fd, err = os.Open(c.dir)
	return c, err
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
	if err := c.signal(syscall.SIGKILL); err != nil {
		return err
	}
	for wait, end := 200*time.Microsecond, time.Now().Add(killWithin); c.value("cgroup.events", "populated") != 0; wait = min(2*wait, 10*time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("processes in %s do not die", c.dir)
		}
		time.Sleep(wait)
		c.reaper.reap()
	}
	return nil
}

func (c *cgroup) measure() measured {
	return measured{
		cpu:         time.Duration(c.value("cpu.stat", "usage_usec")) * time.Microsecond,
		memoryPeak:  c.single("memory.peak"),
		pidsPeak:    c.single("pids.peak"),
		oomKills:    c.value("memory.events", "oom_kill"),
		pidsRefused: c.value("pids.events", "max"),
	}
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

func (c *cgroup) close() error {
	if c.fd != nil {
		_ = c.fd.Close()
	}
	// A process that has just been reaped may hold the directory for a moment.
	var err error
	for range 100 {
		if err = os.Remove(c.dir); !errors.Is(err, syscall.EBUSY) {
			break
		}
		c.reaper.reap()
		time.Sleep(time.Millisecond)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
