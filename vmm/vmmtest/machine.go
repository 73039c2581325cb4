package vmmtest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/vmm"
)

// MachineFixture is a driver whose machines are processes, with a template of a Linux whose init is Command testguest.
type MachineFixture struct {
	Fixture
	// Last is the VMM that was started last.
	Last func() vmm.Process
	// Release is told of a directory that holds no template any more; nil: nobody is.
	Release func(dir string) error
	// Broken are ways to break a template in a directory besides those that the suite has itself.
	Broken map[string]func(dir string) error
}

// RunMachines runs what Run does not: how guests end their machines, what they print, their disks, and what becomes of broken templates.
func RunMachines(t *testing.T, f MachineFixture) {
	s := machines{f, TestGuest{}}
	must(t, s.Machine(t).Close()) // what a driver keeps from the first machine on is no leak
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"guest reboots", s.reboot},
		{"guest panics", s.panics},
		{"console flood", s.flood},
		{"console is kept", s.console},
		{"disks", s.disks},
		{"killed before the restore", s.killedPrepared},
		{"broken templates", s.brokenTemplates},
		{"missing files", s.missingFiles},
		{"clone has no snapshot", s.noSnapshotOfClone},
	} {
		t.Run(c.name, func(t *testing.T) {
			NoLeaks(t, f.Dirs...)
			c.test(t)
		})
	}
}

type machines struct {
	MachineFixture
	guest TestGuest
}

func (s machines) ask(t testing.TB, m vmm.Machine, line string) string {
	t.Helper()
	answer, err := s.guest.Ask(deadline(t), m, line)
	if err != nil {
		t.Fatalf("ask %q: %v; console:\n%s", line, err, m.Console())
	}
	return answer
}

// ends waits for the machine's end, and wants the guest to have made it.
func ends(t testing.TB, m vmm.Machine, reason string) {
	t.Helper()
	select {
	case <-m.Done():
	case <-deadline(t).Done():
		t.Fatalf("the machine is not over; console:\n%s", m.Console())
	}
	if diff := cmp.Diff(vmm.Exit{Guest: true, Reason: reason}, m.Exit()); diff != "" {
		t.Error(diff)
	}
}

func (s machines) reboot(t *testing.T) {
	m := s.Machine(t)
	must(t, s.guest.Reboot(deadline(t), m))
	ends(t, m, "reset")
}

func (s machines) panics(t *testing.T) {
	m := s.Machine(t)
	must(t, s.guest.Panic(deadline(t), m))
	ends(t, m, "panic")
	if !strings.Contains(m.Console(), "Kernel panic") {
		t.Errorf("the console does not tell of the panic:\n%s", m.Console())
	}
}

func (s machines) console(t *testing.T) {
	m := s.Machine(t)
	must(t, s.guest.Do(deadline(t), m, "print \x1b[31mred\x1b[0m\xff and done"))
	must(t, m.Close())
	if got := m.Console(); !strings.Contains(got, "[31mred[0m? and done\n") || strings.Contains(got, "\x1b") {
		t.Errorf("console: %q", got)
	}
}

// flood: a guest that prints without end is answered and takes no memory of ours.
func (s machines) flood(t *testing.T) {
	m := s.Machine(t)
	must(t, s.guest.Do(deadline(t), m, "flood"))
	for range 50 {
		if got, err := s.guest.Echo(deadline(t), m, []byte("still there")); err != nil || string(got) != "still there" {
			t.Fatalf("echo: %q, %v", got, err)
		}
	}
	for !strings.Contains(m.Console(), "flood flood") {
		s.ask(t, m, "get")
	}
	if n := len(m.Console()); n > 16<<10 {
		t.Errorf("the console kept %d bytes", n)
	}
}

func (s machines) disks(t *testing.T) {
	before := Hashes(t, s.Boot.Root, s.Boot.Scratch)
	a, b := s.Machine(t), s.Machine(t)
	if got, want := s.ask(t, a, "sum /dev/vda"), before[s.Boot.Root]; got != want {
		t.Errorf("root disk: %s, want %s", got, want)
	}
	if got, want := s.ask(t, b, "sum /dev/vdb"), before[s.Boot.Scratch]; got != want {
		t.Errorf("scratch disk: %s, want %s", got, want)
	}
	must(t, s.guest.Do(deadline(t), a, "disk-put of a"))
	if got := s.ask(t, a, "disk-get"); got != "of a" {
		t.Errorf("scratch of a: %q", got)
	}
	if got := s.ask(t, b, "disk-get"); got != "" {
		t.Errorf("scratch of b: %q", got)
	}
	must(t, s.guest.Do(deadline(t), a, "disk-beyond"))
	if diff := cmp.Diff(before, Hashes(t, s.Boot.Root, s.Boot.Scratch)); diff != "" {
		t.Errorf("images have changed: %s", diff)
	}
}

// Hashes gives the sha256 of files, in hexadecimal.
func Hashes(t testing.TB, paths ...string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, p := range paths {
		b, err := os.ReadFile(p)
		must(t, err)
		all[p] = fmt.Sprintf("%x", sha256.Sum256(b))
	}
	return all
}

func (s machines) killedPrepared(t *testing.T) {
	for _, restore := range []bool{true, false} {
		before := s.Last()
		p, err := s.Driver.Prepare(deadline(t), s.Template, vmm.Attach{})
		must(t, err)
		if s.Last() == before {
			t.Fatal("no new process")
		}
		must(t, syscall.Kill(s.Last().PID(), syscall.SIGKILL))
		<-s.Last().Done()
		if restore {
			if m, err := p.Restore(deadline(t)); err == nil {
				m.Close()
				t.Error("restored a dead VMM")
			}
		}
		must(t, p.Close())
	}
}

// memoryFile is the template's memory, which all drivers call so (vmm/checkpoint).
const memoryFile = "memory"

// brokenTemplates: each file of a template is cut, emptied, overwritten or away.
func (s machines) brokenTemplates(t *testing.T) {
	entries, err := os.ReadDir(s.Template.Dir)
	must(t, err)
	ways := map[string]func(dir string) error{}
	for _, e := range entries {
		name := e.Name()
		ways["no "+name] = func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
		if name == memoryFile {
			continue
		}
		for how, change := range map[string]func([]byte) []byte{
			"half of ":  func(b []byte) []byte { return b[:len(b)/2] },
			"an empty ": func([]byte) []byte { return nil },
			"noise in ": func(b []byte) []byte { return bytes.Repeat([]byte("noise"), len(b)/5) },
		} {
			ways[how+name] = Overwrite(name, change)
		}
	}
	size := int64(s.Template.Boot.MemoryMiB) << 20
	for how, n := range map[string]int64{"half of the memory": size / 2, "an empty memory": 0, "another memory": size + 1} {
		ways[how] = func(dir string) error {
			path := filepath.Join(dir, memoryFile)
			return errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o644), os.Truncate(path, n))
		}
	}
	maps.Copy(ways, s.Broken)
	for _, name := range slices.Sorted(maps.Keys(ways)) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, e := range entries {
				must(t, os.Link(filepath.Join(s.Template.Dir, e.Name()), filepath.Join(dir, e.Name())))
			}
			must(t, ways[name](dir))
			s.comesToNothing(t, dir)
		})
	}
}

// Overwrite changes a file of a directory, which may be linked elsewhere.
func Overwrite(name string, change func([]byte) []byte) func(dir string) error {
	return func(dir string) error {
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return errors.Join(os.Remove(path), os.WriteFile(path, change(b), 0o444))
	}
}

// comesToNothing wants no machine to come out of a template.
func (s machines) comesToNothing(t *testing.T, dir string) {
	t.Helper()
	template := s.Template
	template.Dir = dir
	if s.Release != nil {
		defer func() { must(t, s.Release(dir)) }()
	}
	p, err := s.Driver.Prepare(deadline(t), template, vmm.Attach{})
	if err == nil {
		var m vmm.Machine
		if m, err = p.Restore(deadline(t)); err == nil {
			m.Close()
			t.Fatal("a machine came out of it")
		}
	}
	t.Log(err)
}

func (s machines) missingFiles(t *testing.T) {
	for name, change := range map[string]func(*vmm.Boot){
		"kernel":  func(b *vmm.Boot) { b.Kernel += ".none" },
		"initrd":  func(b *vmm.Boot) { b.Initrd += ".none" },
		"root":    func(b *vmm.Boot) { b.Root += ".none" },
		"scratch": func(b *vmm.Boot) { b.Scratch += ".none" },
	} {
		boot := s.Boot
		change(&boot)
		if m, err := s.Driver.Boot(deadline(t), boot, vmm.Attach{}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("boot without a %s: %v", name, err)
			if err == nil {
				m.Close()
			}
		}
		if name == "kernel" || name == "initrd" {
			continue
		}
		template := s.Template
		template.Boot = boot
		if p, err := s.Driver.Prepare(deadline(t), template, vmm.Attach{}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("prepare without a %s: %v", name, err)
			if err == nil {
				p.Close()
			}
		}
	}
}

func (s machines) noSnapshotOfClone(t *testing.T) {
	m := s.Machine(t)
	if _, err := m.Snapshot(deadline(t), t.TempDir()); !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("err = %v", err)
	}
	if got := s.ask(t, m, "get"); got != "" {
		t.Errorf("value: %q", got)
	}
}
