// Package jail starts VMMs behind walls of their own: new mount, pid, net, ipc and uts namespaces, an empty root with only what a VMM
// reads, a uid for each machine, no capabilities, no_new_privs, resource limits. What a guest's escape from its VMM would find is that.
// Cgroups around the VMM are not made yet: Degraded says so.
//
// The walls are built by a stub, this same program started anew (Child), which then becomes the VMM. Linux, and root, are needed.
package jail

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/paddockvm/paddock/vmm"
)

// Config says how the jail is made. Its zero value, but for Self, is what production uses.
type Config struct {
	// Self starts the stub: a command line that ends in Child.
	Self []string
	// UIDBase and UIDCount are the machines' uids: 200000 and 10000 where 0. No other user of the host may have one of them.
	UIDBase, UIDCount int
}

// Launcher starts VMMs in jails. It implements vmm.Launcher.
type Launcher struct {
	cfg Config

	mu   sync.Mutex
	used map[int]bool
	next int
}

var _ vmm.Launcher = (*Launcher)(nil)

// New checks that a jail can be made here.
func New(cfg Config) (*Launcher, error) {
	if len(cfg.Self) == 0 {
		return nil, errors.New("jail: Self is required")
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("jail: needs root for namespaces and uids")
	}
	if cfg.UIDBase == 0 {
		cfg.UIDBase = 200_000
	}
	if cfg.UIDCount == 0 {
		cfg.UIDCount = 10_000
	}
	return &Launcher{cfg: cfg, used: map[int]bool{}}, nil
}

// Degraded names the walls that are missing.
func (*Launcher) Degraded() []string { return []string{"jail.cgroup"} }

// setup is what the stub is told.
type setup struct {
	Path     string
	Args     []string
	UID      int
	Files    int // descriptors from 3 on that the VMM gets
	ReadOnly []string
	Writable []string
	Devices  []string
	Hostname string
}

// system is what any VMM reads: its libraries and data. Where an entry is a link, as on a merged-usr system, it stays one.
var system = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives"}

// Launch starts the command in a jail, and returns when the VMM itself runs, or with the step of the jail's making that failed.
func (l *Launcher) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	uid, err := l.takeUID()
	if err != nil {
		return nil, err
	}
	p, err := l.launch(ctx, c, uid)
	if err != nil {
		l.giveUID(uid)
		return nil, fmt.Errorf("jail %s: %w", c.Name, err)
	}
	return p, nil
}

func (l *Launcher) launch(ctx context.Context, c vmm.Command, uid int) (vmm.Process, error) {
	for _, dir := range c.Writable {
		if err := chownAll(dir, uid); err != nil {
			return nil, err
		}
	}
	s := setup{
		Path: c.Path, Args: c.Args, UID: uid, Files: len(c.Files), ReadOnly: append(append([]string{}, system...), c.ReadOnly...), Writable: c.Writable,
		Devices: append([]string{"/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"}, c.Devices...), Hostname: c.Name,
	}
	told, err := tell(s)
	if err != nil {
		return nil, err
	}
	defer told.Close()
	failed, failure, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer failed.Close()
	stub := c
	stub.Path, stub.Args = l.cfg.Self[0], append(append([]string{}, l.cfg.Self[1:]...), fmt.Sprint(len(c.Files)))
	stub.Files = append(append([]*os.File{}, c.Files...), told, failure)
	p, err := vmm.Direct{Attr: func(a *syscall.SysProcAttr) {
		a.Cloneflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET
		a.Setpgid, a.Setsid = false, true
	}}.Launch(ctx, stub)
	_ = failure.Close()
	if err != nil {
		return nil, err
	}
	why, err := io.ReadAll(io.LimitReader(failed, 4096)) // ends when the stub has become the VMM, or has failed
	if err == nil && len(why) > 0 {
		err = errors.New(string(why))
	}
	if err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	jailed := &process{Process: p, uid: uid}
	go func() { // ends with the process
		<-p.Done()
		l.giveUID(uid)
	}()
	return jailed, nil
}

// tell puts the setup where the stub reads it: a memory file, which no pipe's size bounds.
func tell(s setup) (*os.File, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	f, err := memfile("jail")
	if err != nil {
		return nil, err
	}
	_, err = f.Write(b)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// process is a jailed VMM.
type process struct {
	vmm.Process
	uid int
}

// UID is the machine's own.
func (p *process) UID() int { return p.uid }

func (l *Launcher) takeUID() (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range l.cfg.UIDCount {
		uid := l.cfg.UIDBase + l.next%l.cfg.UIDCount // the one given back longest ago comes last
		l.next++
		if !l.used[uid] {
			l.used[uid] = true
			return uid, nil
		}
	}
	return 0, fmt.Errorf("jail: all %d uids are in use", l.cfg.UIDCount)
}

func (l *Launcher) giveUID(uid int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.used, uid)
}

func chownAll(dir string, uid int) error {
	return filepath.WalkDir(dir, func(name string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(name, uid, uid)
	})
}
