// Command inside is what runs within the test's KVM host: as its init, which mounts, loads modules and turns the machine off at the end;
// as the one that runs the steps; and as the "go" that tests find there, which gives what was built outside.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/test/kvmhost/steps"
)

// dir is where the payload is mounted: Plan and Port are known to package kvmhost, which makes it.
const dir = "/paddock"

func main() {
	switch {
	case os.Getpid() == 1:
		boot() // does not return
	case filepath.Base(os.Args[0]) == "go":
		if err := goBuild(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "go:", err)
			os.Exit(1)
		}
	default:
		if err := runPlan(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "kvmhost:", err)
			os.Exit(1)
		}
	}
}

// runPlan runs the payload's plan and tells the host's host.
func runPlan(ctx context.Context) error {
	b, err := os.ReadFile(filepath.Join(dir, "plan.json"))
	if err != nil {
		return err
	}
	var p steps.Plan
	if err := json.Unmarshal(b, &p); err != nil {
		return err
	}
	port, err := openPort("paddock.events")
	if err != nil {
		return err
	}
	defer port.Close()
	lines := steps.NewLines(port)
	lines.Emit(steps.Event{Kind: steps.Ready, Detail: uname()})
	if err := steps.Run(ctx, p, steps.Where{Enter: enter}, lines.Emit); err != nil {
		return err
	}
	lines.Emit(steps.Event{Kind: steps.Done})
	return lines.Err()
}

// openPort finds a virtio-serial port by its name.
func openPort(name string) (*os.File, error) {
	files, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == name {
			return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(file)), os.O_RDWR, 0)
		}
	}
	return nil, errors.New("no serial port " + name)
}

func uname() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err.Error()
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}

// goBuild gives the program that `go build -o FILE PACKAGE` would make, from those that were built outside: there is no Go in the host.
func goBuild(args []string) error {
	var to string
	for i, a := range args {
		if a == "-o" && i+1 < len(args) {
			to = args[i+1]
		}
	}
	if len(args) == 0 || args[0] != "build" || to == "" {
		return fmt.Errorf("this is no Go, it knows only `go build -o FILE PACKAGE`: %q", args)
	}
	name := args[len(args)-1]
	b, err := os.ReadFile(filepath.Join(dir, "built", filepath.Base(name)))
	if err != nil {
		return fmt.Errorf("%s was not built outside (programs in test/kvmhost): %w", name, err)
	}
	return os.WriteFile(to, b, 0o755)
}
