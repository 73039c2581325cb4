package jail_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker/jail"
)

// BenchmarkLaunch starts a QEMU that waits for a machine, in a jail and, in turn, as a plain child: what Prepare does. Up is until it has
// greeted, gone from then until nothing is left of it. Figures are medians; jail-adds-ms, that of the differences in pairs, is to be 10 at
// most. A claim has no part in it: the machine that it takes was launched before. The stub is this program, or the one that PADDOCK_BIN names,
// which takes longer to start. The raw samples go to PADDOCK_TEST_OUT, where that is set.
func BenchmarkLaunch(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("SKIPPED: needs root: a jail is not measured here")
	}
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		b.Skipf("SKIPPED: %v", err)
	}
	self := []string{"/proc/self/exe", "stub"}
	if paddock := os.Getenv("PADDOCK_BIN"); paddock != "" {
		self = []string{paddock, "jail-exec"}
	}
	l, err := jail.New(jail.Config{Self: self, UIDLock: filepath.Join(b.TempDir(), "uids")})
	fatal(b, err)
	defer l.Close()
	samples := map[string][]float64{}
	note := func(name string, took time.Duration) {
		samples[name] = append(samples[name], float64(took.Microseconds())/1000)
	}
	for b.Loop() {
		before := childrenTime(b)
		plainUp, plainGone := launchOne(b, vmm.Direct{}, path)
		between := childrenTime(b)
		jailUp, jailGone := launchOne(b, l, path)
		note("plain-cpu-ms", between-before)
		note("jail-cpu-ms", childrenTime(b)-between)
		note("plain-up-ms", plainUp)
		note("jail-up-ms", jailUp)
		note("jail-adds-ms", jailUp-plainUp)
		note("plain-gone-ms", plainGone)
		note("jail-gone-ms", jailGone)
	}
	b.ReportMetric(0, "ns/op")
	for name, all := range samples {
		b.ReportMetric(slices.Sorted(slices.Values(all))[len(all)/2], name)
	}
	if dir := os.Getenv("PADDOCK_TEST_OUT"); dir != "" {
		text, err := json.Marshal(samples)
		fatal(b, err)
		fatal(b, os.WriteFile(filepath.Join(dir, "jail-launch.json"), text, 0o644))
	}
}

// childrenTime is the processor time of all children that are reaped: what others do on this host does not change it much.
func childrenTime(b *testing.B) time.Duration {
	b.Helper()
	var used unix.Rusage
	fatal(b, unix.Getrusage(unix.RUSAGE_CHILDREN, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func launchOne(b *testing.B, l vmm.Launcher, path string) (up, gone time.Duration) {
	b.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	fatal(b, err)
	ours, theirs := os.NewFile(uintptr(ends[0]), "qmp"), os.NewFile(uintptr(ends[1]), "qmp")
	defer ours.Close()
	start := time.Now()
	p, err := l.Launch(b.Context(), vmm.Command{
		Name: "m-0123456789abcdef", Path: path, Files: []*os.File{theirs}, Share: vmm.Share{CPUs: 1.5, MemoryBytes: 384 << 20, PIDs: 97}, Args: []string{
			"-nodefaults", "-no-user-config", "-display", "none", "-S", "-incoming", "defer", "-machine", "q35", "-accel", "tcg,tb-size=64", "-m", "256",
			"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
			"-chardev", "socket,id=qmp,fd=3,server=off", "-mon", "chardev=qmp,mode=control",
		},
	})
	fatal(b, errors.Join(err, theirs.Close()))
	_, err = ours.Read(make([]byte, 1)) // of its greeting
	up = time.Since(start)
	start = time.Now()
	fatal(b, errors.Join(err, p.Kill()))
	return up, time.Since(start)
}

func fatal(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
