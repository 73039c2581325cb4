package kvmhost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOneProcessor(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	var of []string
	for n := range before.Count() + 1 {
		cmd := exec.CommandContext(t.Context(), "sleep", "60")
		if err := onOneProcessor(n, cmd.Start); err != nil {
			t.Fatal(err)
		}
		defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		one := regexp.MustCompile(`(?m)^Cpus_allowed_list:\s*(\d+)$`).FindSubmatch(status)
		if one == nil {
			t.Fatalf("want one processor for it; %s", regexp.MustCompile(`Cpus_allowed_list.*`).Find(status))
		}
		of = append(of, string(one[1]))
	}
	last := len(of) - 1
	if of[last] != of[0] {
		t.Errorf("one more than there are has processor %s, want that of the first; all: %v", of[last], of)
	}
	if slices.Sort(of[:last]); len(slices.Compact(of[:last])) != last {
		t.Errorf("two share a processor: %v", of)
	}
	if err := onOneProcessor(0, func() error { return fs.ErrNotExist }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what cannot be started: %v", err)
	}
	if err := unix.SchedGetaffinity(0, &after); err != nil || after != before {
		t.Errorf("this thread has other processors now than before: %v, %v (%v)", after, before, err)
	}
}
