package soak_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// namespace makes a network namespace with a way out, for hostnet to be the host's end of. It is gone with the test.
func namespace(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("soak-%d", os.Getpid())
	first := !strings.Contains(strings.Join(mounts(t), ""), " /run/netns ")
	ip(t, "netns", "add", name)
	t.Cleanup(func() {
		ip(t, "netns", "del", name)
		if first { // ip mounts the directory over itself
			must(t, errors.Join(unix.Unmount("/run/netns", unix.MNT_DETACH), os.Remove("/run/netns")))
		}
	})
	ip(t, "-n", name, "link", "set", "lo", "up")
	ip(t, "-n", name, "link", "add", "up0", "type", "veth", "peer", "name", "up1") // nobody is there
	ip(t, "-n", name, "addr", "add", "203.0.113.2/24", "dev", "up0")
	ip(t, "-n", name, "link", "set", "up0", "up")
	ip(t, "-n", name, "link", "set", "up1", "up")
	ip(t, "-n", name, "route", "add", "default", "via", "203.0.113.1")
	return filepath.Join("/run/netns", name)
}

func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// holdings are counts of all that a machine has of its host. Slots that wait are not machines': they are named apart.
func (h *host) holdings(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{
		"processes": h.processes(t), "descriptors": descriptors(t), "mounts": mounts(t), "cgroups": cgroups(t), "sockets": sockets(t),
		"goroutines": {fmt.Sprint(runtime.NumGoroutine())},
	}
	for _, dir := range []string{h.run, h.dir} {
		must(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
			if err == nil && !strings.HasPrefix(p, filepath.Join(h.dir, "net")) { // slots, which are counted by their links
				all["files"] = append(all["files"], p)
			}
			return nil
		}))
	}
	links := 0
	for line := range strings.Lines(ip(t, "-n", filepath.Base(h.netns), "-o", "link")) {
		if strings.TrimSpace(line) != "" {
			links++
		}
	}
	all["links"] = []string{fmt.Sprint(links)}
	all["locks"] = locks(t, h.dir)
	return all
}

// still gives the holdings once nothing is being made or ended: slots for the next machines are.
func (h *host) still(t *testing.T) map[string][]string {
	t.Helper()
	last := h.holdings(t)
	for end := time.Now().Add(time.Minute); ; {
		time.Sleep(500 * time.Millisecond)
		now := h.holdings(t)
		if cmp.Equal(last, now) && h.net.Ready() == slots {
			return now
		}
		if time.Now().After(end) {
			t.Fatal("there is no rest to count in")
		}
		last = now
	}
}

// settled waits until the holdings are what they were: slots are ready again, descriptors closed behind our back.
func (h *host) settled(t *testing.T, before map[string][]string) {
	t.Helper()
	var diff string
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if diff = cmp.Diff(before, h.holdings(t)); diff == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("left behind (-before +after):\n%s", diff)
		}
	}
}

// empty checks that nothing is left once the host's parts are closed: no slot, no rule, no link, no lock.
func (h *host) empty(t *testing.T) {
	t.Helper()
	if slots, err := os.ReadDir(filepath.Join(h.dir, "net", "netns")); err == nil && len(slots) > 0 {
		t.Errorf("%d network namespaces are left", len(slots))
	}
	links := ip(t, "-n", filepath.Base(h.netns), "-o", "link")
	if n := strings.Count(links, "\n"); n != 3 { // lo, up0, up1
		t.Errorf("links are left:\n%s", links)
	}
	if rules := h.rules(t); rules != "" {
		t.Errorf("rules are left:\n%s", rules)
	}
	if l := locks(t, h.dir); len(l) > 0 {
		t.Errorf("locks are held: %v", l)
	}
}

// rules are nftables' tables in the host's namespace, by the kernel's own count where there is no nft.
func (h *host) rules(t *testing.T) string {
	t.Helper()
	nft, err := exec.LookPath("nft")
	if err != nil {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("nft is needed to count rules: apt-get install nftables")
		}
		return ""
	}
	out, err := exec.Command("ip", "netns", "exec", filepath.Base(h.netns), nft, "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// processes are all that descend from this one.
func (h *host) processes(t *testing.T) (all []string) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	must(t, err)
	for _, task := range tasks {
		b, _ := os.ReadFile(task)
		all = append(all, strings.Fields(string(b))...)
	}
	sort.Strings(all)
	return all
}

func descriptors(t *testing.T) (all []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.HasPrefix(target, "/proc/") {
			continue
		}
		target, _, _ = strings.Cut(target, ":[") // the same kind of thing: numbers differ
		if dir := filepath.Dir(target); filepath.Base(dir) == "netns" {
			target = dir // of some slot that waits
		}
		all = append(all, target)
	}
	sort.Strings(all)
	return all
}

func mounts(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	var all []string
	for line := range bytes.Lines(b) {
		if !bytes.Contains(line, []byte(" - nsfs ")) { // namespaces of slots that wait, which are counted by their links
			all = append(all, string(line))
		}
	}
	sort.Strings(all)
	return all
}

// cgroupParent is a cgroup of this test's alone.
func cgroupParent() string { return fmt.Sprintf("soak-%d", os.Getpid()) }

// cgroups are those of machines, in all hierarchies.
func cgroups(t *testing.T) (all []string) {
	t.Helper()
	for _, parent := range cgroupParents(t) {
		entries, err := os.ReadDir(parent)
		must(t, err)
		for _, e := range entries {
			if e.IsDir() {
				all = append(all, filepath.Join(parent, e.Name()))
			}
		}
	}
	return all
}

// cgroupParents finds the parent in each hierarchy, at its top or below.
func cgroupParents(t *testing.T) (all []string) {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/%s", "/sys/fs/cgroup/*/%s", "/sys/fs/cgroup/*/*/%s", "/sys/fs/cgroup/*/*/*/%s"} {
		found, err := filepath.Glob(fmt.Sprintf(pattern, cgroupParent()))
		must(t, err)
		all = append(all, found...)
	}
	return all
}

func removeCgroups(t *testing.T) {
	t.Helper()
	for _, dir := range cgroupParents(t) {
		must(t, os.Remove(dir))
	}
}

// sockets are unix sockets of this network namespace that have a name.
func sockets(t *testing.T) (all []string) {
	t.Helper()
	b, err := os.ReadFile("/proc/net/unix")
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 8 && strings.Contains(f[7], "soak-") {
			all = append(all, f[7])
		}
	}
	sort.Strings(all)
	return all
}

// locks are the files in a directory of which somebody holds a byte range, once for each: uids, CIDs, slots (proc_locks(5)).
func locks(t *testing.T, dir string) (all []string) {
	t.Helper()
	inodes := map[string]string{}
	must(t, filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil //nolint:nilerr // it has just gone
		}
		var st unix.Stat_t
		if unix.Stat(p, &st) == nil {
			inodes[fmt.Sprint(st.Ino)] = filepath.Base(p)
		}
		return nil
	}))
	b, err := os.ReadFile("/proc/locks")
	must(t, err)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		device := strings.Split(f[5], ":")
		if name, ours := inodes[device[len(device)-1]]; ours {
			all = append(all, name) // which byte differs: slots that wait are others
		}
	}
	sort.Strings(all)
	return all
}
