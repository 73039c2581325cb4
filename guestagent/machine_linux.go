package guestagent

import (
	"context"
	"fmt"
	"io"
	"net"
	"path"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// machine is what a Linux agent has in its hands: a guest as PID 1, or a directory of the host as a plain process.
type machine struct {
	work       string // where relative paths lead
	sandboxUID int    // 0: programs keep the agent's user
	guest      *guest // nil for a plain process
	reaper     *reaper
	disk       *disk
	confine    func(*wire.Exec) (confinement, error)
}

// sandboxUID is the unprivileged user of every image, and its group's id.
const sandboxUID = 1000

// Process serves conn as a plain process of this host, with work as the directory of programs and files, and returns when conn ends;
// then nothing that it started lives. It isolates nothing.
func Process(conn io.ReadWriteCloser, work string) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	work, err := filepath.EvalSymlinks(work) // files go in and out through no link
	if err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	m := &machine{work: work, reaper: newReaper()}
	var one sync.Mutex
	m.confine = func(*wire.Exec) (confinement, error) { return newTree(m.reaper, &one) }
	a := newAgent(m, "cgroup", "isolation")
	err = wire.Guest(conn, a.serve)
	_ = (&tree{reaper: m.reaper}).kill()
	return err
}

// MountProc gives a process that is the first of its own pid and mount namespaces a /proc that shows them.
func MountProc() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	return nil
}

func (m *machine) cwd(e *wire.Exec) string {
	if path.IsAbs(e.Cwd) {
		return e.Cwd
	}
	return path.Join(m.work, e.Cwd)
}

func (m *machine) restore(r *wire.Restore) (*wire.Ready, error) {
	if m.guest == nil {
		return &wire.Ready{Epoch: r.Epoch, BootID: uuid(r.Epoch)}, nil
	}
	return m.guest.restore(m, r)
}

// quiesce gives back what a snapshot need not hold: nothing runs, nothing is dirty.
func (m *machine) quiesce() error {
	unix.Sync()
	return nil
}

func (m *machine) power() error {
	if m.guest == nil {
		return &wire.Error{Kind: wire.ErrRequest, Message: "there is no machine to power off"}
	}
	unix.Sync()
	return syscall.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func (m *machine) dial(ctx context.Context, port int) (*net.TCPConn, error) {
	return loopback(ctx, port)
}

func (m *machine) resize(ctx context.Context, r *wire.Resize) (*wire.Size, error) {
	if m.guest == nil {
		return nil, &wire.Error{Kind: wire.ErrRequest, Message: "there is no machine to resize"}
	}
	return m.guest.resize(ctx, r)
}

// uuid writes 16 random bytes as a version 4 UUID.
func uuid(b []byte) string {
	var u [16]byte
	copy(u[:], b)
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

var (
	_ hands       = (*machine)(nil)
	_ run         = (*program)(nil)
	_ confinement = (*cgroup)(nil)
	_ confinement = (*tree)(nil)
)
