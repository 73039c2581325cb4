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
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/paddockvm/paddock/vmm"
)

// Config says how the jail is made. Its zero value, but for Self, is what production uses.
type Config struct {
	// Self starts the stub: a command line that ends in Child.
	Self []string
	// UIDBase and UIDCount are the machines' uids: 200000 and 10000 where 0. No other user of the host may have one of them.
	UIDBase, UIDCount int
	// UIDLock is the file by which the launchers of a host agree on who has which uid; /run/paddock-uids where empty.
	UIDLock string
}

// Launcher starts VMMs in jails. It implements vmm.Launcher.
type Launcher struct {
	cfg  Config
	uids *uids
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
	if cfg.UIDLock == "" {
		cfg.UIDLock = "/run/paddock-uids"
	}
	uids, err := openUIDs(cfg)
	if err != nil {
		return nil, fmt.Errorf("jail: %w", err)
	}
	return &Launcher{cfg: cfg, uids: uids}, nil
}

// Close lets go of the file in UIDLock. All machines have ended before.
func (l *Launcher) Close() error { return l.uids.close() }

// Degraded names the walls that are missing.
func (*Launcher) Degraded() []string { return []string{"jail.cgroup"} }

// setup is what the stub is told.
type setup struct {
	Path     string
	Args     []string
	UID      int
	Files    int // descriptors from 3 on that the VMM gets
	Memory   uint64
	System   []string // read-only too, where they exist
	ReadOnly []string
	Writable []string
	Devices  []string
	Hostname string
}

// system is what any VMM reads: its libraries and data. Where an entry is a link, as on a merged-usr system, it stays one.
var system = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives"}

// Launch starts the command in a jail, and returns when the VMM itself runs, or with the step of the jail's making that failed; then
// nothing is left of it. What is under c.Writable becomes the machine's own.
func (l *Launcher) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	uid, err := l.uids.take()
	if err != nil {
		return nil, err
	}
	p, err := l.launch(ctx, c, uid)
	if err != nil {
		l.uids.give(uid)
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
		Path: c.Path, Args: c.Args, UID: uid, Files: len(c.Files), Memory: uint64(max(c.MemoryBytes, 0)), System: system, ReadOnly: c.ReadOnly,
		Writable: c.Writable, Devices: append([]string{"/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"}, c.Devices...), Hostname: c.Name,
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
	stop := context.AfterFunc(ctx, func() { _ = p.Kill() })
	why, err := io.ReadAll(io.LimitReader(failed, 4096)) // ends when the stub has become the VMM, or has failed
	switch {
	case !stop():
		err = context.Cause(ctx)
	case err != nil:
	case len(why) == 0: // it has not come as far as its last word
		_ = p.Kill()
		err = fmt.Errorf("the stub ended: %w", orEnded(p.Err()))
	case string(why) != executing:
		err = errors.New(strings.TrimPrefix(string(why), executing))
	}
	if err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	jailed := &process{Process: p, uid: uid}
	go func() { // ends with the process
		<-p.Done()
		l.uids.give(uid)
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

// orEnded is an end that nobody was to see.
func orEnded(err error) error {
	if err == nil {
		return errors.New("with status 0")
	}
	return err
}

// chownAll gives a directory and what is in it to a machine, without following a link out of it.
func chownAll(dir string, uid int) error {
	if st, err := os.Lstat(dir); err != nil || !st.IsDir() { // a link would show nothing inside
		return errors.Join(err, fmt.Errorf("%s is no directory", dir))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // only read
	return fs.WalkDir(root.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return root.Lchown(name, uid, uid)
	})
}
