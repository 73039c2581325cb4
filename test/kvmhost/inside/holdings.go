package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kind is a kind of thing that a step could leave in the host.
type kind struct {
	name string
	// list names those that are there; what it cannot see is not there.
	list func() []string
	// remove takes one away, as well as it can.
	remove func(string)
}

// kinds are in the order in which they go: each holds those after it.
var kinds = []kind{
	{"process", processes, func(p string) {
		if pid, err := strconv.Atoi(firstWord(p)); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}},
	{"mount", mounts, func(m string) { _ = unix.Unmount(m, unix.MNT_DETACH) }},
	{"network namespace", func() []string { return names("/run/netns") }, func(n string) { _ = exec.Command("ip", "netns", "del", n).Run() }},
	{"link", links, func(l string) { _ = exec.Command("ip", "link", "del", l).Run() }},
	{"nftables table", tables, func(t string) {
		_ = exec.Command("nft", append([]string{"delete"}, strings.Fields(t)...)...).Run()
	}},
	{"cgroup", cgroups, func(g string) { _ = os.Remove(g) }},
}

// held is what was there, by kind.
type held map[string][]string

func holdings() held {
	h := held{}
	for _, k := range kinds {
		h[k.name] = k.list()
	}
	return h
}

// ending is how long something may take that is going away by itself.
const ending = 2 * time.Second

// left takes away what was not there before and does not go by itself soon; the error names it.
func (h held) left() error {
	var left []error
	deadline := time.Now().Add(ending)
	for _, k := range kinds {
		more := func() []string {
			return slices.DeleteFunc(k.list(), func(name string) bool { return slices.Contains(h[k.name], name) })
		}
		for len(more()) > 0 && time.Now().Before(deadline) {
			time.Sleep(50 * time.Millisecond)
		}
		for _, name := range slices.Backward(more()) { // of cgroups and mounts the inner ones first
			left = append(left, fmt.Errorf("left a %s: %s", k.name, name))
			k.remove(name)
		}
	}
	return errors.Join(left...)
}

func firstWord(s string) string {
	word, _, _ := strings.Cut(s, " ")
	return word
}

func names(dir string) (all []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// processes are those with a command line: not the kernel's, nor such as nobody has waited for.
func processes() (all []string) {
	for _, name := range names("/proc") {
		if _, err := strconv.Atoi(name); err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", name, "cmdline"))
		if err != nil || len(line) == 0 {
			continue
		}
		args := strings.Fields(strings.ReplaceAll(string(line), "\x00", " "))
		all = append(all, name+" "+strings.Join(args[:min(len(args), 4)], " "))
	}
	return all
}

func mounts() (all []string) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 {
			all = append(all, f[4])
		}
	}
	return all
}

// links are the network interfaces, without those that modules bring along.
func links() []string {
	return slices.DeleteFunc(names("/sys/class/net"), func(name string) bool {
		return slices.Contains([]string{"ifb0", "ifb1", "dummy0", "bonding_masters"}, name)
	})
}

// tables are as nft names them: "table inet paddock".
func tables() (all []string) {
	out, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(out)) {
		all = append(all, strings.TrimSpace(line))
	}
	return all
}

func cgroups() (all []string) {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			all = append(all, path)
		}
		return nil // one that goes away meanwhile is not there
	})
	return all
}
