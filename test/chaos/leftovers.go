package chaos

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// goneWithin is how long the kernel may take to end what was killed, on a machine that does other things too.
const goneWithin = time.Minute

// leftovers says what a fleet that was stopped has left on this host: processes, mounts, cgroups. All of them have names that no other run
// has, so there were none before. It removes the cgroup that the run's machines had theirs in.
func (f *fleet) leftovers() (l []string) {
	for end := time.Now().Add(goneWithin); ; time.Sleep(50 * time.Millisecond) {
		if l = f.processesLeft(); len(l) == 0 || time.Now().After(end) {
			break
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return append(l, err.Error())
	}
	for s := bufio.NewScanner(bytes.NewReader(mounts)); s.Scan(); {
		if strings.Contains(s.Text(), f.cfg.Dir) {
			l = append(l, "a mount was left: "+s.Text())
		}
	}
	return append(l, f.cgroupsLeft()...)
}

// processesLeft are those that name the run's directory, or are in its cgroup.
func (f *fleet) processesLeft() (l []string) {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return []string{err.Error()}
	}
	for _, p := range all {
		if pid, err := strconv.Atoi(filepath.Base(p)); err != nil || pid == os.Getpid() {
			continue
		}
		var has []byte
		for _, name := range []string{"cmdline", "environ", "cgroup"} {
			b, _ := os.ReadFile(filepath.Join(p, name)) // it may be gone
			has = append(has, b...)
		}
		if bytes.Contains(has, []byte(f.cfg.Dir)) || bytes.Contains(has, []byte("/"+f.cgroup())) {
			cmdline, _ := os.ReadFile(filepath.Join(p, "cmdline"))
			if len(cmdline) > 0 { // else the kernel is taking it away
				l = append(l, fmt.Sprintf("process %s was left: %.300s", filepath.Base(p), bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
			}
		}
	}
	return l
}

// cgroupsLeft are the machines' that are still there, in all hierarchies of v1 and in v2's.
func (f *fleet) cgroupsLeft() (l []string) {
	var parents []string
	for _, at := range []string{"", "*"} {
		some, err := filepath.Glob(filepath.Join("/sys/fs/cgroup", at, f.cgroup()))
		if err != nil {
			return []string{err.Error()}
		}
		parents = append(parents, some...)
	}
	slices.Sort(parents)
	for _, parent := range slices.Compact(parents) {
		entries, err := os.ReadDir(parent)
		if err != nil {
			l = append(l, err.Error())
		}
		for _, e := range entries {
			if e.IsDir() {
				l = append(l, "a cgroup was left: "+filepath.Join(parent, e.Name()))
			}
		}
		if err := os.Remove(parent); err != nil {
			l = append(l, err.Error())
		}
	}
	return l
}
