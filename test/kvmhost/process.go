package kvmhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// command is a process, with a group of its own, that ends with ctx and when this process dies.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if path, err := exec.LookPath(name); err != nil && !strings.Contains(name, "/") {
		if _, err := os.Stat("/usr/sbin/" + name); err == nil {
			cmd.Path, cmd.Err = "/usr/sbin/"+name, nil
		}
	} else if err == nil {
		cmd.Path = path
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// apart gives a process of root's namespaces for processes and mounts.
func apart(cmd *exec.Cmd) {
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS // unlike a clone flag, it makes the mounts private
}

// run runs a tool in a directory.
func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := command(ctx, name, args...)
	cmd.Dir = dir
	return finish(ctx, cmd)
}

// finish runs a command; its error holds the last of what that said.
func finish(ctx context.Context, cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	runtime.LockOSThread() // Pdeathsig is sent at the end of the thread that forked (prctl(2))
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), errors.Join(context.Cause(ctx), err), lastLines(out.Bytes(), 20))
	}
	return nil
}

// onOneProcessor calls start on a processor that what it starts keeps to: of those that there are the nth, counted from the last and over again.
// The calling goroutine has its thread for itself.
func onOneProcessor(nth int, start func() error) error {
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return fmt.Errorf("which processors there are: %w", err)
	}
	var there []int
	for n := range len(all) * bits.UintSize {
		if all.IsSet(n) {
			there = append(there, n)
		}
	}
	one.Set(there[len(there)-1-nth%len(there)])
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("keep to one processor: %w", err)
	}
	return errors.Join(start(), unix.SchedSetaffinity(0, &all))
}

func lastLines(b []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// lock takes a lock that processes of this machine share, and that ends with this process. waiting is told once, where another has it, who.
func lock(ctx context.Context, name string, waiting func(who string)) (release func(), err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	told := false
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		if !told {
			who, _ := os.ReadFile(name)
			waiting(strings.TrimSpace(string(who)))
			told = true
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		}
	}
	_ = f.Truncate(0)
	_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0) // for those who wait
	return func() { f.Close() }, nil
}
