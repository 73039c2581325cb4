// Package pgtest runs a real PostgreSQL for a test: a cluster of its own in a temporary directory, on loopback and a unix socket, with
// fsync on. It imports nothing of Paddock.
package pgtest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/paddockvm/paddock/test/port"
)

// Server is a PostgreSQL server. Its methods are for one goroutine at a time, besides Database.
type Server struct {
	dir, bin string
	port     int
	as       *syscall.Credential // nil: as whoever the test is
	cmd      *exec.Cmd

	mu   sync.Mutex
	last int // database that was made
}

// within bounds each step of starting: machines that test are busy.
const within = 2 * time.Minute

// Start makes a cluster and starts its server. The test skips where no PostgreSQL is installed, and fails where REQUIRE_POSTGRES=1. It ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	s, err := Open()
	if errors.Is(err, ErrNotInstalled) && os.Getenv("REQUIRE_POSTGRES") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// ErrNotInstalled is given where there is no PostgreSQL.
var ErrNotInstalled = errors.New("PostgreSQL is not installed (deploy/install-deps.sh test installs it)")

// Open makes a cluster and starts its server, for who is no test; Close ends it.
func Open() (_ *Server, err error) {
	bin := installed()
	if bin == "" {
		return nil, ErrNotInstalled
	}
	dir, err := os.MkdirTemp("", "pg") // short: a socket's path has 107 bytes at most
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, bin: bin}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.init(); err != nil {
		return nil, fmt.Errorf("make a PostgreSQL cluster: %w", err)
	}
	return s, s.Start()
}

// Close kills the server and removes its cluster.
func (s *Server) Close() error {
	s.Kill()
	return os.RemoveAll(s.dir)
}

// installed finds the newest server's programs, where Debian has them or in PATH.
func installed() string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) > 0 {
		newest := func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) } // 9 is less than 15
		return filepath.Dir(slices.MaxFunc(found, newest))
	}
	if p, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(p)
	}
	return ""
}

// init makes the cluster. PostgreSQL refuses to run as root, so there it is postgres, or nobody.
func (s *Server) init() error {
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			if u, err = user.Lookup("nobody"); err != nil {
				return err
			}
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		s.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(s.dir, int(uid), int(gid)); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	out, err := s.command(ctx, "initdb", "-D", filepath.Join(s.dir, "data"), "-A", "trust", "-U", "postgres", "--no-sync", "--locale=C", "-E", "UTF8").CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	s.port, err = port.Free()
	return err
}

func (s *Server) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Start starts the server again, after Kill, and waits until it answers.
func (s *Server) Start() error {
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	s.cmd = s.command(context.Background(), "postgres", "-D", filepath.Join(s.dir, "data"), "-p", strconv.Itoa(s.port), "-k", s.dir,
		"-c", "listen_addresses=127.0.0.1", "-c", "fsync=on", "-c", "max_connections=200", "-c", "shared_buffers=64MB")
	s.cmd.SysProcAttr.Pdeathsig = 0 // the thread that starts it may end before the test does
	s.cmd.Stdout, s.cmd.Stderr = log, log
	err = s.cmd.Start()
	_ = log.Close()
	if err != nil {
		s.cmd = nil
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	for end := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		c, err := pgx.Connect(ctx, s.URL("postgres"))
		if err == nil {
			err = c.Close(ctx)
		}
		cancel()
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			b, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			return fmt.Errorf("PostgreSQL does not answer: %w; its log:\n%s", err, b)
		}
	}
}

// URL leads to a database.
func (s *Server) URL(database string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", s.port, database)
}

// Addr is where the server listens.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Dir is where the server has its files.
func (s *Server) Dir() string { return s.dir }

// Database makes an empty database and gives its URL.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	s.mu.Lock()
	s.last++
	name := "test" + strconv.Itoa(s.last)
	s.mu.Unlock()
	s.Exec(t, "postgres", "CREATE DATABASE "+name)
	return s.URL(name)
}

// Exec runs a statement as the database's owner.
func (s *Server) Exec(t testing.TB, database, query string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	c, err := pgx.Connect(ctx, s.URL(database))
	if err == nil {
		defer c.Close(ctx)
		_, err = c.Exec(ctx, query)
	}
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// Kill kills the server, the process of each of its connections too, and waits for all of them. Killing it again does nothing.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	pid := s.cmd.Process.Pid
	stop(pid) // it makes no more of them
	children := childrenOf(pid)
	_ = syscall.Kill(pid, syscall.SIGKILL)
	for _, c := range children {
		_ = syscall.Kill(c, syscall.SIGKILL)
	}
	_ = s.cmd.Wait()
	s.cmd = nil
	for _, c := range children {
		for end := time.Now().Add(within); syscall.Kill(c, 0) == nil && !zombie(c) && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
	}
}

// Pause stops the server and all its processes, until Resume; when it returns they are there and say nothing.
func (s *Server) Pause() {
	pid := s.cmd.Process.Pid
	stop(pid) // it makes no more of them
	stop(childrenOf(pid)...)
}

// Resume ends a Pause.
func (s *Server) Resume() {
	pid := s.cmd.Process.Pid
	for _, p := range append(childrenOf(pid), pid) {
		_ = syscall.Kill(p, syscall.SIGCONT)
	}
}

// stop sends processes SIGSTOP and waits until they do nothing more: until it has arrived they go on, and may make others.
func stop(pids ...int) {
	for _, p := range pids {
		_ = syscall.Kill(p, syscall.SIGSTOP)
	}
	for _, p := range pids {
		for end := time.Now().Add(within); state(p) != "T" && !zombie(p) && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
	}
}

// childrenOf gives the children of a process that is stopped: the kernel may pass over some of one that is not (proc_pid_task(5)).
func childrenOf(pid int) (children []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, t := range tasks {
		b, _ := os.ReadFile(t)
		for _, f := range strings.Fields(string(b)) {
			if c, err := strconv.Atoi(f); err == nil {
				children = append(children, c)
			}
		}
	}
	return children
}

// zombie tells whether a process has ended, and waits for init.
func zombie(pid int) bool {
	s := state(pid)
	return s == "" || s == "Z" || s == "X"
}

// state is a process's, by its letter in proc_pid_stat(5); empty for one that is not there.
func state(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := bytes.Cut(b, []byte(") "))
	letter, _, _ := bytes.Cut(rest, []byte(" "))
	return string(letter)
}
