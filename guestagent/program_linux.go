package guestagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// confinement holds all that one program starts, enforces what the kernel can, and counts.
type confinement interface {
	// attr changes how the program is started, so that it is confined from its first instruction.
	attr(*syscall.SysProcAttr)
	signal(s syscall.Signal) error
	// kill ends everything with SIGKILL and returns when nothing of it runs.
	kill() error
	// cpu is the processor time of all of it until now.
	cpu() time.Duration
	// peaks are the most memory in bytes, and the most processes and threads, at once; 0 for what it cannot tell.
	peaks() (memory, pids int64)
	// refusals count how often the kernel ended something for want of memory, and refused it a process.
	refusals() (oomKills, pids int64)
	// close removes what the confinement made; everything in it is dead.
	close() error
}

// program is a started program.
type program struct {
	exec    *wire.Exec
	confine confinement
	disk    *disk // nil: no scratch disk to watch
	reaper  *reaper
	in      io.WriteCloser
	pumps   pumps
	exited  <-chan exitStatus
	began   time.Time

	diskFull bool // whenever somebody looked

	mu    sync.Mutex
	limit string // the first limit that ended it
}

// start starts the program: its pipes, its rlimits, its user, its confinement.
func (m *machine) start(e *wire.Exec) (_ run, err error) {
	file, err := lookPath(e)
	if err != nil {
		return nil, err
	}
	if m.guest != nil && e.TimeUnixNS != 0 {
		if err := correctClock(e.TimeUnixNS); err != nil {
			return nil, fmt.Errorf("set the clock: %w", err)
		}
	}
	if err := m.disk.limit(e.Limits.DiskBytes); err != nil {
		return nil, err
	}
	c, err := m.confine(e)
	if err != nil {
		return nil, fmt.Errorf("confine: %w", err)
	}
	defer func() {
		if err != nil {
			_ = c.close()
		}
	}()
	p := &program{exec: e, confine: c, disk: m.disk, reaper: m.reaper}
	pipes, err := openPipes()
	if err != nil {
		return nil, err
	}
	defer pipes.closeTheirs()
	attr := &syscall.SysProcAttr{Setsid: true}
	if e.User != "root" && m.sandboxUID > 0 {
		id := uint32(m.sandboxUID)
		attr.Credential = &syscall.Credential{Uid: id, Gid: id}
	}
	c.attr(attr)
	p.began = time.Now()
	_, p.exited, err = m.reaper.start(e.Limits, file, &syscall.ProcAttr{
		Dir: m.cwd(e), Env: e.Env, Files: pipes.theirs(), Sys: attr,
	}, e.Argv)
	if err != nil {
		pipes.closeOurs()
		return nil, startError(e, err)
	}
	p.in = pipes.in.ours
	over := func(limit string) func() { return func() { p.end(limit) } }
	p.pumps.stdout = pump{from: pipes.out.ours, ch: wire.ChanStdout, limit: e.Limits.OutputBytes, over: over(wire.LimitStdout)}
	p.pumps.stderr = pump{from: pipes.err.ours, ch: wire.ChanStderr, limit: e.Limits.OutputBytes, over: over(wire.LimitStderr)}
	return p, nil
}

// startError tells a program that cannot be executed from a fault of ours.
func startError(e *wire.Exec, err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		switch errno {
		case syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE:
			return fmt.Errorf("start %s: %w", e.Argv[0], err)
		}
	}
	return &wire.Error{Kind: wire.ErrStart, Message: fmt.Sprintf("%s: %v", e.Argv[0], err)}
}

// lookPath finds the program as a shell would, in the PATH that it gets.
func lookPath(e *wire.Exec) (string, error) {
	name := e.Argv[0]
	if strings.Contains(name, "/") {
		return name, nil // the kernel says what is wrong with it
	}
	denied := false
	for _, kv := range e.Env {
		dirs, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range strings.Split(dirs, ":") {
			file := path.Join("/", dir, name)
			st, err := os.Stat(file)
			if err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
				return file, nil
			}
			denied = denied || err == nil || errors.Is(err, fs.ErrPermission)
		}
	}
	why := "not found in PATH"
	if denied {
		why = "not executable"
	}
	return "", &wire.Error{Kind: wire.ErrStart, Message: name + ": " + why}
}

func (p *program) stdin() io.WriteCloser { return p.in }

func (p *program) signal(name string) error {
	s := unix.SignalNum(name)
	if s == 0 {
		return &wire.Error{Kind: wire.ErrRequest, Message: "no signal " + name}
	}
	return p.confine.signal(s)
}

// end kills the program for a limit; the first limit is the one that counts.
func (p *program) end(limit string) {
	p.mu.Lock()
	first := p.limit == ""
	if first {
		p.limit = limit
	}
	p.mu.Unlock()
	if first {
		_ = p.confine.signal(syscall.SIGKILL)
	}
}

// wait implements run.
func (p *program) wait(ctx context.Context, send func(wire.Channel, []byte) error) (wire.Exit, error) {
	p.pumps.start(send)
	status := p.watch(ctx)
	took := time.Since(p.began)
	// The main process is over: so is the step. Whatever else it started dies now, and with it the last writer of the pipes.
	killErr := p.confine.kill()
	p.pumps.running.Wait()
	p.look()
	memory, pids := p.confine.peaks()
	e := wire.Exit{
		Code: status.code(), Signal: status.signal(), WallMS: milliseconds(took), CPUMS: milliseconds(max(p.confine.cpu(), status.cpu)),
		MemoryPeakBytes: max(memory, status.maxRSS), PIDsPeak: pids,
	}
	p.pumps.counts(&e)
	e.Limit = p.verdict(e)
	_ = p.pumps.stdout.from.(io.Closer).Close()
	_ = p.pumps.stderr.from.(io.Closer).Close()
	if err := errors.Join(killErr, p.confine.close()); err != nil {
		return wire.Exit{}, fmt.Errorf("end what %s started: %w", p.exec.Argv[0], err)
	}
	return e, nil
}

// look notes whether the program has a full disk.
func (p *program) look() { p.diskFull = p.diskFull || p.disk.full() }

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// watch waits for the main process and enforces the limits that the kernel does not.
func (p *program) watch(ctx context.Context) exitStatus {
	l := p.exec.Limits
	var wall <-chan time.Time
	if l.WallMS > 0 {
		t := time.NewTimer(time.Until(p.began.Add(time.Duration(l.WallMS) * time.Millisecond)))
		defer t.Stop()
		wall = t.C
	}
	sample := time.NewTimer(p.nextSample(0))
	defer sample.Stop()
	done := ctx.Done()
	for {
		select {
		case s := <-p.exited:
			return s
		case <-wall:
			p.end(wire.LimitWall)
		case <-done:
			done = nil
			_ = p.confine.signal(syscall.SIGKILL)
		case <-sample.C:
			p.look()
			cpu := p.confine.cpu()
			if l.CPUMS > 0 && cpu >= time.Duration(l.CPUMS)*time.Millisecond {
				p.end(wire.LimitCPU)
			}
			sample.Reset(p.nextSample(cpu))
		}
	}
}

// The sampling interval: never longer than the program could need to use up its cpu time on one processor, within these bounds.
const minSample, maxSample = 5 * time.Millisecond, 100 * time.Millisecond

func (p *program) nextSample(used time.Duration) time.Duration {
	if p.exec.Limits.CPUMS == 0 {
		return maxSample
	}
	left := time.Duration(p.exec.Limits.CPUMS)*time.Millisecond - used
	return min(max(left, minSample), maxSample)
}

// verdict names the limit that ended the program. One that the kernel enforced by refusing counts only where the program failed over it,
// and before the time that it then wasted.
func (p *program) verdict(e wire.Exit) string {
	p.mu.Lock()
	limit := p.limit
	p.mu.Unlock()
	if e.Code == 0 || limit == wire.LimitStdout || limit == wire.LimitStderr {
		return limit
	}
	oomKills, pids := p.confine.refusals()
	switch {
	case oomKills > 0:
		return wire.LimitMemory
	case pids > 0:
		return wire.LimitPIDs
	case p.diskFull:
		return wire.LimitDisk
	case e.Signal == "SIGXFSZ":
		return wire.LimitFile
	}
	return limit
}
