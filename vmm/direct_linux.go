package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"unsafe"
)

// Direct is a Launcher without a jail: the VMM is a plain child with this process's own uid, sees the whole host, and dies with
// this process. It is for tests and for trying things out, and what other launchers fork with. The zero value is ready.
type Direct struct {
	// Attr, where set, changes how the process is forked: a jail sets its namespaces.
	Attr func(*syscall.SysProcAttr)
}

var _ Launcher = Direct{}

// Degraded names the one wall that is missing: all of them.
func (Direct) Degraded() []string { return []string{"jail"} }

// Launch starts c in a process group of its own, with an environment that holds nothing but PATH. What is under c.Writable
// belongs to the process already: it runs under this process's uid.
func (d Direct) Launch(ctx context.Context, c Command) (Process, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("launch %s: %w", c.Name, err)
	}
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	cmd.ExtraFiles = c.Files
	if c.Stderr != nil {
		cmd.Stderr = c.Stderr
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if d.Attr != nil {
		d.Attr(cmd.SysProcAttr)
	}
	p := &directProcess{cmd: cmd, done: make(chan struct{}), pidfd: -1}
	cmd.SysProcAttr.PidFD = &p.pidfd
	started := make(chan error)
	go p.run(started)
	if err := <-started; err != nil {
		<-p.done
		return nil, fmt.Errorf("launch %s: %w", c.Name, err)
	}
	return p, nil
}

// directProcess is a child of this process and its process group.
type directProcess struct {
	cmd   *exec.Cmd
	pidfd int // the child's, whatever becomes of its number; -1 before Linux 5.2
	done  chan struct{}
	err   error // set before done is closed

	mu     sync.Mutex
	reaped bool // the process group's number may belong to somebody else
}

// run forks the child and waits for it, both on one thread: Pdeathsig is sent when the thread that forked ends, not when the
// process does (prctl(2)), so that thread has to live as long as the child. Waiting blocks a thread in any case.
func (p *directProcess) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.done)
	if err := p.cmd.Start(); err != nil {
		started <- err
		return
	}
	started <- nil
	// The dead child stays unreaped until its group has been killed: its number cannot be given to anybody else before that.
	waitErr := p.waitDead()
	p.mu.Lock()
	defer p.mu.Unlock()
	killErr := killGroup(p.cmd.Process.Pid)
	p.err = errors.Join(p.cmd.Wait(), waitErr, killErr)
	p.reaped = true
	if p.pidfd >= 0 {
		p.err = errors.Join(p.err, syscall.Close(p.pidfd))
	}
}

func (p *directProcess) PID() int              { return p.cmd.Process.Pid }
func (p *directProcess) UID() int              { return os.Getuid() }
func (p *directProcess) Done() <-chan struct{} { return p.done }

func (p *directProcess) Err() error {
	<-p.done
	return p.err
}

// Kill ends the child and its process group, and waits until the child is reaped. Grandchildren, which a VMM that may not spawn has none of,
// are killed with it and reaped by whoever inherits them.
func (p *directProcess) Kill() error {
	err := p.kill()
	<-p.done
	return err
}

func (p *directProcess) kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return nil
	}
	return errors.Join(p.killChild(), killGroup(p.cmd.Process.Pid))
}

// killChild is for a child that has left its process group.
func (p *directProcess) killChild() error {
	const pidfdSendSignal = 424 // on all architectures
	if p.pidfd < 0 {
		return p.cmd.Process.Kill()
	}
	if _, _, errno := syscall.Syscall6(pidfdSendSignal, uintptr(p.pidfd), uintptr(syscall.SIGKILL), 0, 0, 0, 0); errno != 0 && errno != syscall.ESRCH {
		return fmt.Errorf("kill process %d: %w", p.cmd.Process.Pid, errno)
	}
	return nil
}

func killGroup(pgid int) error {
	if err := syscall.Kill(-pgid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill process group %d: %w", pgid, err)
	}
	return nil
}

// waitDead waits until the child is dead, without reaping it: waitid(2) with WNOWAIT.
func (p *directProcess) waitDead() error {
	const (
		pPID    = 1
		pPIDFD  = 3
		wExited = 4
		wNowait = 0x1000000
	)
	kind, id := pPIDFD, p.pidfd
	if p.pidfd < 0 {
		kind, id = pPID, p.cmd.Process.Pid
	}
	var info [128]byte // siginfo_t
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, uintptr(kind), uintptr(id), uintptr(unsafe.Pointer(&info)), wExited|wNowait, 0, 0)
		if errno == syscall.EINVAL && kind == pPIDFD { // before Linux 5.4
			kind, id = pPID, p.cmd.Process.Pid
			continue
		}
		if errno == 0 {
			return nil
		}
		if errno != syscall.EINTR {
			return fmt.Errorf("wait for process %d: %w", p.cmd.Process.Pid, errno)
		}
	}
}
