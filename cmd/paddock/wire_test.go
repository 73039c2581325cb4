package main

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker/jail"
)

// needRoot skips where no jail can give machines uids.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ROOT") != "" {
		t.Fatal("needs root")
	}
	t.Skip("SKIPPED: needs root: machines have no uids of their own here")
}

// The range that is configured is the one that machines get their uids of, and there are no more.
func TestJailUIDs(t *testing.T) {
	needRoot(t)
	l, closeLauncher, err := openLauncher(config{Jail: "on", JailUIDs: "1234567890-1234567891"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := closeLauncher(); err != nil {
			t.Error(err)
		}
	}()
	got := map[int]bool{}
	for range 2 {
		p, err := l.Launch(t.Context(), vmm.Command{Name: "m-0", Path: "/bin/sleep", Args: []string{"1000"}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := p.Kill(); err != nil {
				t.Error(err)
			}
		}()
		got[p.UID()] = true
	}
	if !got[1234567890] || !got[1234567891] {
		t.Errorf("uids %v", got)
	}
	if p, err := l.Launch(t.Context(), vmm.Command{Name: "m-0", Path: "/bin/true"}); err == nil {
		t.Errorf("a third runs as %d: %v", p.UID(), p.Kill())
	}
}

// jail_require: full is refused where this host lacks a wall, by its name, with why and what to do; where it lacks none, there is a jail.
// With degraded there is one in both cases, as far as it goes.
func TestJailRequire(t *testing.T) {
	l, closeLauncher, err := openLauncher(config{Jail: "on", JailRequire: "degraded"})
	if err != nil {
		t.Fatal(err)
	}
	lacks := l.(*jail.Launcher).Lacks()
	if err := closeLauncher(); err != nil {
		t.Error(err)
	}
	t.Logf("this host lacks %v", lacks)
	_, closeLauncher, err = openLauncher(config{Jail: "on", JailRequire: "full"})
	if len(lacks) == 0 {
		if err != nil {
			t.Fatalf("it lacks nothing, and there is no jail: %v", err)
		}
		if err := closeLauncher(); err != nil {
			t.Error(err)
		}
		return
	}
	if err == nil {
		t.Fatalf("there is a full jail without %v: %v", lacks, closeLauncher())
	}
	for _, lack := range lacks {
		for _, want := range []string{lack.Name, lack.Why, jailAdvice(lack.Name)} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("no word of %q in %q", want, err)
			}
		}
	}

	// The command ends with it.
	addr, freeErr := freeAddr()
	if freeErr != nil {
		t.Fatal(freeErr)
	}
	clean(t)
	up := exec.CommandContext(t.Context(), "/proc/self/exe", "up", "--state-dir", t.TempDir(), "--listen", addr, "--metrics-listen=", "--images=", "--agent", "/bin/true", "--driver", "qemu", "--jail-require", "full")
	out, upErr := up.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](upErr); !ok || exit.ExitCode() != 125 || !strings.Contains(string(out), "paddock: "+err.Error()) {
		t.Errorf("%v, want exit code 125 and %q:\n%s", upErr, err, out)
	}
}
