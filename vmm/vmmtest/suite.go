package vmmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/vmm"
)

// Fixture is a driver and what the suite needs to try it.
type Fixture struct {
	Driver vmm.Driver
	// Boot is what to boot. A driver without Boot leaves it zero and gives a Template.
	Boot     vmm.Boot
	Template vmm.Template
	// Guest talks to what is in the machines.
	Guest Guest
	// Kill ends the VMM of a machine as kill -9 would; nil where there is no process.
	Kill func(m vmm.Machine) error
	// NoPause says that Pause and Resume are ErrUnsupported.
	NoPause bool
	// Announces says that the VMM tells a clone's network of it as of a machine that was moved (RARP, RFC 903), and cannot be told not to.
	Announces bool
	// Dirs are where the driver may put files; the suite wants them to be afterwards as they were before.
	Dirs []string
}

// limit is for anything that a guest does. Emulated and nested machines are slow.
const limit = 2 * time.Minute

// Run runs the suite.
func Run(t *testing.T, f Fixture) {
	s := suite{f}
	t.Run("probe", s.probe)
	if f.Boot.Kernel != "" {
		s.Template = Build(t, f.Driver, f.Boot, f.Guest)
	} else {
		t.Run("boot is unsupported", s.bootUnsupported)
	}
	s.Machine(t) // what a driver keeps from the first machine on is no leak
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"echo", s.echo},
		{"dial again", s.dialAgain},
		{"pause and resume", s.pauseAndResume},
		{"close", s.close},
		{"close an unused one", s.closePrepared},
		{"restore once", s.restoreOnce},
		{"guest powers off", s.powerOff},
		{"killed", s.killed},
		{"clones are independent", s.independence},
		{"many at once", s.many},
		{"no such template", s.noTemplate},
		{"cancelled before", s.cancelledBefore},
		{"prepare cancelled", s.prepareCancelled},
		{"restore cancelled", s.restoreCancelled},
		{"boot cancelled", s.bootCancelled},
		{"network card", s.networkCard},
	} {
		t.Run(c.name, func(t *testing.T) {
			NoLeaks(t, f.Dirs...)
			c.test(t)
		})
	}
}

type suite struct{ Fixture }

// Build boots a machine, waits for its guest, and makes a template of it that lives as long as the test.
func Build(t testing.TB, d vmm.Driver, b vmm.Boot, g Guest) vmm.Template {
	t.Helper()
	return buildWith(t, d, b, vmm.Attach{}, g)
}

func buildWith(t testing.TB, d vmm.Driver, b vmm.Boot, a vmm.Attach, g Guest) vmm.Template {
	t.Helper()
	ctx, dir := deadline(t), t.TempDir()
	m, err := d.Boot(ctx, b, a)
	must(t, err)
	defer m.Close()
	got, err := g.Echo(ctx, m, []byte("booted"))
	if err != nil || string(got) != "booted" {
		t.Fatalf("echo: %q, %v; console:\n%s", got, err, m.Console())
	}
	template, err := m.Snapshot(ctx, dir)
	must(t, err)
	select {
	case <-m.Done():
	default:
		t.Error("the machine lives after its snapshot")
	}
	if exit := m.Exit(); exit != (vmm.Exit{}) {
		t.Errorf("exit after a snapshot: %+v", exit)
	}
	if template.Dir != dir || template.Driver != d.Name() || template.Boot != b {
		t.Errorf("template: %+v", template)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	must(t, err)
	if len(files) == 0 {
		t.Error("the template has no files")
	}
	for _, f := range files {
		info, err := os.Stat(f)
		must(t, err)
		if info.Mode().Perm()&0o222 != 0 {
			t.Errorf("%s can be written: %v", f, info.Mode())
		}
	}
	return template
}

// Machine prepares and restores one, and closes it with the test.
func (f Fixture) Machine(t testing.TB) vmm.Machine {
	t.Helper()
	ctx := deadline(t)
	p, err := f.Driver.Prepare(ctx, f.Template, vmm.Attach{})
	must(t, err)
	m, err := p.Restore(ctx)
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of %s:\n%s", m.ID(), m.Console())
		}
		must(t, m.Close())
	})
	return m
}

func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

func (s suite) probe(t *testing.T) {
	caps, err := s.Driver.Probe(deadline(t))
	must(t, err)
	if caps.Version == "" || caps.Accel == "" {
		t.Errorf("caps say too little: %+v", caps)
	}
	again, err := s.Driver.Probe(deadline(t))
	must(t, err)
	if caps.Key() != again.Key() {
		t.Errorf("two probes differ: %q and %q", caps.Key(), again.Key())
	}
}

func (s suite) bootUnsupported(t *testing.T) {
	if _, err := s.Driver.Boot(t.Context(), vmm.Boot{}, vmm.Attach{}); !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("err = %v", err)
	}
}

func (s suite) echo(t *testing.T) {
	m := s.Machine(t)
	if !regexp.MustCompile(`^m-[0-9a-f]{16}$`).MatchString(m.ID()) {
		t.Errorf("id %q", m.ID())
	}
	random := rand.NewChaCha8([32]byte{1})
	for _, size := range []int{1, 4095, 64 << 10, 3<<20 + 17} {
		sent := make([]byte, size)
		_, _ = random.Read(sent)
		got, err := s.Guest.Echo(deadline(t), m, sent)
		must(t, err)
		if !bytes.Equal(got, sent) {
			t.Errorf("%d bytes came back otherwise", size)
		}
	}
}

func (s suite) dialAgain(t *testing.T) {
	m := s.Machine(t)
	ctx := deadline(t)
	for i := range 20 {
		old, err := m.DialGuest(ctx)
		must(t, err)
		if i%2 == 0 { // leave something half said behind
			_, err := old.Write([]byte("xyz"))
			must(t, err)
		}
		sent := fmt.Appendf(nil, "again %d", i)
		got, err := s.Guest.Echo(ctx, m, sent)
		must(t, err)
		if !bytes.Equal(got, sent) {
			t.Errorf("echo %d: %q", i, got)
		}
		_ = old.SetReadDeadline(time.Now().Add(limit)) // fails where the driver has closed it already
		if _, err := old.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("the connection before the second one: %v, want its end", err)
		}
	}
}

func (s suite) pauseAndResume(t *testing.T) {
	m := s.Machine(t)
	ctx := deadline(t)
	if s.NoPause {
		if err := m.Pause(ctx); !errors.Is(err, vmm.ErrUnsupported) {
			t.Errorf("pause: %v", err)
		}
		return
	}
	must(t, s.Guest.Set(ctx, m, "before"))
	must(t, m.Pause(ctx))
	must(t, m.Pause(ctx)) // a second time is no fault
	short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if got, err := s.Guest.Get(short, m); err == nil {
		t.Errorf("a paused machine answers %q", got)
	}
	must(t, m.Resume(ctx))
	must(t, m.Resume(ctx))
	got, err := s.Guest.Get(ctx, m)
	must(t, err)
	if got != "before" {
		t.Errorf("value after the pause: %q", got)
	}
}

func (s suite) close(t *testing.T) {
	ctx := deadline(t)
	m := s.Machine(t)
	conn, err := m.DialGuest(ctx)
	must(t, err)
	select {
	case <-m.Done():
		t.Fatalf("done before it is closed: %+v", m.Exit())
	default:
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			select {
			case <-m.Done():
			default:
				t.Error("Close returned before the machine was over")
			}
		})
	}
	all.Wait()
	if exit := m.Exit(); exit != (vmm.Exit{}) {
		t.Errorf("exit of a machine that was closed: %+v", exit)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the guest's connection lives after Close")
	}
	if conn, err := m.DialGuest(ctx); err == nil {
		conn.Close()
		t.Error("DialGuest after Close")
	}
	if err := m.Pause(ctx); err == nil {
		t.Error("Pause after Close")
	}
	if err := m.Resume(ctx); err == nil {
		t.Error("Resume after Close")
	}
	_ = m.Console()
	must(t, m.Close())
}

func (s suite) closePrepared(t *testing.T) {
	p, err := s.Driver.Prepare(deadline(t), s.Template, vmm.Attach{})
	must(t, err)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if m, err := p.Restore(deadline(t)); err == nil {
		m.Close()
		t.Error("Restore after Close")
	}
}

func (s suite) restoreOnce(t *testing.T) {
	ctx := deadline(t)
	p, err := s.Driver.Prepare(ctx, s.Template, vmm.Attach{})
	must(t, err)
	m, err := p.Restore(ctx)
	must(t, err)
	defer m.Close()
	if other, err := p.Restore(ctx); err == nil {
		other.Close()
		t.Error("a second Restore")
	}
	must(t, p.Close()) // the machine has the VMM: it lives on
	got, err := s.Guest.Echo(ctx, m, []byte("alive"))
	if err != nil || string(got) != "alive" {
		t.Errorf("echo: %q, %v", got, err)
	}
}

func (s suite) powerOff(t *testing.T) {
	m := s.Machine(t)
	err := s.Guest.PowerOff(deadline(t), m)
	if errors.Is(err, vmm.ErrUnsupported) {
		t.Skip("this guest cannot end its machine")
	}
	must(t, err)
	wait(t, m)
	if exit := m.Exit(); !exit.Guest || exit.Reason != "shutdown" || exit.Err != nil {
		t.Errorf("exit: %+v", exit)
	}
	must(t, m.Close())
	if exit := m.Exit(); !exit.Guest {
		t.Errorf("exit after Close: %+v", exit)
	}
}

func (s suite) killed(t *testing.T) {
	if s.Kill == nil {
		t.Skip("there is no process to kill")
	}
	m := s.Machine(t)
	must(t, s.Kill(m))
	wait(t, m)
	if exit := m.Exit(); exit.Guest || exit.Err == nil {
		t.Errorf("exit: %+v", exit)
	}
}

func wait(t *testing.T, m vmm.Machine) {
	t.Helper()
	select {
	case <-m.Done():
	case <-deadline(t).Done():
		t.Fatal("the machine is not over")
	}
}

func (s suite) independence(t *testing.T) {
	ctx := deadline(t)
	a, b := s.Machine(t), s.Machine(t)
	if a.ID() == b.ID() {
		t.Errorf("both are %s", a.ID())
	}
	must(t, s.Guest.Set(ctx, a, "of a"))
	must(t, s.Guest.Set(ctx, b, "of b"))
	c := s.Machine(t)
	for _, want := range []struct {
		m     vmm.Machine
		value string
	}{{a, "of a"}, {b, "of b"}, {c, ""}} {
		got, err := s.Guest.Get(ctx, want.m)
		must(t, err)
		if got != want.value {
			t.Errorf("%s has %q, want %q", want.m.ID(), got, want.value)
		}
	}
	must(t, a.Close())
	if got, err := s.Guest.Get(ctx, b); err != nil || got != "of b" {
		t.Errorf("after the other's end: %q, %v", got, err)
	}
}

func (s suite) many(t *testing.T) {
	ctx := deadline(t)
	var all sync.WaitGroup
	for i := range 6 {
		all.Go(func() {
			if err := s.one(ctx, fmt.Sprintf("machine %d", i)); err != nil {
				t.Errorf("machine %d: %v", i, err)
			}
		})
	}
	all.Wait()
}

// one is a machine's whole life.
func (s suite) one(ctx context.Context, value string) error {
	p, err := s.Driver.Prepare(ctx, s.Template, vmm.Attach{})
	if err != nil {
		return err
	}
	m, err := p.Restore(ctx)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := s.Guest.Set(ctx, m, value); err != nil {
		return err
	}
	got, err := s.Guest.Get(ctx, m)
	if err != nil {
		return err
	}
	if got != value {
		return fmt.Errorf("it has %q, want %q", got, value)
	}
	return m.Close()
}

func (s suite) noTemplate(t *testing.T) {
	if s.Template.Dir == "" {
		t.Skip("the driver has no templates")
	}
	template := s.Template
	template.Dir = filepath.Join(t.TempDir(), "none")
	if p, err := s.Driver.Prepare(deadline(t), template, vmm.Attach{}); err == nil {
		p.Close()
		t.Error("Prepare of a template that does not exist")
	}
}
