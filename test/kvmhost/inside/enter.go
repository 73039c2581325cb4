package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// enter starts a step in a cgroup of its own. What the step has left in the host afterwards is taken away, and named.
func enter(step string, cmd *exec.Cmd) (leave func() error, err error) {
	group := filepath.Join(slice, strings.ReplaceAll(strings.ReplaceAll(step, "/", "-"), " ", "-")+".service")
	if err := os.Mkdir(group, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(group)
	if err != nil {
		return nil, errors.Join(err, os.Remove(group))
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(f.Fd())
	before := holdings()
	return func() error {
		f.Close()
		left := before.left()
		return errors.Join(left, os.Remove(group))
	}, nil
}
