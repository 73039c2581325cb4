package harness

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/paddockvm/paddock/test/port"
)

// RedisOptions say how to start a Redis. The zero value is redis-server, on a free port of loopback, which keeps nothing on disk.
type RedisOptions struct {
	// Binary is "redis-server" or "valkey-server"; empty means the first.
	Binary string
	// Dir is its working directory; empty means a new temporary one.
	Dir string
	// Port is where it listens; 0 means a free one.
	Port int
	// Args are further arguments: a configuration file first, then settings ("--appendonly", "yes").
	Args []string
}

// Redis is a running server, or Sentinel.
type Redis struct {
	Port    int
	options RedisOptions
	cmd     *exec.Cmd
	done    chan struct{} // closed when the process has been reaped
}

// NeedRedis gives the servers that this machine has, Redis, Valkey or both, and skips where it has none. Where REQUIRE_REDIS is set it fails
// where one of them is missing.
func NeedRedis(t testing.TB) (l []string) {
	t.Helper()
	for _, name := range []string{"redis-server", "valkey-server"} {
		if _, err := exec.LookPath(name); err == nil {
			l = append(l, name)
		} else if os.Getenv("REQUIRE_REDIS") != "" {
			t.Fatalf("no %s in PATH; deploy/install-deps.sh test installs it", name)
		}
	}
	if len(l) == 0 {
		t.Skip("SKIPPED: neither redis-server nor valkey-server in PATH; deploy/install-deps.sh test installs them")
	}
	return l
}

// StartRedis starts one for a test and ends it with the test. It returns when it serves.
func StartRedis(t testing.TB, o RedisOptions) *Redis {
	t.Helper()
	if o.Binary == "" {
		o.Binary = NeedRedis(t)[0]
	}
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	if o.Port == 0 {
		o.Port = FreePort(t)
	}
	r := &Redis{Port: o.Port, options: o}
	t.Cleanup(r.Kill)
	r.Start(t)
	return r
}

// Addr is where it listens.
func (r *Redis) Addr() string { return fmt.Sprintf("127.0.0.1:%d", r.Port) }

// URL is what clients connect to.
func (r *Redis) URL() string { return "redis://" + r.Addr() }

// Setting gives the value of one of its arguments.
func (r *Redis) Setting(name string) string {
	if i := slices.Index(r.options.Args, name); i >= 0 && i+1 < len(r.options.Args) {
		return r.options.Args[i+1]
	}
	return ""
}

// Start starts it, again where it has been ended, on the same port and directory.
func (r *Redis) Start(t testing.TB) {
	t.Helper()
	args := append([]string{}, r.options.Args...)
	args = append(args, "--bind", "127.0.0.1", "--daemonize", "no", "--logfile", "")
	for setting, v := range map[string]string{"--port": fmt.Sprint(r.Port), "--save": "", "--dir": r.options.Dir} {
		if !slices.Contains(r.options.Args, setting) {
			args = append(args, setting, v)
		}
	}
	r.cmd = exec.Command(r.options.Binary, args...)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.cmd.Stderr = r.cmd.Stdout
	ready, done := make(chan struct{}), make(chan struct{})
	cmd := r.cmd
	var said strings.Builder
	if err := run(cmd, func() {
		defer close(done)
		served := false
		for s := bufio.NewScanner(out); s.Scan(); {
			if served {
				continue
			}
			said.WriteString(s.Text() + "\n")
			if strings.Contains(s.Text(), "Ready to accept connections") || strings.Contains(s.Text(), "Sentinel ID is") {
				served = true
				close(ready)
			}
		}
		_, _ = io.Copy(io.Discard, out) // a line that is too long for the scanner
		_ = cmd.Wait()
	}); err != nil {
		t.Fatal(err)
	}
	r.done = done
	ctx, cancel := context.WithTimeout(context.Background(), redisWithin)
	defer cancel()
	select {
	case <-ready:
	case <-done:
		t.Fatalf("%q ended:\n%s", r.cmd.Args, &said)
	case <-ctx.Done():
		r.Kill()
		t.Fatalf("%q does not serve:\n%s", r.cmd.Args, &said)
	}
}

// Stop asks it to end, which writes what it is to keep, and waits.
func (r *Redis) Stop() {
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	<-r.done
}

// Kill ends it as a crash would.
func (r *Redis) Kill() {
	if r.cmd == nil || r.cmd.Process == nil {
		return
	}
	_ = r.cmd.Process.Kill()
	<-r.done
}

// FreePort gives a port of loopback that nobody listens on.
func FreePort(t testing.TB) int {
	t.Helper()
	p, err := port.Free()
	if err != nil {
		t.Fatal(err)
	}
	return p
}
