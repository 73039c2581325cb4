package vmmtest

import (
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/paddockvm/paddock/test/leak"
)

// NoLeaks counts now, and again when the test and its clean-ups registered after this call are over: this process's descriptors,
// children and goroutines, and the files below dirs. What is more then than it was fails the test. Not for parallel tests.
func NoLeaks(t testing.TB, dirs ...string) {
	t.Helper()
	goroutines := goleak.IgnoreCurrent()
	before := holdings(t, dirs)
	t.Cleanup(func() {
		if t.Failed() {
			return // the first failure tells more
		}
		if err := leak.Find(goroutines); err != nil {
			t.Errorf("goroutines left: %v", err)
		}
		var diff string
		// A closed descriptor is gone at once, but the runtime closes some (a process's pidfd) behind our back.
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			if diff = cmp.Diff(before, holdings(t, dirs)); diff == "" {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("left behind (-before +after):\n%s", diff)
				return
			}
		}
	})
}

// holdings lists what this process holds, in a form that can be compared.
func holdings(t testing.TB, dirs []string) map[string][]string {
	t.Helper()
	all := map[string][]string{"children": children(t), "descriptors": descriptors(t)}
	for _, dir := range dirs {
		must(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
			all["files"] = append(all["files"], p)
			return err
		}))
	}
	return all
}

func children(t testing.TB) (all []string) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	must(t, err)
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue // the thread is gone
		}
		for _, pid := range strings.Fields(string(b)) {
			name, _ := os.ReadFile("/proc/" + pid + "/comm")
			all = append(all, pid+" "+strings.TrimSpace(string(name)))
		}
	}
	sort.Strings(all)
	return all
}

func descriptors(t testing.TB) (all []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.HasPrefix(target, "/proc/") {
			continue // the directory that is being read
		}
		all = append(all, target) // without its number: what is closed and opened again may get another
	}
	sort.Strings(all)
	return all
}
