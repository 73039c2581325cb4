package cloudhypervisor_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor"
)

// fakeLauncher is a launcher whose processes are fakes of Cloud Hypervisor in this process: they do what it does with the files that it is
// given, as far as a driver sees, and have a guest that speaks as Command testguest does. It needs no KVM.
type fakeLauncher struct {
	t testing.TB
	// version is what the fakes say that they are.
	version string
	schema  *schema // of all requests' bodies; nil: they are not held against it
	lax     bool    // wrong requests are part of the test

	mu     sync.Mutex
	spoils func(dir string) error // what a VMM does to its directory after a snapshot; nil: nothing
	fault  fault
	path   string // of the request at which the fault strikes
	hits   int
	onHit  func()
	procs  map[string]*fakeProcess
	refuse error // what Launch fails with
}

// spoil has VMMs do something to their directories when they have written a snapshot's state there; nil: nothing.
func (l *fakeLauncher) spoil(do func(dir string) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spoils = do
}

func (l *fakeLauncher) spoiled(dir string) error {
	l.mu.Lock()
	do := l.spoils
	l.mu.Unlock()
	if do == nil {
		return nil
	}
	return do(dir)
}

// newFakes makes a launcher and a driver with it.
func newFakes(t testing.TB, version string) (*fakeLauncher, *cloudhypervisor.Driver) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("this is not root")
		}
		t.Skip("SKIPPED: machines of Cloud Hypervisor need root: their directories are file systems")
	}
	l := &fakeLauncher{t: t, version: version, schema: openAPI(t), procs: map[string]*fakeProcess{}}
	d, err := cloudhypervisor.New(cloudhypervisor.Config{Binary: "/bin/true", RunDir: t.TempDir(), Launcher: l})
	if err != nil {
		t.Fatal(err)
	}
	return l, d
}

// fakeProcess is one fake of a VMM.
type fakeProcess struct {
	vm   *fakeVMM
	done chan struct{}
	once sync.Once
	err  error
}

func (*fakeLauncher) Degraded() []string { return []string{"fake"} }

func (l *fakeLauncher) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	refuse := l.refuse
	l.mu.Unlock()
	if refuse != nil {
		return nil, refuse
	}
	if want := []string{"--api-socket", "fd=4", "--event-monitor", "fd=5"}; fmt.Sprint(c.Args) != fmt.Sprint(want) {
		return nil, fmt.Errorf("arguments %q", c.Args)
	}
	p := &fakeProcess{done: make(chan struct{})}
	p.vm = &fakeVMM{l: l, files: map[int]*os.File{}, die: p.end}
	for i, f := range append(append([]*os.File{}, c.Files...), c.Stderr) {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			p.vm.closeFiles()
			return nil, err
		}
		number := 3 + i
		if i == len(c.Files) {
			number = 2
		}
		p.vm.files[number] = os.NewFile(uintptr(fd), f.Name())
	}
	if err := p.vm.serve(); err != nil {
		p.vm.closeFiles()
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.procs[c.Name] = p
	return p, nil
}

// end is the end of the fake's process, by itself or by a signal.
func (p *fakeProcess) end(err error) {
	p.once.Do(func() {
		go func() { // not by one of those that are waited for
			p.err = err
			p.vm.stop()
			close(p.done)
		}()
	})
}

var errKilled = errors.New("signal: killed")

func (p *fakeProcess) PID() int              { return os.Getpid() }
func (p *fakeProcess) UID() int              { return os.Getuid() }
func (p *fakeProcess) Done() <-chan struct{} { return p.done }

func (p *fakeProcess) Err() error {
	<-p.done
	return p.err
}

func (p *fakeProcess) Kill() error {
	p.end(errKilled)
	<-p.done
	return nil
}

// own makes of a path that the VMM was told, of one of its descriptors, that of the fake's.
func (v *fakeVMM) own(path string) (string, error) {
	rest, ok := strings.CutPrefix(path, "/proc/self/fd/")
	if !ok {
		if path == "/dev/null" || path == "/dev/urandom" {
			return path, nil
		}
		return "", fmt.Errorf("%s: a VMM has no such path", path)
	}
	number, rest, _ := strings.Cut(rest, "/")
	n, err := strconv.Atoi(number)
	if err != nil || v.files[n] == nil {
		return "", fmt.Errorf("%s: %w", path, os.ErrNotExist)
	}
	own := fmt.Sprintf("/proc/self/fd/%d", v.files[n].Fd())
	if rest != "" {
		own += "/" + rest
	}
	return own, nil
}

// fault is what goes wrong at a request.
type fault string

const (
	killBefore  fault = "killed before it answers"
	killAfter   fault = "killed after it has answered"
	refuse      fault = "refuses"
	silent      fault = "does not answer"
	unheard     fault = "obeys, and does not answer"
	garbage     fault = "answers garbage"
	hangUp      fault = "hangs up in its answer"
	endless     fault = "answers without end"
	badEvents   fault = "tells events that are none"
	refuseAll   fault = "refuses, however often"
	halfway     fault = "pauses half the machine, and refuses"
	noMoreWords fault = "" // none
)

// next arms a fault.
func (l *fakeLauncher) next(path string, f fault, onHit func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.path, l.fault, l.hits, l.onHit = path, f, 0, onHit
}

// struck says what goes wrong now, once.
func (l *fakeLauncher) struck(path string) fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fault == noMoreWords || l.path != path || l.hits > 0 && l.fault != refuseAll {
		return noMoreWords
	}
	l.hits++
	if l.onHit != nil {
		l.onHit()
	}
	return l.fault
}
