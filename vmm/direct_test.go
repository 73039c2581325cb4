package vmm_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/paddockvm/paddock/test/leak"
	"github.com/paddockvm/paddock/vmm"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

func launch(t *testing.T, c vmm.Command) vmm.Process {
	t.Helper()
	p, err := vmm.Direct{}.Launch(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func readAll(t *testing.T, r *os.File) string {
	t.Helper()
	if err := r.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestDirectFilesStderrAndStatus(t *testing.T) {
	out, outW := pipe(t)
	errs, errsW := pipe(t)
	p := launch(t, vmm.Command{
		Name: "t", Path: "/bin/sh", Args: []string{"-c", "echo three >&3; echo err >&2; exit 7"},
		Files: []*os.File{outW}, Stderr: errsW,
	})
	outW.Close()
	errsW.Close()
	got := readAll(t, out)
	if got != "three\n" {
		t.Errorf("descriptor 3 got %q", got)
	}
	if got := readAll(t, errs); got != "err\n" {
		t.Errorf("stderr got %q", got)
	}
	<-p.Done()
	if exit, ok := errors.AsType[*exec.ExitError](p.Err()); !ok || exit.ExitCode() != 7 {
		t.Errorf("Err() = %v, want exit status 7", p.Err())
	}
	if p.UID() != os.Getuid() {
		t.Errorf("UID() = %d", p.UID())
	}
}

func TestDirectEnvironmentIsNotInherited(t *testing.T) {
	t.Setenv("PADDOCK_SECRET", "hunter2")
	out, outW := pipe(t)
	launch(t, vmm.Command{Name: "t", Path: "/usr/bin/env", Stderr: outW, Args: []string{"sh", "-c", "env >&2"}})
	outW.Close()
	if got := readAll(t, out); strings.Contains(got, "hunter2") {
		t.Errorf("environment: %q", got)
	}
}

func TestDirectSuccess(t *testing.T) {
	p := launch(t, vmm.Command{Name: "t", Path: "/bin/true"})
	<-p.Done()
	if err := p.Err(); err != nil {
		t.Errorf("Err() = %v", err)
	}
}

func TestDirectNoSuchProgram(t *testing.T) {
	if _, err := (vmm.Direct{}).Launch(t.Context(), vmm.Command{Name: "t", Path: "/no/such"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("err = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (vmm.Direct{}).Launch(ctx, vmm.Command{Name: "t", Path: "/bin/true"}); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
}

// The pipe's read end sees EOF only when every process that inherited the write end is gone.
func TestDirectKillEndsTheGroup(t *testing.T) {
	r, w := pipe(t)
	p := launch(t, vmm.Command{Name: "t", Path: "/bin/sh", Args: []string{"-c", "sleep 1000 & echo up >&3; wait"}, Files: []*os.File{w}})
	w.Close()
	buf := make([]byte, 3)
	if _, err := io.ReadFull(r, buf); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := p.Kill(); err != nil {
				t.Error(err)
			}
			select {
			case <-p.Done():
			default:
				t.Error("Kill returned before the process was reaped")
			}
		})
	}
	wg.Wait()
	if got := readAll(t, r); got != "" {
		t.Errorf("got %q", got)
	}
}

// A leader that exits by itself takes its group with it, too.
func TestDirectExitEndsTheGroup(t *testing.T) {
	r, w := pipe(t)
	p := launch(t, vmm.Command{Name: "t", Path: "/bin/sh", Args: []string{"-c", "sleep 1000 &"}, Files: []*os.File{w}})
	w.Close()
	readAll(t, r)
	<-p.Done()
}

// The thread that called Launch ends; the child must not notice. That is the trap of Pdeathsig.
func TestDirectOutlivesTheCallersThread(t *testing.T) {
	r, w := pipe(t)
	var p vmm.Process
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		p = launch(t, vmm.Command{Name: "t", Path: "/bin/sh", Args: []string{"-c", "read x <&3; exit 5"}, Files: []*os.File{r}})
	}()
	<-done
	for range 20 { // threads come and go
		gone := make(chan struct{})
		go func() { runtime.LockOSThread(); close(gone) }()
		<-gone
	}
	if _, err := w.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if exit, ok := errors.AsType[*exec.ExitError](p.Err()); !ok || exit.ExitCode() != 5 {
		t.Errorf("child ended with %v, want exit status 5", p.Err())
	}
}

// A child that leaves its process group for its parent's is killed, and nobody else of the parent's is.
func TestDirectKillsWhoLeavesTheGroup(t *testing.T) {
	if group := os.Getenv("VMM_DIRECT_GROUP"); group != "" {
		n, err := strconv.Atoi(group)
		if err == nil {
			err = syscall.Setpgid(0, n)
		}
		fmt.Fprintln(os.NewFile(3, "says"), "left", err)
		time.Sleep(time.Hour)
	}
	r, w := pipe(t)
	p := launch(t, vmm.Command{Name: "t", Path: "/usr/bin/env", Args: []string{
		"VMM_DIRECT_GROUP=" + strconv.Itoa(syscall.Getpgrp()), os.Args[0], "-test.run=^TestDirectKillsWhoLeavesTheGroup$",
	}, Files: []*os.File{w}})
	w.Close()
	if line, err := bufio.NewReader(r).ReadString('\n'); err != nil || line != "left <nil>\n" {
		t.Fatalf("it says %q, %v", line, err)
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
}

// A process that starts a child through Direct and is killed leaves no child behind.
func TestDirectChildDiesWithUs(t *testing.T) {
	if os.Getenv("VMM_DIRECT_PARENT") != "" {
		p, err := vmm.Direct{}.Launch(t.Context(), vmm.Command{Name: "t", Path: "/bin/sleep", Args: []string{"1000"}})
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("child " + strconv.Itoa(p.PID()) + "\n")
		<-p.Done()
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDirectChildDiesWithUs$")
	cmd.Env = append(os.Environ(), "VMM_DIRECT_PARENT=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 64)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(string(line[:n]), "child ")))
	if err != nil {
		t.Fatalf("%q: %v", line[:n], err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for deadline := time.Now().Add(time.Minute); syscall.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); strings.Contains(string(b), ") Z ") {
			break // dead, and waits for a reaper that this container may not have
		}
		if time.Now().After(deadline) {
			t.Fatalf("child %d outlived its parent", pid)
		}
	}
}
