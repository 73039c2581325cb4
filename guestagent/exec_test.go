package guestagent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
)

// TestOutput shows that both streams are whole, apart and in order, with exact counts, and where a limit cuts them.
func TestOutput(t *testing.T) {
	c, _ := process(t)
	lines := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintln(&b, i)
		}
		return b.String()
	}
	const limit = 1000
	for _, tt := range []struct {
		name, line       string
		out, errOut      string // what comes; of a cut stream, its beginning
		dropped, errDrop bool
		limit            string
	}{
		{"many small writes", "i=0; while [ $i -lt 200 ]; do echo $i; echo $i >&2; i=$((i+1)); done", lines(200), lines(200), false, false, ""},
		{"bytes of all kinds", `printf '\000\377\012\015\303'`, "\x00\xff\n\r\xc3", "", false, false, ""},
		{"nothing", "exec 1>&- 2>&-", "", "", false, false, ""},
		{"just the limit", "head -c 1000 /dev/zero; head -c 1000 /dev/zero >&2", strings.Repeat("\x00", limit), strings.Repeat("\x00", limit), false, false, ""},
		{"one byte more", "head -c 1001 /dev/zero; sleep 100", strings.Repeat("\x00", limit), "", true, false, wire.LimitStdout},
		{"one byte more of errors", "head -c 1001 /dev/zero >&2; sleep 100", "", strings.Repeat("\x00", limit), false, true, wire.LimitStderr},
		{"a flood", "echo first >&2; yes", strings.Repeat("y\n", limit/2), "first\n", true, false, wire.LimitStdout},
		{"a flood from a daemon", "setsid sh -c 'trap \"\" TERM HUP; yes' & sleep 100", strings.Repeat("y\n", limit/2), "", true, false, wire.LimitStdout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := sh(tt.line)
			e.Limits.OutputBytes = limit
			exit, out, errOut := run(t, c, e, "")
			if out != tt.out || errOut != tt.errOut || exit.StdoutBytes != int64(len(out)) || exit.StderrBytes != int64(len(errOut)) {
				t.Errorf("%d bytes %.60q and %d bytes %.60q, %+v", len(out), out, len(errOut), errOut, exit)
			}
			if (exit.StdoutDropped > 0) != tt.dropped || (exit.StderrDropped > 0) != tt.errDrop || exit.Limit != tt.limit {
				t.Errorf("%+v", exit)
			}
		})
	}
}

// TestStdinStreams has a conversation with a program: each line goes in after the answer to the last has come out, and an end ends it.
func TestStdinStreams(t *testing.T) {
	c, _ := process(t)
	r, w := io.Pipe()
	said := make(chan string, 10)
	type result struct {
		exit wire.Exit
		err  error
	}
	ended := make(chan result, 1)
	go func() {
		exit, err := c.Exec(t.Context(), sh(`echo ready; while read x; do echo "got $x"; done; echo end`), client.Streams{
			Stdin: r, Stdout: writerFunc(func(b []byte) (int, error) { said <- string(b); return len(b), nil }),
		})
		ended <- result{exit, err}
	}()
	for _, step := range []struct{ hears, says string }{{"ready\n", "one\n"}, {"got one\n", "two\n"}, {"got two\n", ""}} {
		if got := <-said; got != step.hears {
			t.Fatalf("%q came, not %q", got, step.hears)
		}
		if step.says == "" {
			_ = w.Close()
		} else {
			_, _ = io.WriteString(w, step.says)
		}
	}
	if got, end := <-said, <-ended; got != "end\n" || end.err != nil || end.exit.Code != 0 {
		t.Errorf("%q, %+v", got, end)
	}
}

// TestStdinThatNobodyReads shows that a program's end, not its input's, ends a step.
func TestStdinThatNobodyReads(t *testing.T) {
	c, _ := process(t)
	for _, line := range []string{"exit 3", "exec <&-; exit 3", "head -c 10 >/dev/null; exit 3", "sleep 0.1; exit 3"} {
		if exit, _, _ := run(t, c, sh(line), strings.Repeat("x", 2<<20)); exit.Code != 3 {
			t.Errorf("%s: %+v", line, exit)
		}
	}
}

// execUntil runs a program and calls then in another goroutine when the first line of it has come.
func execUntil(t *testing.T, c *client.Client, e wire.Exec, then func(line string)) (wire.Exit, string, error) {
	t.Helper()
	var out bytes.Buffer
	done := make(chan struct{})
	first := true
	exit, err := c.Exec(t.Context(), e, client.Streams{Stdout: writerFunc(func(b []byte) (int, error) {
		out.Write(b)
		if line, _, ok := strings.Cut(out.String(), "\n"); ok && first {
			first = false
			go func() {
				defer close(done)
				then(line)
			}()
		}
		return len(b), nil
	})})
	if !first {
		<-done
	}
	return exit, out.String(), err
}

func TestSignals(t *testing.T) {
	c, _ := process(t)
	signal := func(name string) func(string) {
		return func(string) {
			if err := c.Signal(t.Context(), "x", name); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for _, tt := range []struct {
		name, line, signal string
		code               int
		ended, out         string
	}{
		{"caught", "trap 'echo caught; exit 7' TERM; echo; while :; do sleep 0.01; done", "SIGTERM", 7, "", "\ncaught\n"},
		{"not caught", "echo; exec sleep 100", "SIGINT", -1, "SIGINT", "\n"},
		{"killed", "trap '' TERM INT HUP; echo; exec sleep 100", "SIGKILL", -1, "SIGKILL", "\n"},
		{"to all of them", "sleep 100 & echo; wait $!; echo $?", "SIGUSR1", -1, "SIGUSR1", "\n"},
		{"to those in sessions of their own", "trap : USR1; setsid sh -c 'trap \"echo caught; exit 0\" USR1; echo; while :; do sleep 0.01; done'", "SIGUSR1", 0, "", "\ncaught\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			exit, out, err := execUntil(t, c, sh(tt.line), signal(tt.signal))
			if err != nil || exit.Code != tt.code || exit.Signal != tt.ended || out != tt.out || exit.Limit != "" {
				t.Errorf("%q, %+v, %v", out, exit, err)
			}
		})
	}
	_, _, err := execUntil(t, c, sh("echo; exec sleep 100"), func(string) {
		if err := c.Signal(t.Context(), "x", "SIGNONE"); kind(err) != wire.ErrRequest {
			t.Errorf("no such signal: %v", err)
		}
		if err := c.Signal(t.Context(), "y", "SIGTERM"); kind(err) != wire.ErrRequest {
			t.Errorf("no such program: %v", err)
		}
		if err := c.Quiesce(t.Context()); kind(err) != wire.ErrRequest {
			t.Errorf("quiesce while a program runs: %v", err)
		}
		if _, err := c.Exec(t.Context(), sh("true"), client.Streams{}); kind(err) != wire.ErrRequest {
			t.Errorf("a second program of that name: %v", err)
		}
		signal("SIGKILL")("")
	})
	if err != nil {
		t.Error(err)
	}
	if err := c.Signal(t.Context(), "x", "SIGTERM"); kind(err) != wire.ErrRequest {
		t.Errorf("a program that has ended: %v", err)
	}
}

func kind(err error) string {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e.Kind
	}
	return ""
}

// TestNothingSurvives starts processes that mean to outlive their step, and looks for each when the step's end is told.
func TestNothingSurvives(t *testing.T) {
	c, _ := process(t)
	const stay = `trap "" TERM HUP INT; echo $$; exec >/dev/null 2>&1; while :; do sleep 1; done`
	for _, tt := range []struct {
		name, line string // its input ends when all have told of themselves
		count      int
		cancel     bool
	}{
		{"in the background", "sh -c '" + stay + "' & cat", 1, false},
		{"in a session of its own", "setsid sh -c '" + stay + "' & cat", 1, false},
		{"forked twice", "(setsid sh -c '" + stay + "' & ) & cat", 1, false},
		{"a crowd", "for i in 1 2 3 4 5 6 7 8 9 10; do (setsid sh -c '" + stay + "' & ) & done; cat", 10, false},
		{"when its parent is killed", "(setsid sh -c '" + stay + "' & ) & cat; kill -9 $$", 1, false},
		{"when it is canceled", "(setsid sh -c '" + stay + "' & ) & exec >/dev/null; sleep 100", 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stdin, told := io.Pipe()
			var out bytes.Buffer
			_, err := c.Exec(ctx, sh(tt.line), client.Streams{Stdin: stdin, Stdout: writerFunc(func(b []byte) (int, error) {
				out.Write(b)
				switch {
				case bytes.Count(out.Bytes(), []byte("\n")) < tt.count:
				case tt.cancel:
					cancel()
				default:
					_ = told.Close()
				}
				return len(b), nil
			})})
			_ = told.Close()
			if (err != nil) != tt.cancel {
				t.Fatal(err)
			}
			for tt.cancel && err != nil { // the next starts when the last is over: one at a time without cgroups
				_, err = c.Exec(t.Context(), sh("true"), client.Streams{})
			}
			pids := strings.Fields(out.String())
			if len(pids) != tt.count {
				t.Fatalf("%d processes told of themselves", len(pids))
			}
			for _, p := range pids {
				pid, err := strconv.Atoi(p)
				if err != nil {
					t.Fatal(err)
				}
				if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
					t.Errorf("process %d: %v", pid, err)
				}
			}
		})
	}
}

// TestHowAProgramStarts shows what it gets, and how one that cannot start is told from a failure of the agent.
func TestHowAProgramStarts(t *testing.T) {
	c, dir := inDir(t)
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"plain": 0o644, "garbage": 0o755} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("\x00\x01"), mode); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"PATH=/usr/bin:/bin", "A=b c", "A2="}
	for _, tt := range []struct {
		name string
		exec wire.Exec
		out  string
		kind string
	}{
		{"environment, and no more", wire.Exec{Argv: []string{"env"}, Env: env}, "PATH=/usr/bin:/bin\nA=b c\nA2=\n", ""},
		{"arguments as they are", wire.Exec{Argv: []string{"printf", "%s|", "a b", "", "$x", "'"}, Env: env}, "a b||$x|'|", ""},
		{"working directory", wire.Exec{Argv: []string{"pwd"}, Env: env}, dir + "\n", ""},
		{"a relative one", wire.Exec{Argv: []string{"pwd"}, Env: env, Cwd: "sub"}, dir + "/sub\n", ""},
		{"an absolute one", wire.Exec{Argv: []string{"pwd"}, Env: env, Cwd: "/"}, "/\n", ""},
		{"one that is not there", wire.Exec{Argv: []string{"pwd"}, Env: env, Cwd: "none"}, "", wire.ErrStart},
		{"not in PATH", wire.Exec{Argv: []string{"no-such-program"}, Env: env}, "", wire.ErrStart},
		{"no PATH", wire.Exec{Argv: []string{"true"}}, "", wire.ErrStart},
		{"no program", wire.Exec{Argv: []string{""}}, "", wire.ErrRequest},
		{"not executable", wire.Exec{Argv: []string{"./plain"}}, "", wire.ErrStart},
		{"of no format", wire.Exec{Argv: []string{"./garbage"}}, "", wire.ErrStart},
		{"a directory", wire.Exec{Argv: []string{"./sub"}}, "", wire.ErrStart},
		{"a zero in an argument", wire.Exec{Argv: []string{"/bin/true", "a\x00b"}}, "", wire.ErrStart},
		{"open files", wire.Exec{Argv: []string{"/bin/sh", "-c", "ulimit -n"}, Limits: wire.ExecLimits{OpenFiles: 17}}, "17\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.exec.ID = "x"
			var out bytes.Buffer
			_, err := c.Exec(t.Context(), tt.exec, client.Streams{Stdout: &out})
			if out.String() != tt.out || kind(err) != tt.kind || (err == nil) != (tt.kind == "") {
				t.Errorf("%q, %v", out.String(), err)
			}
		})
	}
	e := sh("exec dd if=/dev/zero of=big bs=1k count=100")
	e.Limits.FileBytes = 10_000
	if exit, _, _ := run(t, c, e, ""); exit.Limit != wire.LimitFile {
		t.Errorf("a file beyond its limit: %+v", exit)
	}
	if err := put(t, c, "larger", strings.Repeat("x", 20_000)); err != nil { // the program's limits are not the agent's
		t.Error(err)
	}
}
