package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor/api"
	"github.com/paddockvm/paddock/vmm/tail"
)

// Descriptors of every VMM, from 3 on as launchers number them: a template's configuration names them, so they are the same in each. What
// a machine has not is /dev/null.
const (
	dirFD     = 3 + iota // the machine's own directory
	apiFD                // the listening socket of the API
	eventsFD             // where events are written to
	extraFD              // of a clone its template's directory, else the kernel
	initrdFD             // not of a clone
	rootFD               // the disks
	scratchFD            //
)

// Names in the machine's directory.
const (
	apiSocket   = "api"
	vsockSocket = "vsock"
	consolePipe = "console"
)

// process is a Cloud Hypervisor that answers, and all that there is of it on our side.
type process struct {
	id     string
	proc   vmm.Process
	api    *api.Client
	dir    *directory
	output *os.File // our end of the guest's console
	hold   *os.File // its other end, so that the console does not end before it begins
	events *os.File
	errors *os.File // what it says itself

	console, stderr tail.Tail

	over     chan struct{} // closed when the guest ended itself
	stop     chan struct{} // closed to end it
	stopOnce sync.Once
	done     chan struct{} // closed when all is gone; the fields below are set before

	exit    vmm.Exit
	killErr error
	broken  error // why it was ended, where that was nobody's wish; set before stop is closed

	mu     sync.Mutex
	reason string // why the guest ended itself, empty: it did not
}

// start launches Cloud Hypervisor. It takes dir and files, which are those from extraFD on, over, also when it fails.
func (d *Driver) start(ctx context.Context, id string, dir *directory, files []*os.File, cmd vmm.Command) (_ *process, err error) {
	p := &process{id: id, dir: dir, over: make(chan struct{}), stop: make(chan struct{}), done: make(chan struct{})}
	theirs, ours := files, []*os.File(nil)
	defer func() {
		closeAll(theirs)
		if err != nil {
			closeAll(ours)
			dir.close()
		}
	}()
	listener, err := dir.listener(apiSocket)
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, listener)
	events, eventsW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	theirs, ours = append(theirs, eventsW), append(ours, events)
	errorsR, errorsW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	theirs, ours = append(theirs, errorsW), append(ours, errorsR)
	p.events, p.errors = events, errorsR
	if p.output, p.hold, err = dir.pipe(consolePipe); err != nil {
		return nil, err
	}
	ours = append(ours, p.output, p.hold)

	cmd.Name, cmd.Path, cmd.ReadOnly, cmd.Devices, cmd.Stderr = id, d.cfg.Binary, []string{d.cfg.Binary}, []string{"/dev/kvm"}, errorsW
	cmd.Args = []string{"--api-socket", fmt.Sprintf("fd=%d", apiFD), "--event-monitor", fmt.Sprintf("fd=%d", eventsFD)}
	cmd.Files = append([]*os.File{dir.f, listener, eventsW}, files...)
	if p.proc, err = d.cfg.Launcher.Launch(ctx, cmd); err != nil {
		return nil, fmt.Errorf("start cloud-hypervisor: %w", err)
	}
	p.api = api.New(func(ctx context.Context) (*net.UnixConn, error) { return dir.dial(ctx, apiSocket) })
	var readers sync.WaitGroup
	readers.Go(func() { p.stderr.Drain(p.errors) })
	readers.Go(func() { p.console.Drain(p.output) })
	readers.Go(func() { monitor(p.events, p.event) })
	go p.run(&readers)
	return p, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // closing a nil file is harmless
	}
}

// run waits for the end of the process, by whatever cause, and clears up behind it and those who read what it says.
func (p *process) run(readers *sync.WaitGroup) {
	defer close(p.done)
	stopped := false
	select {
	case <-p.proc.Done():
	case <-p.over: // it is about to exit, or to boot anew
	case <-p.stop:
		stopped = true
	}
	p.killErr = p.proc.Kill()
	<-p.proc.Done()

	_ = p.hold.Close()
	// What was written last is still in the pipes, and their end follows it. The deadline is for a launcher that kept a copy.
	deadline := time.Now().Add(time.Second)
	for _, f := range []*os.File{p.errors, p.output, p.events} {
		_ = f.SetReadDeadline(deadline)
	}
	readers.Wait()
	closeAll([]*os.File{p.errors, p.output, p.events})
	p.api.Close()
	p.dir.close()
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
	return vmm.Exit{Err: p.said(fmt.Errorf("cloud-hypervisor ended by itself: %w", err))}
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

// fail ends the process and tells why, in the VMM's own words too.
func (p *process) fail(what string, err error) error {
	closeErr := p.close()
	return fmt.Errorf("%s %s: %w", what, p.id, errors.Join(p.said(err), closeErr))
}

// said adds what the VMM wrote to its stderr. It is for when the VMM is gone.
func (p *process) said(err error) error {
	s := strings.TrimSpace(p.stderr.String())
	if s == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, strings.ReplaceAll(s, "\n", "; "))
}
