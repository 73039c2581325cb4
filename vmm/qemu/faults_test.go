package qemu_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// fault is something that goes wrong with a QEMU that is asked to execute a command.
type fault string

const (
	killBefore fault = "killed before"   // the command never reaches it
	killAfter  fault = "killed after"    // it has the command
	refuse     fault = "refuses"         // an error for an answer
	silent     fault = "never answers"   //
	unheard    fault = "is not heard"    // it obeys, and its answer is lost
	garbage    fault = "speaks nonsense" //
	endless    fault = "answers forever" // one line without an end
	hangUp     fault = "hangs up"        // but lives
	migFailed  fault = "migration fails" // says so in the event
)

// Any other fault is an event, which QEMU tells before it obeys.

// saboteur is a launcher of real QEMUs that stands between them and their QMP client, and does what is wrong with one command.
type saboteur struct {
	vmm.Launcher
	mu      sync.Mutex
	command string
	fault   fault
	hits    int
	onHit   func()
}

// next arms the saboteur.
func (s *saboteur) next(command string, f fault, onHit func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.command, s.fault, s.hits, s.onHit = command, f, 0, onHit
}

func (s *saboteur) hit(command string) fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	if command != s.command {
		return ""
	}
	s.hits++
	s.onHit()
	return s.fault
}

func (s *saboteur) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	fd := 0
	for _, a := range c.Args {
		if _, rest, ok := strings.Cut(a, "socket,id=qmp,fd="); ok {
			if _, err := fmt.Sscan(strings.ReplaceAll(rest, ",", " "), &fd); err != nil {
				return nil, err
			}
		}
	}
	host, err := connOf(int(c.Files[fd-3].Fd()))
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		host.Close()
		return nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), "qmp")
	defer theirs.Close()
	guest, err := connOf(fds[0])
	_ = unix.Close(fds[0])
	if err != nil {
		host.Close()
		return nil, err
	}
	c.Files = append([]*os.File(nil), c.Files...)
	c.Files[fd-3] = theirs
	p, err := s.Launcher.Launch(ctx, c)
	if err != nil {
		host.Close()
		guest.Close()
		return nil, err
	}
	r := &relay{Process: p, s: s, host: host, qemu: guest}
	r.down.Go(r.commands)
	r.up.Go(r.replies)
	return r, nil
}

// connOf makes a connection of a duplicate of fd.
func connOf(fd int) (*net.UnixConn, error) {
	f, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(f), "qmp")
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// relay is one sabotaged QEMU.
type relay struct {
	vmm.Process
	s          *saboteur
	host, qemu *net.UnixConn
	down, up   sync.WaitGroup
	unheard    atomic.Uint64 // the command whose answer is lost
}

func (r *relay) Kill() error {
	err := r.Process.Kill()
	r.up.Wait() // what it said last is still delivered
	r.host.Close()
	r.qemu.Close()
	r.down.Wait()
	return err
}

// commands come one per message, for the client writes them so and waits for each.
func (r *relay) commands() {
	buf, oob := make([]byte, 64<<10), make([]byte, 1024)
	for {
		n, oobn, _, _, err := r.host.ReadMsgUnix(buf, oob)
		if err != nil || n == 0 {
			return
		}
		rights := oob[:oobn]
		for line := range bytes.Lines(buf[:n]) {
			r.command(line, rights)
			rights = nil
		}
		closeRights(oob[:oobn])
	}
}

func (r *relay) command(line, rights []byte) {
	var c struct {
		Execute string `json:"execute"`
		ID      uint64 `json:"id"`
	}
	_ = json.Unmarshal(line, &c)
	forward := func() {
		if len(rights) > 0 {
			n, _, _ := r.qemu.WriteMsgUnix(line, rights, nil)
			line = line[n:]
		}
		_, _ = r.qemu.Write(line)
	}
	f := r.s.hit(c.Execute)
	switch f {
	case killBefore:
		_ = syscall.Kill(r.PID(), syscall.SIGKILL)
		<-r.Done()
	case killAfter:
		forward()
		_ = syscall.Kill(r.PID(), syscall.SIGKILL)
	case refuse:
		fmt.Fprintf(r.host, `{"id":%d,"error":{"class":"GenericError","desc":"sabotage"}}`+"\n", c.ID)
	case silent:
	case unheard:
		r.unheard.Store(c.ID)
		forward()
	case garbage:
		fmt.Fprint(r.host, "\x00\xff{nonsense\n")
	case endless:
		_, _ = io.Copy(r.host, io.LimitReader(zeros{}, 8<<20))
	case hangUp:
		_ = r.host.Close()
	default:
		_, _ = io.WriteString(r.host, string(f)) // an event
		forward()
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return copy(b, bytes.Repeat([]byte("0"), len(b))), nil }

func closeRights(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
}

// replies and events.
func (r *relay) replies() {
	lines := bufio.NewReader(r.qemu)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		var answer struct {
			ID uint64 `json:"id"`
		}
		if _ = json.Unmarshal([]byte(line), &answer); answer.ID > 0 && answer.ID == r.unheard.Load() {
			continue
		}
		if strings.Contains(line, `"MIGRATION"`) && r.s.armed(migFailed) {
			line = strings.ReplaceAll(line, `"completed"`, `"failed"`)
		}
		_, _ = io.WriteString(r.host, line)
	}
}

func (s *saboteur) armed(f fault) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault == f
}

func TestFaults(t *testing.T) {
	need(t)
	s := &saboteur{Launcher: vmm.Direct{}}
	runDir := t.TempDir()
	d := newDriver(t, qemu.Config{RunDir: runDir, Launcher: s, Accel: "tcg"})
	boot, guest := linux(t), vmmtest.TestGuest{}
	template := vmmtest.Build(t, d, boot, guest)
	prepare := func(t *testing.T) vmm.Prepared {
		p, err := d.Prepare(within(t), template, vmm.Attach{})
		if err != nil {
			t.Fatal(err) // the fault is for later
		}
		return p
	}
	if err := prepare(t).Close(); err != nil { // what a driver keeps is no leak
		t.Fatal(err)
	}
	var running vmm.Machine // for the phases that want one
	phases := []struct {
		name     string
		commands []string
		run      func(*testing.T, context.Context) error
	}{
		{"prepare", []string{"qmp_capabilities", "migrate-set-capabilities", "getfd"}, func(t *testing.T, ctx context.Context) error {
			p, err := d.Prepare(ctx, template, vmm.Attach{})
			if err != nil {
				return err
			}
			return p.Close()
		}},
		{"restore", []string{"migrate-incoming", "cont"}, func(t *testing.T, ctx context.Context) error {
			p := prepare(t)
			m, err := p.Restore(ctx)
			if err != nil {
				return errors.Join(err, p.Close())
			}
			return m.Close()
		}},
		{"boot", []string{"qmp_capabilities", "cont"}, func(t *testing.T, ctx context.Context) error {
			m, err := d.Boot(ctx, boot, vmm.Attach{})
			if err != nil {
				return err
			}
			return m.Close()
		}},
		{"snapshot", []string{"stop", "migrate-set-capabilities", "getfd", "migrate"}, func(t *testing.T, ctx context.Context) error {
			m, err := d.Boot(within(t), boot, vmm.Attach{})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			dir := t.TempDir()
			_, err = m.Snapshot(ctx, dir)
			if left, _ := os.ReadDir(dir); err != nil && len(left) > 0 {
				t.Errorf("files left: %v", left)
			}
			select {
			case <-m.Done():
			default:
				t.Error("the machine lives after its snapshot")
			}
			return err
		}},
		{"pause", []string{"stop"}, func(_ *testing.T, ctx context.Context) error { return running.Pause(ctx) }},
		{"checkpoint", []string{
			"add-fd", "blockdev-add", "stop", "xen-save-devices-state", "blockdev-backup", "cont", "block-job-set-speed", "query-jobs",
			"job-dismiss",
		}, func(t *testing.T, ctx context.Context) error {
			_, err := running.(vmm.Checkpointer).Checkpoint(ctx, t.TempDir(), template)
			if err != nil && s.fault == killBefore && !strings.Contains(err.Error(), "qemu ended by itself: signal: killed") {
				t.Errorf("error does not say that QEMU is gone: %v", err)
			}
			return err
		}},
		{"probe", []string{"qmp_capabilities", "query-version", "qom-get", "cont"}, func(t *testing.T, ctx context.Context) error {
			_, err := newDriver(t, qemu.Config{RunDir: runDir, Launcher: s, Accel: "tcg"}).Probe(ctx)
			return err
		}},
	}
	for _, phase := range phases {
		for _, command := range phase.commands {
			faults := []fault{killBefore, killAfter, refuse, silent, unheard, garbage, endless, hangUp}
			if command == "migrate" || command == "migrate-incoming" {
				faults = append(faults, migFailed)
			}
			if phase.name == "checkpoint" && command == "cont" { // the machine shall run on, whoever gives up
				faults = slices.DeleteFunc(faults, func(f fault) bool { return f == silent || f == unheard })
			}
			for _, f := range faults {
				t.Run(phase.name+"/"+command+"/"+string(f), func(t *testing.T) {
					vmmtest.NoLeaks(t, runDir)
					ctx, cancel := context.WithCancel(within(t))
					defer cancel()
					onHit := func() {}
					if f == silent || f == unheard {
						onHit = cancel // nothing else would end the wait
					}
					if phase.name == "pause" || phase.name == "checkpoint" {
						var err error
						if running, err = prepare(t).Restore(within(t)); err != nil {
							t.Fatal(err)
						}
						defer running.Close()
					}
					if phase.name == "pause" || phase.name == "checkpoint" { // once: what clears up works
						inner := onHit
						onHit = func() { s.command = ""; inner() }
					}
					s.next(command, f, onHit)
					defer s.next("", "", nil)
					err := phase.run(t, ctx)
					if err == nil && f != killAfter { // a QEMU that is killed may have answered before
						t.Error("nobody noticed")
					}
					if s.hits == 0 {
						t.Error("the fault was never met")
					}
					if f == refuse && !strings.Contains(fmt.Sprint(err), "sabotage") {
						t.Errorf("error does not say what QEMU said: %v", err)
					}
					if (f == silent || f == unheard) && !errors.Is(err, context.Canceled) {
						t.Errorf("error does not say that it was cancelled: %v", err)
					}
					if phase.name == "checkpoint" && command == "cont" && f == refuse {
						select { // it would stand still
						case <-running.Done():
						case <-within(t).Done():
							t.Fatal("it is not over")
						}
						if exit := running.Exit(); exit.Guest || !strings.Contains(fmt.Sprint(exit.Err), "sabotage") {
							t.Errorf("exit: %+v", exit)
						}
					} else if (phase.name == "checkpoint" || phase.name == "pause") && (f == refuse || f == silent || f == unheard) {
						if _, err := guest.Get(within(t), running); err != nil {
							t.Errorf("the machine does not run on: %v", err)
						}
						if err := phase.run(t, within(t)); err != nil {
							t.Errorf("the next: %v", err)
						}
					} else if phase.name == "checkpoint" || phase.name == "pause" {
						_, err := guest.Get(within(t), running)
						select {
						case <-running.Done():
						default:
							if err != nil {
								t.Errorf("the machine neither runs on nor is over: %v", err)
							}
						}
					}
				})
			}
		}
	}
}

// TestCheckpointPause: who pauses the machine meanwhile finds it paused; so it stays where somebody gives up pausing it again.
func TestCheckpointPause(t *testing.T) {
	need(t)
	s := &saboteur{Launcher: vmm.Direct{}}
	d := newDriver(t, qemu.Config{Launcher: s})
	template := vmmtest.Build(t, d, linux(t), vmmtest.TestGuest{})
	p, err := d.Prepare(within(t), template, vmm.Attach{})
	must(t, err)
	m, err := p.Restore(within(t))
	must(t, err)
	defer m.Close()
	paused := make(chan error, 1)
	s.next("xen-save-devices-state", "", func() {
		go func() { paused <- m.Pause(within(t)) }()
		time.Sleep(10 * time.Millisecond) // it would come before the end
	})
	_, err = m.(vmm.Checkpointer).Checkpoint(within(t), t.TempDir(), template)
	must(t, err)
	must(t, <-paused)
	stands := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if _, err := (vmmtest.TestGuest{}).Get(ctx, m); err == nil {
			t.Error("it runs")
		}
	}
	stands()
	gone, giveUp := context.WithCancel(within(t))
	defer giveUp()
	s.next("query-status", unheard, giveUp)
	if err := m.Pause(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	s.next("", "", nil)
	stands()
	must(t, m.Resume(within(t)))
	_, err = vmmtest.TestGuest{}.Get(within(t), m)
	must(t, err)
}

// TestCheckpointClearsUp: what QEMU did not do in time for one checkpoint is done for the next.
func TestCheckpointClearsUp(t *testing.T) {
	need(t)
	s := &saboteur{Launcher: vmm.Direct{}}
	d := newDriver(t, qemu.Config{Launcher: s})
	template := vmmtest.Build(t, d, linux(t), vmmtest.TestGuest{})
	p, err := d.Prepare(within(t), template, vmm.Attach{})
	must(t, err)
	m, err := p.Restore(within(t))
	must(t, err)
	defer m.Close()
	take := func(ctx context.Context) error {
		_, err := m.(vmm.Checkpointer).Checkpoint(ctx, t.TempDir(), template)
		return err
	}
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	s.next("block-job-set-speed", silent, func() {
		s.command = "block-job-cancel" // which is waited for as long as for any step
		cancel()
	})
	if err := take(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "block-job-cancel: qemu took more than") {
		t.Errorf("err = %v", err)
	}
	s.next("", "", nil)
	must(t, take(within(t)))
}
