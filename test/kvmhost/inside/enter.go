package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// slice is the cgroup under which each step has one of its own, as a service has with systemd and Delegate=yes.
const slice = "/sys/fs/cgroup/system.slice"

func makeSlice() error {
	if err := os.Mkdir(slice, 0o755); err != nil {
		return err
	}
	const controllers = "+cpuset +cpu +io +memory +hugetlb +pids"
	for _, group := range []string{filepath.Dir(slice), slice} {
		if err := os.WriteFile(filepath.Join(group, "cgroup.subtree_control"), []byte(controllers), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// enter starts a step in a cgroup of its own, and afterwards finds what it has left in the host: processes are ended, and named.
func enter(step string, cmd *exec.Cmd) (leave func() error, err error) {
	group := filepath.Join(slice, strings.ReplaceAll(step, "/", "-")+".service")
	if err := os.Mkdir(group, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(group)
	if err != nil {
		return nil, errors.Join(err, os.Remove(group))
	}
	before := processes()
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(f.Fd())
	return func() error {
		f.Close()
		left := endOthers(before)
		return errors.Join(left, removeGroup(group))
	}, nil
}

// processes are those with a command line: not the kernel's, nor such as nobody has waited for.
func processes() (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")); err == nil && len(b) > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// ending is how long a process may take that has been told to end.
const ending = 2 * time.Second

// endOthers kills the processes that were not there before, and do not end by themselves soon.
func endOthers(before []int) error {
	var left []error
	others := func() []int {
		return slices.DeleteFunc(processes(), func(pid int) bool { return slices.Contains(before, pid) })
	}
	for deadline := time.Now().Add(ending); len(others()) > 0 && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	for _, pid := range others() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if len(line) == 0 || syscall.Kill(pid, syscall.SIGKILL) != nil {
			continue // it was ending
		}
		left = append(left, fmt.Errorf("left a process: %d %s", pid, strings.ReplaceAll(string(line), "\x00", " ")))
	}
	return errors.Join(left...)
}

// removeGroup removes a step's cgroup, and names those that the step has left below it.
func removeGroup(group string) error {
	var left []error
	entries, err := os.ReadDir(group)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			left = append(left, fmt.Errorf("left a cgroup: %s", filepath.Join(group, e.Name())))
		}
	}
	if err := syscall.Rmdir(group); err != nil && len(left) == 0 {
		left = append(left, fmt.Errorf("remove %s: %w", group, err))
	}
	return errors.Join(left...)
}
