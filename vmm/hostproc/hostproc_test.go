package hostproc_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/hostproc"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "machine" { // another process, which has one until it is killed
		fmt.Println(machineIn(os.Args[2], os.Args[3]))
		_, _ = os.Stdin.Read(make([]byte, 1))
		return
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(agentDir)
		os.Exit(code)
	}))
}

var agentDir string

// agent builds the agent, once for all tests.
var agent = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "hostproc-")
	if err != nil {
		return "", err
	}
	agentDir = dir
	out := filepath.Join(dir, "paddock-agent")
	cmd := exec.Command("go", "build", "-o", out, "github.com/paddockvm/paddock/cmd/paddock-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=") // not with the race detector, which needs libc
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the agent: %w: %s", err, b)
	}
	return out, nil
})

func newDriver(t *testing.T) (d *hostproc.Driver, runDir string) {
	t.Helper()
	bin, err := agent()
	if err != nil {
		t.Fatal(err)
	}
	runDir = t.TempDir()
	if d, err = hostproc.New(hostproc.Config{Agent: bin, RunDir: runDir, Insecure: true}); err != nil {
		t.Fatal(err)
	}
	return d, runDir
}

// guest does what the suite asks for by way of the agent.
type guest struct{}

var _ vmmtest.Guest = guest{}

func (guest) with(ctx context.Context, m vmm.Machine, f func(*client.Client) error) error {
	conn, err := m.DialGuest(ctx)
	if err != nil {
		return err
	}
	c, err := client.Connect(ctx, conn)
	if err != nil {
		conn.Close()
		return err
	}
	defer c.Close()
	return f(c)
}

func (g guest) Echo(ctx context.Context, m vmm.Machine, b []byte) ([]byte, error) {
	var out bytes.Buffer
	err := g.run(ctx, m, client.Streams{Stdin: bytes.NewReader(b), Stdout: &out}, "cat")
	return out.Bytes(), err
}

func (g guest) run(ctx context.Context, m vmm.Machine, s client.Streams, argv ...string) error {
	return g.with(ctx, m, func(c *client.Client) error {
		exit, err := c.Exec(ctx, wire.Exec{ID: "t", Argv: argv, Env: []string{"PATH=/usr/bin:/bin"}, User: "root"}, s)
		if err == nil && exit.Code != 0 {
			err = fmt.Errorf("%q ended with %+v", argv, exit)
		}
		return err
	})
}

func (g guest) Set(ctx context.Context, m vmm.Machine, value string) error {
	return g.with(ctx, m, func(c *client.Client) error {
		return c.Put(ctx, wire.Put{Path: "value", Mode: 0o644, Size: int64(len(value)), User: "root"}, strings.NewReader(value))
	})
}

func (g guest) Get(ctx context.Context, m vmm.Machine) (string, error) {
	var out bytes.Buffer
	err := g.run(ctx, m, client.Streams{Stdout: &out}, "sh", "-c", "if test -e value; then cat value; fi")
	return out.String(), err
}

func (guest) PowerOff(context.Context, vmm.Machine) error { return vmm.ErrUnsupported }

// agentPID finds the process whose working directory a machine's is.
func agentPID(m vmm.Machine) (int, error) {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, f := range all {
		b, _ := os.ReadFile(f)
		if bytes.Contains(b, []byte("/"+m.ID()+"\x00")) {
			return strconv.Atoi(filepath.Base(filepath.Dir(f)))
		}
	}
	return 0, fmt.Errorf("no process of %s", m.ID())
}

func TestConformance(t *testing.T) {
	d, runDir := newDriver(t)
	vmmtest.Run(t, vmmtest.Fixture{
		Driver: d, Guest: guest{}, Template: vmm.Template{Driver: "hostproc"}, Dirs: []string{runDir},
		Kill: func(m vmm.Machine) error {
			pid, err := agentPID(m)
			return errors.Join(err, syscall.Kill(pid, syscall.SIGKILL))
		},
	})
}

func TestNewRefuses(t *testing.T) {
	bin, err := agent()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		cfg  hostproc.Config
		says string
	}{
		{"nobody says that it is insecure", hostproc.Config{Agent: bin, RunDir: t.TempDir()}, "--insecure-no-isolation"},
		{"no agent", hostproc.Config{Agent: "/no/such/agent", RunDir: t.TempDir(), Insecure: true}, "/no/such/agent"},
		{"no directory", hostproc.Config{Agent: bin, RunDir: filepath.Join(file, "run"), Insecure: true}, file},
	} {
		if _, err := hostproc.New(c.cfg); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
	d, _ := newDriver(t)
	caps, err := d.Probe(t.Context())
	if err != nil || caps.Isolated || !cmp.Equal(caps.Degraded, []string{"isolation", "cgroup"}) {
		t.Errorf("caps: %+v, %v", caps, err)
	}
}

func TestAgentThatCannotStartLeavesNothing(t *testing.T) {
	runDir, bad := t.TempDir(), filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(bad, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := hostproc.New(hostproc.Config{Agent: bad, RunDir: runDir, Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	vmmtest.NoLeaks(t, runDir)
	if p, err := d.Prepare(t.Context(), vmm.Template{}, vmm.Attach{}); !errors.Is(err, syscall.ENOEXEC) {
		t.Errorf("prepare: %v, %v", p, err)
	}
}

func machineIn(bin, runDir string) error {
	d, err := hostproc.New(hostproc.Config{Agent: bin, RunDir: runDir, Insecure: true})
	if err == nil {
		_, err = d.Prepare(context.Background(), vmm.Template{}, vmm.Attach{})
	}
	return err
}

// A driver removes what one that was killed has left, and nothing of one that lives.
func TestDirectoriesOfTheDeadGo(t *testing.T) {
	d, runDir := newDriver(t)
	m := vmmtest.Fixture{Driver: d}.Machine(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin, _ := agent()
	cmd := exec.CommandContext(t.Context(), self, "machine", bin, runDir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "<nil>\n" {
		t.Errorf("the other process says %q, %v", line, err)
	}
	there := func(want int) {
		t.Helper()
		if _, err := hostproc.New(hostproc.Config{Agent: bin, RunDir: runDir, Insecure: true}); err != nil {
			t.Error(err)
		}
		left, err := os.ReadDir(runDir)
		if err != nil || len(left) != want {
			t.Errorf("%d directories, want %d: %v", len(left), want, err)
		}
		if _, err := os.Stat(filepath.Join(runDir, m.ID())); err != nil {
			t.Errorf("of the machine that lives: %v", err)
		}
	}
	there(2)
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	there(1)
}

// What a program leaves running, however it hid, ends with its machine: as root the agent has a pid namespace.
func TestCloseEndsWhatAProgramHasHidden(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("needs root")
		}
		t.Skip("SKIPPED: needs root: without it a machine has no pid namespace")
	}
	d, runDir := newDriver(t)
	vmmtest.NoLeaks(t, runDir)
	m := vmmtest.Fixture{Driver: d}.Machine(t)
	// The pipe ends when the last process is gone that has its other end open.
	name := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	held, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	said, say := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- guest{}.run(ctx, m, client.Streams{Stdout: say}, "sh", "-c", "exec 3>"+name+"; setsid sh -c 'sleep 1000 & echo up; sleep 1000' & wait")
	}()
	if _, err := io.ReadFull(said, make([]byte, len("up\n"))); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("the program ended well")
	}
	if n, err := held.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("somebody still holds the pipe: %d, %v", n, err)
	}
}

func TestSignalsReachNobodyElse(t *testing.T) {
	d, _ := newDriver(t)
	m := vmmtest.Fixture{Driver: d}.Machine(t)
	pid, err := agentPID(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-m.Done()
	if err := m.Pause(t.Context()); err == nil {
		t.Error("a machine that is over was paused")
	}
	if got := m.Exit(); got.Err == nil || !strings.Contains(got.Err.Error(), "killed") {
		t.Errorf("exit: %+v", got)
	}
}

// What dead processes have left is found below any name, and what is another's stays.
func TestRemoveDeadBelowABracket(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := filepath.Join(dir, "[ab]", "m-1"), filepath.Join(dir, "a", "m-1")
	for _, d := range []string{ours, theirs} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := hostproc.New(hostproc.Config{Agent: os.Args[0], RunDir: filepath.Dir(ours), Insecure: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(ours); !errors.Is(err, fs.ErrNotExist) {
		t.Error("it is there still:", err)
	}
	if _, err := os.Stat(theirs); err != nil {
		t.Error(err)
	}
}
