package vmmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Thread is a thread of a VMM, by its status (proc(5)).
type Thread struct {
	Name string
	// Seccomp is 2 where filters of system calls hold it, of which it has so many.
	Seccomp, Filters int
	// Leads says that it is the process's first.
	Leads bool
}

// Threads are a process's. One that ends meanwhile is left out.
func Threads(t testing.TB, pid int) (list []Thread) {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Error(err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "task", task.Name(), "status"))
		if err != nil {
			continue
		}
		th := Thread{Leads: task.Name() == fmt.Sprint(pid)}
		for line := range strings.Lines(string(b)) {
			k, v, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			switch k {
			case "Name":
				th.Name = v
			case "Seccomp":
				_, err = fmt.Sscan(v, &th.Seccomp)
			case "Seccomp_filters":
				_, err = fmt.Sscan(v, &th.Filters)
			}
			if err != nil {
				t.Errorf("%q: %v", line, err)
			}
		}
		list = append(list, th)
	}
	return list
}
