package chaos

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a child that is started, hurt and started again. Only one fault at a time holds it (busy).
type process struct {
	name     string
	argv     []string
	env      []string // beside this process's own
	log      string   // file that takes what all its lives print
	ready    string   // what it prints when it is of use
	dir      string   // where it keeps its state
	addr     string   // where it listens, for what others connect to
	standsBy bool     // it may wait for another's end before it is of use
	mounted  bool     // dir is a mount of its own: it can be filled

	busy sync.Mutex // held by the fault that hurts it

	mu   sync.Mutex
	cmd  *exec.Cmd
	out  *os.File
	from int64 // where in the log this life begins
	done chan struct{}
	err  error
}

// readyWithin bounds a start, on a machine that does other things too.
const readyWithin = 90 * time.Second

// start starts it. It does not wait until it is of use.
func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	info, err := out.Stat()
	if err != nil {
		return errors.Join(err, out.Close())
	}
	p.from = info.Size()
	cmd := exec.Command(p.argv[0], p.argv[1:]...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", p.name, err), out.Close())
	}
	done := make(chan struct{})
	p.cmd, p.out, p.done = cmd, out, done
	go func() {
		err := cmd.Wait()
		_ = out.Close()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(done)
	}()
	return nil
}

// await waits until the process says that it is of use.
func (p *process) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	p.mu.Lock()
	done, from := p.done, p.from
	p.mu.Unlock()
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		if p.said(from, p.ready) {
			tick.Stop()
			return nil
		}
		select {
		case <-tick.C:
			continue
		case <-done:
			tick.Stop()
			return fmt.Errorf("%s ended: %w\n%s", p.name, p.err, p.tail())
		case <-ctx.Done():
			tick.Stop()
			return fmt.Errorf("%s is of no use yet: %w\n%s", p.name, context.Cause(ctx), p.tail())
		}
	}
}

// served tells whether this life of the process has been of use, or has stood by for another.
func (p *process) served() bool {
	p.mu.Lock()
	from := p.from
	p.mu.Unlock()
	return p.said(from, p.ready) || p.standsBy && p.said(from, standsBy)
}

// standsBy is what a dispatcher says of itself that waits for another's end.
const standsBy = "this one stands by"

func (p *process) said(from int64, what string) bool {
	f, err := os.Open(p.log)
	if err != nil {
		return false
	}
	defer f.Close()
	if _, err := f.Seek(from, 0); err != nil {
		return false
	}
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.Contains(s.Text(), what) {
			return true
		}
	}
	return false
}

// tail is the end of what it printed.
func (p *process) tail() string {
	b, _ := os.ReadFile(p.log)
	if len(b) > 4000 {
		b = b[len(b)-4000:]
	}
	return string(bytes.TrimSpace(b))
}

// alive tells whether it runs.
func (p *process) alive() bool {
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	if done == nil {
		return false
	}
	select {
	case <-done:
		return false
	default:
		return true
	}
}

// pid is the process's; 0 where it has never been started.
func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

func (p *process) signal(s syscall.Signal) {
	p.mu.Lock()
	cmd := p.cmd
	p.mu.Unlock()
	if cmd != nil {
		_ = cmd.Process.Signal(s) // os.Process signals nobody else, once it has been waited for
	}
}

// stopped waits until it does nothing more, to which SIGSTOP was sent: a thread finishes the system call in which it is.
func (p *process) stopped() error {
	pid := p.pid()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if !slices.ContainsFunc(stats, going) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: its threads do not stop within a minute", p.name)
		}
	}
}

// going tells whether a thread, of which it gets the file stat, is neither stopped nor gone.
func going(stat string) bool {
	b, err := os.ReadFile(stat)
	_, state, _ := strings.Cut(string(b), ") ")
	return err == nil && !strings.HasPrefix(state, "T") && !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

// kill ends it as a crash would, and waits until it is gone.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	p.wait()
}

func (p *process) wait() {
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	if done != nil {
		<-done
	}
}

// stopWithin is how long a process may take to stop by itself.
const stopWithin = time.Minute

// stop ends it as an operator would, and tells how it ended.
func (p *process) stop() error {
	if !p.alive() {
		return nil
	}
	p.signal(syscall.SIGTERM)
	t := time.NewTimer(stopWithin)
	defer t.Stop()
	select {
	case <-p.done:
		return nil
	case <-t.C:
		p.kill()
		return fmt.Errorf("%s did not stop within %v\n%s", p.name, stopWithin, p.tail())
	}
}
