package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The kernel has no CLOCK_REALTIME of a process's own: time namespaces shift the monotonic and the boot-time clock only. So for the class
// "clock" paddock is built with a time.Now that adds what a file says: the wall part is stepped and the monotonic part is not, as when a
// host's clock is set. Everything of Go in the program goes by it: time.Since and time.Until of times that have a monotonic reading, timers
// and deadlines do not.

// steppedNode is the program of NATS servers, which takes NodeArg.
const steppedNode = "nats"

// ClockEnv names the file of a process's clock: eight bytes, nanoseconds, which the process maps and others may change.
const ClockEnv = "PADDOCK_CHAOS_CLOCK"

// What time.go has of the toolchains that this was written for, and what becomes of it.
const (
	nowIs     = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	nowIsThen = nowIs + "\tsec, nsec = stepped(sec, nsec)\n"
)

// stepSource is a further file of the package time.
const stepSource = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var step = openStep()

func openStep() *int64 {
	name, there := syscall.Getenv("` + ClockEnv + `")
	if !there {
		return nil
	}
	fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		panic("open the clock " + name + ": " + err.Error())
	}
	b, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	syscall.Close(fd)
	if err != nil {
		panic("map the clock " + name + ": " + err.Error())
	}
	return (*int64)(unsafe.Pointer(&b[0]))
}

func stepped(sec int64, nsec int32) (int64, int32) {
	if step == nil {
		return sec, nsec
	}
	ns := int64(nsec) + atomic.LoadInt64(step)
	sec += ns / 1e9
	if ns %= 1e9; ns < 0 {
		ns += 1e9
		sec--
	}
	return sec, int32(ns)
}
`

// BuildStepped builds a paddock and a NATS server whose clocks can be stepped, as to/paddock and to/nats. What it changes of the toolchain's own sources it keeps in
// overlay, which may be shared: with the same one Go's build cache has the second standard library for the next time.
func BuildStepped(ctx context.Context, overlay, to string) error {
	list, err := Overlay(ctx, overlay)
	if err != nil {
		return fmt.Errorf("prepare a clock that can be stepped: %w", err)
	}
	for name, pkg := range map[string]string{"paddock": "cmd/paddock", steppedNode: "test/chaos/cmd"} {
		if err := goBuild(ctx, filepath.Join(to, name), "github.com/paddockvm/paddock/"+pkg, "-trimpath", "-overlay", list); err != nil {
			return err
		}
	}
	return nil
}

// Overlay writes the changed sources into a directory, and gives the list of them that go build takes as -overlay.
func Overlay(ctx context.Context, dir string) (list string, err error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOROOT: %w", err)
	}
	pkg := filepath.Join(strings.TrimSpace(string(out)), "src", "time")
	source, err := os.ReadFile(filepath.Join(pkg, "time.go"))
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(source), nowIs); n != 1 {
		return "", fmt.Errorf("%s/time.go has %d times what time.Now was to begin with: adapt this package to the toolchain", pkg, n)
	}
	changed, added := filepath.Join(dir, "time.go"), filepath.Join(dir, "step.go")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(pkg, "time.go"): changed, filepath.Join(pkg, "step.go"): added}})
	if err != nil {
		return "", err
	}
	list = filepath.Join(dir, "overlay.json")
	return list, errors.Join(
		os.MkdirAll(dir, 0o755),
		writeWhole(changed, strings.Replace(string(source), nowIs, nowIsThen, 1)), writeWhole(added, stepSource), writeWhole(list, string(replace)),
	)
}

// writeWhole writes a file that others read meanwhile: they see the old one or the new one. One that is so already stays.
func writeWhole(name, text string) error {
	if b, err := os.ReadFile(name); err == nil && string(b) == text {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name))
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(text)
	if err = errors.Join(err, tmp.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return os.Rename(tmp.Name(), name)
}

// goBuild builds a program of this repository.
func goBuild(ctx context.Context, to, pkg string, flags ...string) error {
	args := append([]string{"build", "-ldflags", "-s -w", "-o", to}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", pkg, err, out)
	}
	return nil
}
