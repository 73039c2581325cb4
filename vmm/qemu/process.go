package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/tail"
)

// process is a QEMU that obeys QMP, and all that there is of it on our side.
type process struct {
	id     string
	proc   vmm.Process
	qmp    *qmp
	output *os.File // our end of its console, nil for none
	errors *os.File // what it says itself

	console, stderr tail.Tail

	migrated chan string   // how a migration ended; buffered for one
	pointing chan struct{} // held by the one who takes a checkpoint
	backedUp chan struct{} // its copy of the disk has ended; buffered for one
	unplugs  unplugs
	over     chan struct{} // closed when the guest ended itself
	stop     chan struct{} // closed to end it
	stopOnce sync.Once
	done     chan struct{} // closed when all is gone; the fields below are set before

	exit    vmm.Exit
	killErr error
	broken  error // why it was ended, where that was nobody's wish; set before stop is closed

	mu     sync.Mutex
	reason string // why the guest ended itself, empty: it did not
	fault  error  // the first failure of a disk's file
}

// start launches QEMU and waits until it obeys. It takes the files of c and output over, also when it fails.
func (d *Driver) start(ctx context.Context, id string, platform manifest, c *commandLine, output *os.File, cmd vmm.Command) (_ *process, err error) {
	p := &process{
		id: id, output: output,
		migrated: make(chan string, 1), pointing: make(chan struct{}, 1), backedUp: make(chan struct{}, 1),
		over: make(chan struct{}), stop: make(chan struct{}), done: make(chan struct{}),
	}
	closeOnError := []*os.File{output}
	defer func() {
		c.closeFiles()
		if err != nil {
			for _, f := range closeOnError {
				_ = f.Close() // closing a nil file is harmless
			}
		}
	}()
	ours, theirs, err := socketPair("qmp")
	if err != nil {
		return nil, err
	}
	c.base(id, platform, theirs)
	conn, err := unixConn(ours)
	if err != nil {
		return nil, err
	}
	errorsR, errorsW, err := os.Pipe()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	closeOnError = append(closeOnError, errorsR)
	p.errors = errorsR

	cmd.Name, cmd.Path, cmd.Args, cmd.Files, cmd.Stderr = id, d.cfg.Binary, c.args, c.files, errorsW
	if platform.Accel == accelKVM {
		cmd.Devices = append(cmd.Devices, "/dev/kvm")
	}
	p.proc, err = d.cfg.Launcher.Launch(ctx, cmd)
	_ = errorsW.Close()
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	// QEMU's ends must be its alone: ours see their end with it.
	c.closeFiles()
	p.qmp = newQMP(conn, p.event)
	closeOnError = nil
	var readers sync.WaitGroup
	readers.Go(func() { p.stderr.Drain(p.errors) })
	if p.output != nil {
		readers.Go(func() { p.console.Drain(p.output) })
	}
	go p.run(&readers)

	ctx, cancel := d.step(ctx)
	defer cancel()
	if err := p.qmp.negotiate(ctx); err != nil {
		return nil, d.orReplaced(p.fail("start qemu", err))
	}
	return p, nil
}

// run waits for the end of the process, by whatever cause, and clears up behind it and those who read what it says.
func (p *process) run(readers *sync.WaitGroup) {
	defer close(p.done)
	stopped := false
	select {
	case <-p.proc.Done():
	case <-p.over: // it is about to exit; it need not take its time
	case <-p.stop:
		stopped = true
	}
	p.killErr = p.proc.Kill()
	<-p.proc.Done()

	// What QEMU wrote last is still in the sockets, and their end follows it. The deadline is for a launcher that kept a copy.
	deadline := time.Now().Add(time.Second)
	_ = p.qmp.conn.SetReadDeadline(deadline)
	<-p.qmp.ended
	_ = p.errors.SetReadDeadline(deadline)
	if p.output != nil {
		_ = p.output.SetReadDeadline(deadline)
	}
	readers.Wait()
	p.qmp.close()
	_ = p.errors.Close()
	if p.output != nil {
		_ = p.output.Close()
	}
	p.exit = p.cause(stopped)
}

// cause tells how it ended. The guest's own word comes first: it was said before anybody killed anything.
func (p *process) cause(stopped bool) vmm.Exit {
	p.mu.Lock()
	reason := p.reason
	p.mu.Unlock()
	if reason != "" {
		return vmm.Exit{Guest: true, Reason: reason}
	}
	if stopped {
		return vmm.Exit{Err: p.broken}
	}
	err := p.proc.Err()
	if err == nil {
		err = errors.New("exit status 0")
	}
	return vmm.Exit{Err: p.said(fmt.Errorf("qemu ended by itself: %w", err))}
}

// migration waits for the end of a migration.
func (p *process) migration(ctx context.Context) error {
	select {
	case status := <-p.migrated:
		if status != "completed" {
			return fmt.Errorf("migration %s", status)
		}
		return nil
	case <-p.done:
		return errors.New("qemu is gone")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// close ends the process and returns when nothing is left of it. It is idempotent.
func (p *process) close() error {
	p.stopOnce.Do(func() { close(p.stop) })
	<-p.done
	return p.killErr
}

// breakDown ends the process because it cannot go on, which is its Exit then.
func (p *process) breakDown(err error) {
	p.stopOnce.Do(func() {
		p.broken = err
		close(p.stop)
	})
	<-p.done
}

// fail ends the process and tells why, in QEMU's own words too.
func (p *process) fail(what string, err error) error {
	closeErr := p.close()
	return fmt.Errorf("%s %s: %w", what, p.id, errors.Join(p.said(err), closeErr))
}

// explained adds to a command's error how QEMU ended, where it did not survive the command.
func (p *process) explained(err error) error {
	select {
	case <-p.qmp.ended:
	default:
		return err
	}
	if !p.hungUp() && p.exit.Err != nil {
		return fmt.Errorf("%w; %w", err, p.exit.Err)
	}
	return err
}

// hungUp tells of a QEMU that lives and is not connected any more. One that dies is seen to end a moment after its connection.
func (p *process) hungUp() bool {
	select {
	case <-p.qmp.ended:
	default:
		return false
	}
	select {
	case <-p.done:
		return false
	case <-time.After(time.Second):
		return true
	}
}

// said adds what QEMU wrote to its stderr. It is for when QEMU is gone.
func (p *process) said(err error) error {
	s := strings.TrimSpace(p.stderr.String())
	if s == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, strings.ReplaceAll(s, "\n", "; "))
}
