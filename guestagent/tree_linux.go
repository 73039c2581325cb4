package guestagent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// tree confines a program where there is no cgroup: to being a descendant of the agent, which as a subreaper gets every orphan. It
// enforces no memory and no processes limit. As all of the agent's descendants are the program's, there is one at a time.
type tree struct {
	reaper *reaper
	lock   *sync.Mutex
	once   sync.Once
}

func newTree(r *reaper, one *sync.Mutex) (*tree, error) {
	if !one.TryLock() {
		return nil, errors.New("without cgroups, one program runs at a time")
	}
	return &tree{reaper: r, lock: one}, nil
}

func (*tree) attr(*syscall.SysProcAttr) {}

func (*tree) signal(s syscall.Signal) error {
	for _, pid := range descendants(os.Getpid()) {
		_ = syscall.Kill(pid, s) // one that has ended meanwhile needs no signal
	}
	return nil
}

func (t *tree) kill() error {
	for end := time.Now().Add(killWithin); !t.reaper.childless(); {
		if time.Now().After(end) {
			return fmt.Errorf("processes %v do not die", descendants(os.Getpid()))
		}
		if err := t.signal(syscall.SIGKILL); err != nil {
			return err
		}
		time.Sleep(200 * time.Microsecond)
	}
	return nil
}

// cpu is that of the processes that live; the exit status has the rest.
func (t *tree) cpu() (total time.Duration) {
	for _, pid := range descendants(os.Getpid()) {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		if f := strings.Fields(rest); len(f) > 12 {
			user, _ := strconv.ParseInt(f[11], 10, 64)
			system, _ := strconv.ParseInt(f[12], 10, 64)
			total += time.Duration(user+system) * (time.Second / 100) // USER_HZ is 100 on every Linux that Go runs on
		}
	}
	return total
}

func (*tree) peaks() (memory, pids int64) { return 0, 0 }

func (*tree) refusals() (oomKills, pids int64) { return 0, 0 }

func (t *tree) close() error {
	t.once.Do(t.lock.Unlock)
	return nil
}

// descendants lists all processes below pid, itself not included (CONFIG_PROC_CHILDREN).
func descendants(pid int) []int {
	var all []int
	tasks := filepath.Join("/proc", strconv.Itoa(pid), "task")
	dir, err := os.Open(tasks)
	if err != nil {
		return nil
	}
	threads, _ := dir.Readdirnames(-1)
	_ = dir.Close() // it was read
	for _, thread := range threads {
		b, err := os.ReadFile(filepath.Join(tasks, thread, "children"))
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(f); err == nil {
				all = append(append(all, child), descendants(child)...)
			}
		}
	}
	return all
}
