package guestagent_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/paddockvm/paddock/guestagent"
	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/test/leak"
)

// TestMain makes the test binary an agent process where it is asked to be one.
func TestMain(m *testing.M) {
	if work := os.Getenv("PADDOCK_TEST_AGENT"); work != "" {
		_ = guestagent.Process(os.NewFile(3, "host"), work)
		os.Exit(0)
	}
	leak.VerifyTestMain(m)
}

func inProcess(t *testing.T) *client.Client {
	t.Helper()
	host, guest := net.Pipe()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		guestagent.InProcess(ctx, guest)
	}()
	c, err := client.Connect(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		stop()
		<-done
	})
	return c
}

// process starts a real agent process.
func process(t *testing.T) (*client.Client, *exec.Cmd) {
	t.Helper()
	conn, cmd := listening(t, t.TempDir())
	c, err := client.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, cmd
}

// inDir starts a real agent process that works in a directory, which it gives.
func inDir(t *testing.T) (*client.Client, string) {
	t.Helper()
	dir := t.TempDir()
	conn, _ := listening(t, dir)
	c, err := client.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, dir
}

// listening starts a real agent process that has not been greeted. It ends with its connection.
func listening(t *testing.T, work string) (net.Conn, *exec.Cmd) {
	t.Helper()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	_ = ours.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PADDOCK_TEST_AGENT="+work)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	t.Cleanup(func() {
		_ = conn.Close()
		_ = cmd.Wait()
	})
	return conn, cmd
}

func sh(line string) wire.Exec {
	return wire.Exec{ID: "x", Argv: []string{"/bin/sh", "-c", line}, Env: []string{"PATH=/usr/bin:/bin"}}
}

func run(t *testing.T, c *client.Client, e wire.Exec, stdin string) (wire.Exit, string, string) {
	t.Helper()
	var out, errOut bytes.Buffer
	s := client.Streams{Stdout: &out, Stderr: &errOut}
	if stdin != "" {
		s.Stdin = strings.NewReader(stdin)
	}
	exit, err := c.Exec(t.Context(), e, s)
	if err != nil {
		t.Fatal(err)
	}
	return exit, out.String(), errOut.String()
}

func TestInProcess(t *testing.T) {
	c := inProcess(t)
	exit, out, _ := run(t, c, wire.Exec{ID: "1", Argv: []string{"echo", "a", "b"}}, "")
	if exit.Code != 0 || out != "a b\n" {
		t.Errorf("%+v %q", exit, out)
	}
	if _, out, _ := run(t, c, wire.Exec{ID: "1", Argv: []string{"cat"}}, "through"); out != "through" {
		t.Errorf("cat gave %q", out)
	}
	_, err := c.Exec(t.Context(), wire.Exec{ID: "1", Argv: []string{"nope"}}, client.Streams{})
	if e, ok := errors.AsType[*wire.Error](err); !ok || e.Kind != wire.ErrStart {
		t.Errorf("error %v", err)
	}
	if exit, _, _ := run(t, c, wire.Exec{ID: "1", Argv: []string{"sleep", "60"}, Limits: wire.ExecLimits{WallMS: 20}}, ""); exit.Limit != wire.LimitWall {
		t.Errorf("%+v", exit)
	}
}

func TestProcess(t *testing.T) {
	c, _ := process(t)
	const unheld = 50_000 // ms: less than what its programs sleep, more than a busy host holds an agent up for
	for _, tt := range []struct {
		name  string
		exec  wire.Exec
		stdin string
		check func(e wire.Exit, out, errOut string) bool
	}{
		{"streams apart", sh("echo out; echo err >&2; exit 3"), "", func(e wire.Exit, out, errOut string) bool {
			return e.Code == 3 && out == "out\n" && errOut == "err\n" && e.StdoutBytes == 4 && e.StderrBytes == 4
		}},
		{"stdin", sh("cat; echo end"), "in\n", func(e wire.Exit, out, _ string) bool { return out == "in\nend\n" }},
		{"empty stdin", sh("cat; echo end"), "", func(e wire.Exit, out, _ string) bool { return out == "end\n" }},
		{"signal", sh("kill -SEGV $$"), "", func(e wire.Exit, _, _ string) bool { return e.Code == -1 && e.Signal == "SIGSEGV" && e.Limit == "" }},
		{"wall", func() wire.Exec { e := sh("trap '' TERM; sleep 100"); e.Limits.WallMS = 100; return e }(), "", func(e wire.Exit, _, _ string) bool {
			return e.Limit == wire.LimitWall && e.WallMS < unheld
		}},
		{"cpu", func() wire.Exec {
			e := sh("while :; do :; done")
			e.Limits.CPUMS, e.Limits.WallMS = 200, 20_000
			return e
		}(), "", func(e wire.Exit, _, _ string) bool {
			return e.Limit == wire.LimitCPU && e.CPUMS >= 190 && e.CPUMS < 2000
		}},
		{"output", func() wire.Exec { e := sh("yes"); e.Limits.OutputBytes = 100_000; return e }(), "", func(e wire.Exit, out, _ string) bool {
			return e.Limit == wire.LimitStdout && len(out) == 100_000 && e.StdoutBytes == 100_000 && e.StdoutDropped > 0
		}},
		{"file size", func() wire.Exec {
			e := sh("dd if=/dev/zero of=big bs=1k count=100 2>/dev/null")
			e.Limits.FileBytes = 10_000
			return e
		}(), "", func(e wire.Exit, _, _ string) bool {
			return e.Code != 0
		}},
		{"background does not hold the step", sh("sleep 100 & echo done"), "", func(e wire.Exit, out, _ string) bool { return out == "done\n" && e.WallMS < unheld }},
		{"daemon does not survive", sh("setsid sh -c 'sleep 100 & sleep 100' & echo done"), "", func(e wire.Exit, out, _ string) bool { return out == "done\n" && e.WallMS < unheld }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if e, out, errOut := run(t, c, tt.exec, tt.stdin); !tt.check(e, out, errOut) {
				t.Errorf("%+v, %d bytes %.80q, %.80q", e, len(out), out, errOut)
			}
		})
	}
	_, err := c.Exec(t.Context(), wire.Exec{ID: "x", Argv: []string{"/no/such"}}, client.Streams{})
	if e, ok := errors.AsType[*wire.Error](err); !ok || e.Kind != wire.ErrStart {
		t.Errorf("error %v", err)
	}
}

func TestLargeOutputIsWhole(t *testing.T) {
	c, _ := process(t)
	var n int64
	w := writerFunc(func(b []byte) (int, error) { n += int64(len(b)); return len(b), nil })
	exit, err := c.Exec(t.Context(), sh("head -c 100000000 /dev/zero"), client.Streams{Stdout: w})
	if err != nil || exit.Code != 0 || n != 100_000_000 {
		t.Errorf("%d bytes, %+v, %v", n, exit, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestCancelKills(t *testing.T) {
	c, _ := process(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.Exec(ctx, sh("sleep 100"), client.Streams{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) { // the tree takes one program at a time: the last must be gone
		if _, err := c.Exec(t.Context(), sh("true"), client.Streams{}); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func TestAgentDies(t *testing.T) {
	c, cmd := process(t)
	started := make(chan struct{})
	w := writerFunc(func(b []byte) (int, error) { close(started); return len(b), nil })
	go func() {
		<-started
		_ = cmd.Process.Kill()
	}()
	if _, err := c.Exec(t.Context(), sh("echo x; sleep 100"), client.Streams{Stdout: w}); !errors.Is(err, client.ErrLost) {
		t.Errorf("error %v", err)
	}
}
