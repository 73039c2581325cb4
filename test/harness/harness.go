// Package harness starts a real Paddock for tests and measurements: the binary, as a process of its own, with its own state
// directory and NATS port, on images that are built once per machine and kept in a cache by content.
package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/test/port"
)

// Options say how to start Paddock. The zero value is the QEMU driver with the default images.
type Options struct {
	// Binary is the program to start; empty means bin/paddock.
	Binary string
	// Command is "up" (the default), "worker" or "dispatcher".
	Command string
	// Dir is the state directory; empty means a new temporary one.
	Dir string
	// Cwd is the process's working directory; empty means this one's.
	Cwd string
	// Driver is "qemu", "hostproc" or "inproc"; empty means qemu.
	Driver string
	// NATS is the address to listen on, or for a worker the server's; empty means a free port on loopback.
	NATS string
	// Args are further arguments.
	Args []string
	// Log takes what the process prints; nil keeps the last of it for errors.
	Log io.Writer
	// Netns is the network namespace to start it in, by its name (ip-netns(8)); empty means this process's.
	Netns string
	// ReadyWithin bounds the start, builds included; 0 means 15 minutes.
	ReadyWithin time.Duration
}

// Paddock is a running process.
type Paddock struct {
	// URL is its NATS server's.
	URL string
	Dir string
	cmd *exec.Cmd
	log *tail
	// done is closed when the process has been reaped; err is its end.
	done chan struct{}
	err  error
	own  bool
}

// Root gives the repository's root, found from the working directory upwards.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("not inside the repository")
		}
		dir = up
	}
}

// Binary gives the path of bin/paddock, which `make build` makes.
func Binary() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(root, "bin", "paddock")
	if _, err := os.Stat(bin); err != nil {
		return "", fmt.Errorf("%w: run `make build` first", err)
	}
	return bin, nil
}

// Cache is where images and templates are kept between runs: PADDOCK_CACHE, else the user's cache directory.
func Cache() (string, error) {
	if dir := os.Getenv("PADDOCK_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "paddock"), err
}

// Image gives an image of the cache, whole.
func Image(ctx context.Context, name string) (images.Image, error) {
	cache, err := Cache()
	if err != nil {
		return images.Image{}, err
	}
	s, err := images.Open(filepath.Join(cache, "images"))
	if err != nil {
		return images.Image{}, err
	}
	return s.OpenImage(ctx, name)
}

// Start starts Paddock and waits until it says that it is ready.
func Start(ctx context.Context, o Options) (_ *Paddock, err error) {
	bin, err := o.Binary, error(nil)
	if bin == "" {
		bin, err = Binary()
	}
	if err != nil {
		return nil, err
	}
	p := &Paddock{Dir: o.Dir, done: make(chan struct{}), log: &tail{to: o.Log, ready: make(chan struct{})}}
	if p.Dir == "" {
		if p.Dir, err = os.MkdirTemp("", "pd-"); err != nil {
			return nil, err
		}
		p.own = true
	}
	args, err := p.args(o)
	if err != nil {
		return nil, err
	}
	p.cmd = exec.Command(bin, args...)
	if o.Netns != "" {
		p.cmd = exec.Command("ip", append([]string{"netns", "exec", o.Netns, bin}, args...)...)
	}
	p.cmd.Dir = o.Cwd
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := run(p.cmd, func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}); err != nil {
		return nil, err
	}
	within := o.ReadyWithin
	if within == 0 {
		within = 15 * time.Minute
	}
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case <-p.log.ready:
		return p, nil
	case <-p.done:
		err = fmt.Errorf("paddock ended: %w", p.err)
	case <-t.C:
		err = fmt.Errorf("paddock not ready after %s", within)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	p.Kill()
	return nil, fmt.Errorf("%s: %w\n%s", strings.Join(p.cmd.Args, " "), err, p.log)
}

// run starts a process and has wait wait for it, both on one thread: Pdeathsig is sent when the thread that forked ends, not when the
// process does (prctl(2)), and threads end that have been in another network namespace.
func run(cmd *exec.Cmd, wait func()) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			wait()
		}
	}()
	return <-started
}

func (p *Paddock) args(o Options) ([]string, error) {
	if o.Command == "" {
		o.Command = "up"
	}
	if o.Driver == "" {
		o.Driver = "qemu"
	}
	if o.NATS == "" {
		addr, err := freeAddr()
		if err != nil {
			return nil, err
		}
		o.NATS = addr
	}
	p.URL = "nats://" + strings.TrimPrefix(o.NATS, "nats://")
	args := []string{o.Command, "--state-dir", p.Dir}
	switch o.Command {
	case "up", "dispatcher":
		args = append(args, "--listen", strings.TrimPrefix(o.NATS, "nats://"))
	default:
		args = append(args, "--nats", p.URL)
	}
	args = append(args, "--metrics-listen", "")
	if o.Command != "dispatcher" {
		cache, err := Cache()
		if err != nil {
			return nil, err
		}
		if o.Netns == "" { // else the namespace is the test's, to do with as it likes
			args = append(args, "--network", "off")
		}
		args = append(args, "--driver", o.Driver, "--image-dir", filepath.Join(cache, "images"))
		if o.Driver == "hostproc" || o.Driver == "inproc" {
			args = append(args, "--insecure-no-isolation")
		}
	}
	return append(args, o.Args...), nil
}

// PID is the process's.
func (p *Paddock) PID() int { return p.cmd.Process.Pid }

// Log is the last of what the process printed.
func (p *Paddock) Log() string { return p.log.String() }

// Done is closed when the process has ended.
func (p *Paddock) Done() <-chan struct{} { return p.done }

// Signal sends the process a signal.
func (p *Paddock) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Kill ends the process with SIGKILL, as a crash would, and waits for it. Its state directory stays, unless Start made it.
func (p *Paddock) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Stop asks the process to end, waits, and removes the state directory where Start made it.
func (p *Paddock) Stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	t := time.NewTimer(time.Minute)
	defer t.Stop()
	var err error
	select {
	case <-p.done:
		err = p.err
	case <-t.C:
		p.dump()
		err = fmt.Errorf("paddock did not end within a minute of SIGTERM:\n%s", p.log)
	}
	if p.own {
		err = errors.Join(err, os.RemoveAll(p.Dir))
	}
	return err
}

// dump ends a process that hangs, and has it say where.
func (p *Paddock) dump() {
	p.log.keep(dumpLines)
	_ = p.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.Kill()
	}
}

func freeAddr() (string, error) {
	p, err := port.Free()
	return port.Addr(p), err
}

// tail keeps the last lines of what is written, and notices the line that says ready.
type tail struct {
	to    io.Writer
	ready chan struct{}

	mu   sync.Mutex
	part []byte
	last []string
	more int // lines that are kept besides tailLines
	seen bool
}

const (
	tailLines = 60
	dumpLines = 2000
)

// keep has it keep further lines.
func (t *tail) keep(lines int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.more = lines
}

// Write implements io.Writer.
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.to != nil {
		_, _ = t.to.Write(b)
	}
	t.part = append(t.part, b...)
	for {
		line, rest, ok := bytes.Cut(t.part, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		t.part = rest
		if !t.seen && bytes.HasPrefix(line, []byte("paddock: ready")) {
			t.seen = true
			close(t.ready)
		}
		t.last = append(t.last, string(line))
		if len(t.last) > tailLines+t.more {
			t.last = t.last[1:]
		}
	}
}

// String gives the last lines.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.last, "\n")
}
