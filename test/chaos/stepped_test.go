package chaos_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/paddockvm/paddock/test/chaos"
	"github.com/paddockvm/paddock/test/harness"
)

// A program that is built with a clock that can be stepped sees the step in the time of day, and in nothing else.
func TestSteppedClock(t *testing.T) {
	cache, err := harness.Cache()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	list, err := chaos.Overlay(t.Context(), filepath.Join(cache, "stepped-clock"))
	if err != nil {
		t.Fatal(err)
	}
	main, bin, clock := filepath.Join(dir, "main.go"), filepath.Join(dir, "main"), filepath.Join(dir, "clock")
	for name, text := range map[string]string{main: steppedProgram, clock: strings.Repeat("\x00", 8)} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-overlay", list, "-o", bin, main)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run := exec.CommandContext(t.Context(), bin, clock)
	run.Env = append(os.Environ(), chaos.ClockEnv+"="+clock)
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// steppedProgram steps its own clock: by two days forwards, and by an hour and half a second backwards.
const steppedProgram = `package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"
)

// busy is how long this program may have to wait between two of its lines; the clock's steps are longer.
const busy = 50 * time.Second

func main() {
	for _, by := range []time.Duration{48 * time.Hour, -time.Hour - 500*time.Millisecond} {
		set(0)
		before, timer, expires := time.Now(), time.NewTimer(20*time.Millisecond), time.Now().Add(time.Minute)
		set(by)
		after := time.Now()
		gone := after.Sub(before) // on a machine that does other things too
		if gone < 0 || gone > busy {
			fail("the monotonic time has gone on by", gone)
		}
		if d := after.Round(0).Sub(before.Round(0)) - by - gone; d.Abs() > time.Second/2 {
			fail("the time of day is off by", d)
		}
		if d := time.Until(expires); d < time.Minute-busy || d > time.Minute {
			fail("what was a minute away is in", d)
		}
		if d := time.Since(before.Round(0)) - by; d < 0 || d > busy {
			fail("a time without a monotonic reading is off by", d)
		}
		if got := <-timer.C; got.Sub(before) < 19*time.Millisecond || got.Sub(before) > busy {
			fail("the timer has run for", got.Sub(before))
		}
	}
}

func set(by time.Duration) {
	f, err := os.OpenFile(os.Args[1], os.O_WRONLY, 0)
	if err != nil {
		fail(err)
	}
	defer f.Close()
	if _, err := f.Write(binary.LittleEndian.AppendUint64(nil, uint64(by))); err != nil {
		fail(err)
	}
}

func fail(why ...any) {
	fmt.Println(why...)
	os.Exit(1)
}
`
