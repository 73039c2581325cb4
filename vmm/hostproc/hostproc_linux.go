// Package hostproc is a driver whose machines are plain processes of this host: each is a guest agent with a directory of its own. It
// isolates nothing, and refuses to be made unless that is asked for. It exists for tests, and for measuring everything but the machine.
// It imports vmm and the standard library.
package hostproc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/paddockvm/paddock/vmm"
)

// Config says how machines are made.
type Config struct {
	// Agent is the paddock-agent binary.
	Agent string
	// RunDir holds the machines' directories.
	RunDir string
	// Insecure must be true: programs of jobs run as this process's user, on this host.
	Insecure bool
}

// Driver is vmm.Driver for processes.
type Driver struct{ cfg Config }

var _ vmm.Driver = (*Driver)(nil)

// New refuses a configuration that does not say that it knows what it does. It removes the directories of machines whose process has died.
func New(cfg Config) (*Driver, error) {
	if !cfg.Insecure {
		return nil, errors.New("the driver hostproc runs programs as plain processes of this host and isolates nothing: it wants --insecure-no-isolation")
	}
	if _, err := os.Stat(cfg.Agent); err != nil {
		return nil, fmt.Errorf("hostproc: the agent: %w", err)
	}
	if err := errors.Join(os.MkdirAll(cfg.RunDir, 0o755), removeDead(cfg.RunDir)); err != nil {
		return nil, fmt.Errorf("hostproc: %w", err)
	}
	return &Driver{cfg}, nil
}

// Name is "hostproc".
func (*Driver) Name() string { return "hostproc" }

// Probe says what is missing: everything.
func (*Driver) Probe(context.Context) (vmm.Caps, error) {
	return vmm.Caps{Version: "1", Accel: "none", Machine: "hostproc", CPU: "host", Degraded: []string{"isolation", "cgroup"}}, nil
}

// Boot gives vmm.ErrUnsupported: a process has no memory that could be a template.
func (*Driver) Boot(context.Context, vmm.Boot, vmm.Attach) (vmm.Machine, error) {
	return nil, vmm.ErrUnsupported
}

// Prepare starts the agent.
func (d *Driver) Prepare(ctx context.Context, _ vmm.Template, _ vmm.Attach) (_ vmm.Prepared, err error) {
	at, err := newPlace(d.cfg.RunDir)
	if err != nil {
		return nil, err
	}
	m := &machine{id: filepath.Base(at.dir), at: at, done: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = at.remove()
		}
	}()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "host"), os.NewFile(uintptr(pair[1]), "guest")
	defer theirs.Close()
	stream, err := net.FileConn(ours)
	_ = ours.Close() // FileConn has made its own
	if err != nil {
		return nil, err
	}
	m.line = &line{stream: stream}
	args := []string{"serve", "--fd", "3", "--work", at.dir}
	launcher := vmm.Direct{}
	if os.Geteuid() == 0 { // a pid namespace ends with its first process: nothing that a job started outlives its agent
		args = append(args, "--pid-namespace")
		launcher.Attr = func(a *syscall.SysProcAttr) { a.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS }
	}
	m.process, err = launcher.Launch(ctx, vmm.Command{Name: m.id, Path: d.cfg.Agent, Args: args, Files: []*os.File{theirs}})
	if err != nil {
		return nil, errors.Join(err, m.line.close())
	}
	m.handle, _ = os.FindProcess(m.process.PID()) // never fails on Unix; a pidfd, which is nobody else's once the process is gone
	m.end = sync.OnceValue(m.shut)
	go m.watch()
	return &prepared{m: m}, nil
}

type prepared struct {
	m    *machine
	mu   sync.Mutex
	used bool
}

func (p *prepared) Restore(ctx context.Context) (vmm.Machine, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used {
		return nil, errors.New("prepared machine used or closed")
	}
	p.used = true
	if ctx.Err() != nil {
		return nil, errors.Join(context.Cause(ctx), p.m.Close())
	}
	return p.m, nil
}

func (p *prepared) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used {
		return nil
	}
	p.used = true
	return p.m.Close()
}

// machine is an agent process.
type machine struct {
	id      string
	at      place
	line    *line
	process vmm.Process
	handle  *os.Process
	done    chan struct{}
	end     func() error

	mu     sync.Mutex
	closed bool
	exit   vmm.Exit
}

var _ vmm.Machine = (*machine)(nil)

func (m *machine) watch() {
	<-m.process.Done()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		err := m.process.Err()
		if err == nil {
			err = errors.New("ended with status 0")
		}
		m.exit = vmm.Exit{Err: fmt.Errorf("agent process: %w", err)}
	}
	close(m.done)
}

func (m *machine) ID() string { return m.id }

// DialGuest gives the stream to the agent, anew each time; the agent tells conversations apart by their greetings.
func (m *machine) DialGuest(ctx context.Context) (net.Conn, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return m.line.dial()
}

// Pause stops the agent, and with it all conversation; programs that it has started go on.
func (m *machine) Pause(context.Context) error { return m.signal(syscall.SIGSTOP) }

// Resume lets the agent go on.
func (m *machine) Resume(context.Context) error { return m.signal(syscall.SIGCONT) }

func (m *machine) signal(s syscall.Signal) error {
	select {
	case <-m.done:
		return net.ErrClosed
	default:
		return m.handle.Signal(s)
	}
}

// Snapshot gives vmm.ErrUnsupported.
func (*machine) Snapshot(context.Context, string) (vmm.Template, error) {
	return vmm.Template{}, vmm.ErrUnsupported
}

func (m *machine) Done() <-chan struct{} { return m.done }

func (m *machine) Exit() vmm.Exit {
	<-m.done
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exit
}

func (*machine) Console() string { return "" }

func (m *machine) Close() error { return m.end() }

func (m *machine) shut() error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	err := errors.Join(m.line.close(), m.process.Kill())
	<-m.done
	_ = m.handle.Release()
	return errors.Join(err, m.at.remove())
}
