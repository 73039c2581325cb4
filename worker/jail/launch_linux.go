package jail

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker/jail/stub"
)

// system is what any VMM reads: its libraries and data. Where an entry is a link, as on a merged-usr system, it stays one.
var system = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives"}

// Launch starts the command in a jail, and returns when the VMM itself runs, or with the step of the jail's making that failed; then
// nothing is left of it. What is under c.Writable becomes the machine's own.
func (l *Launcher) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	m := &process{l: l, uid: os.Getuid(), done: make(chan struct{})}
	err := m.acquire(c)
	if err == nil {
		err = m.launch(ctx, c)
	}
	if err != nil {
		return nil, fmt.Errorf("jail %s: %w", c.Name, errors.Join(err, m.release()))
	}
	go func() { // ends with the process
		defer close(m.done)
		<-m.Process.Done()
		m.err = m.release()
	}()
	return m, nil
}

// Child is the stub, for programs whose Config.Self is not stub.Command: see there.
func Child(arg string) { stub.Child(arg) }

// process is a jailed VMM, and what it has of the host.
type process struct {
	vmm.Process
	l     *Launcher
	uid   int
	taken bool // the uid was
	group *cgroup

	done chan struct{} // closed when all of it is gone, and given back
	err  error         // of giving it back; set before
}

// acquire takes what the machine has for itself.
func (m *process) acquire(c vmm.Command) (err error) {
	if m.l.uids != nil {
		if m.uid, err = m.l.uids.take(); err != nil {
			return err
		}
		m.taken = true
	}
	if m.l.cgroups == nil {
		return nil
	}
	var on []device
	if c.Share.DiskBytesPerSecond > 0 {
		on = disks(c)
	}
	m.group, err = m.l.cgroups.make(c.Name, c.Share, on)
	return err
}

// release gives it back. No process of the machine's is there any more.
func (m *process) release() error {
	err := m.group.remove()
	if m.taken {
		m.l.uids.give(m.uid)
	}
	return err
}

// UID is the machine's own.
func (m *process) UID() int              { return m.uid }
func (m *process) Done() <-chan struct{} { return m.done }

func (m *process) Err() error {
	<-m.done
	return errors.Join(m.Process.Err(), m.err)
}

// Kill ends what is in the cgroup, and the process that all else in its namespace dies with.
func (m *process) Kill() error {
	err := errors.Join(m.group.kill(), m.Process.Kill())
	<-m.done
	return errors.Join(err, m.err)
}

// launch starts the stub, and waits until it has become the VMM.
func (m *process) launch(ctx context.Context, c vmm.Command) error {
	largest := int64(0)
	for _, dir := range c.Writable {
		size, err := m.own(dir)
		if err != nil {
			return err
		}
		largest = max(largest, size)
	}
	told, err := tell(m.setup(c, largest))
	if err != nil {
		return err
	}
	defer told.Close()
	doors, err := m.group.doors()
	if err != nil {
		return err
	}
	defer closeAll(doors)
	failed, failure, err := os.Pipe()
	if err != nil {
		return err
	}
	defer failed.Close()
	self, command := m.l.cfg.Self, c
	command.Path, command.Args = self[0], append(append([]string{}, self[1:]...), fmt.Sprint(len(c.Files)))
	command.Files = append(append(append([]*os.File{}, c.Files...), told, failure), doors...)
	m.Process, err = m.l.direct(m.group).Launch(ctx, command)
	_ = failure.Close()
	if err != nil {
		return err
	}
	return m.await(ctx, failed)
}

// await reads what the stub says, which ends when it has become the VMM, or has failed.
func (m *process) await(ctx context.Context, failed io.Reader) error {
	p := m.Process
	stop := context.AfterFunc(ctx, func() { _ = p.Kill() })
	why, err := io.ReadAll(io.LimitReader(failed, 4096))
	switch {
	case !stop():
		err = context.Cause(ctx)
	case err != nil:
	case len(why) == 0: // it has not come as far as its last word
		_ = p.Kill()
		err = fmt.Errorf("the stub ended: %w", orEnded(p.Err()))
	case string(why) != stub.Executing:
		err = errors.New(strings.TrimPrefix(string(why), stub.Executing))
	}
	if err != nil {
		return errors.Join(err, m.group.kill(), p.Kill())
	}
	return nil
}

// setup is what the stub is told of c. largest is the size of the largest file that the VMM may write by its name.
func (m *process) setup(c vmm.Command, largest int64) stub.Setup {
	s := stub.Setup{
		Path: c.Path, Args: c.Args, UID: m.uid, Userns: !m.taken, Files: len(c.Files), AddressSpace: uint64(max(c.AddressSpaceBytes, 0)),
		FileSize: unix.RLIM_INFINITY, System: system, ReadOnly: c.ReadOnly, Writable: c.Writable,
		Devices: append([]string{"/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"}, c.Devices...), Hostname: c.Name,
	}
	s.Groups = groupsOf(c.Devices)
	if m.group != nil && !m.group.unified {
		s.Doors = len(m.group.dirs)
	}
	if c.FileBytes <= 0 {
		return s
	}
	largest = max(largest, c.FileBytes)
	for _, f := range c.Files {
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			largest = max(largest, st.Size())
		}
	}
	s.FileSize = uint64(largest)
	return s
}

// groupsOf gives the groups whose members may read and write a device: Debian gives /dev/kvm to root and the group kvm. Root's own group
// is not given.
func groupsOf(devices []string) (groups []uint32) {
	for _, device := range devices {
		var st unix.Stat_t
		if err := unix.Stat(device, &st); err == nil && st.Mode&0o060 == 0o060 && st.Gid != 0 && !slices.Contains(groups, st.Gid) {
			groups = append(groups, st.Gid)
		}
	}
	return groups
}

// direct forks into new namespaces, and into g.
func (l *Launcher) direct(g *cgroup) vmm.Direct {
	return vmm.Direct{Attr: func(a *syscall.SysProcAttr) {
		a.Cloneflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET
		a.Setpgid, a.Setsid = false, true
		if l.uids == nil {
			// The uid that is mapped is not root's: there is none in there for a setuid program to become.
			a.Cloneflags |= syscall.CLONE_NEWUSER
			a.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
			a.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
			a.AmbientCaps = stub.Capabilities
		}
		if g != nil && g.unified {
			a.UseCgroupFD, a.CgroupFD = true, int(g.held.Fd())
		}
	}}
}

// tell puts the setup where the stub reads it: a memory file, which no pipe's size bounds.
func tell(s stub.Setup) (*os.File, error) {
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

// orEnded is an end that nobody was to see.
func orEnded(err error) error {
	if err == nil {
		return errors.New("with status 0")
	}
	return err
}

// own gives a directory and what is in it to the machine, without following a link out of it, and tells the largest file's size.
func (m *process) own(dir string) (largest int64, _ error) {
	if st, err := os.Lstat(dir); err != nil || !st.IsDir() { // a link would show nothing inside
		return 0, errors.Join(err, fmt.Errorf("%s is no directory", dir))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, err
	}
	defer func() { _ = root.Close() }() // only read
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if st, err := e.Info(); err == nil && st.Mode().IsRegular() {
			largest = max(largest, st.Size())
		}
		if !m.taken {
			return nil // it is this process's uid
		}
		return root.Lchown(name, m.uid, m.uid)
	})
	return largest, err
}

func memfile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
