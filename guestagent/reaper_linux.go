package guestagent

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// reaper starts processes and waits for all of them, for those that were left to it as well: as PID 1 or as a subreaper the agent gets
// the orphans. Nothing else in the process may wait for a child.
type reaper struct {
	mu      sync.Mutex // held from before a fork until its child is noted, so that no child is reaped unnoted
	waiting map[int]chan exitStatus
	reaped  *sync.Cond // broadcast after every round of reaping
	none    bool       // the last round found no child at all

	privileged bool // has CAP_SYS_RESOURCE: may raise what it has lowered
}

// exitStatus is how a process ended, and what it and those it waited for used.
type exitStatus struct {
	status syscall.WaitStatus
	cpu    time.Duration
	maxRSS int64
}

func (s exitStatus) code() int {
	if s.status.Signaled() {
		return -1
	}
	return s.status.ExitStatus()
}

func (s exitStatus) signal() string {
	if !s.status.Signaled() {
		return ""
	}
	return unix.SignalName(s.status.Signal())
}

// newReaper begins to reap; it goes on as long as the process lives.
func newReaper() *reaper {
	r := &reaper{waiting: map[int]chan exitStatus{}, privileged: capable(unix.CAP_SYS_RESOURCE)}
	r.reaped = sync.NewCond(&r.mu)
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	go func() {
		for range children {
			r.reap()
		}
	}()
	return r
}

// reap takes in all children that have ended.
func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.reaped.Broadcast()
	for {
		var s exitStatus
		var u syscall.Rusage
		pid, err := syscall.Wait4(-1, &s.status, syscall.WNOHANG, &u)
		if err == syscall.EINTR {
			continue
		}
		r.none = err == syscall.ECHILD
		if err != nil || pid == 0 {
			return
		}
		s.cpu = time.Duration(u.Utime.Nano() + u.Stime.Nano())
		s.maxRSS = u.Maxrss << 10
		if c := r.waiting[pid]; c != nil {
			c <- s
			delete(r.waiting, pid)
		}
	}
}

// childless reaps what has ended and tells whether no child is left.
func (r *reaper) childless() bool {
	r.reap()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.none
}

// start forks a process under resource limits. They are set on the agent itself around the fork, since they must hold before the
// program's first instruction and a helper in between would cost an exec; nobody else forks meanwhile. The hard limit is lowered only
// where the agent may raise it again.
func (r *reaper) start(l wire.ExecLimits, file string, attr *syscall.ProcAttr, argv []string) (int, <-chan exitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	restore, err := r.setLimits(l)
	if err != nil {
		return 0, nil, err
	}
	pid, err := syscall.ForkExec(file, argv, attr)
	restore()
	if err != nil {
		return 0, nil, err
	}
	c := make(chan exitStatus, 1)
	r.waiting[pid] = c
	r.none = false
	return pid, c, nil
}

func (r *reaper) setLimits(l wire.ExecLimits) (restore func(), _ error) {
	type limit struct {
		resource int
		old      syscall.Rlimit
	}
	var changed []limit
	restore = func() {
		for _, c := range changed {
			_ = syscall.Setrlimit(c.resource, &c.old)
		}
	}
	for _, want := range []struct {
		resource int
		value    int64
		zero     bool // 0 is meant, and not "no limit"
	}{
		{unix.RLIMIT_FSIZE, l.FileBytes, false},
		{unix.RLIMIT_NOFILE, l.OpenFiles, false},
		{unix.RLIMIT_CORE, 0, true},
	} {
		if want.value == 0 && !want.zero {
			continue
		}
		c := limit{resource: want.resource}
		if err := syscall.Getrlimit(c.resource, &c.old); err != nil {
			restore()
			return nil, err
		}
		to := syscall.Rlimit{Cur: min(uint64(want.value), c.old.Max), Max: min(uint64(want.value), c.old.Max)}
		if !r.privileged {
			to.Max = c.old.Max
		}
		if err := syscall.Setrlimit(c.resource, &to); err != nil {
			restore()
			return nil, err
		}
		changed = append(changed, c)
	}
	return restore, nil
}

// capable tells whether this process has a capability (capabilities(7)).
func capable(c uint) bool {
	var data [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0])
	return err == nil && data[c/32].Effective&(1<<(c%32)) != 0
}
