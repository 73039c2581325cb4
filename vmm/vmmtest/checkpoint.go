package vmmtest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/checkpoint"
)

// CheckpointFixture is a driver whose machines are vmm.Checkpointer, with a template of Command testguest.
type CheckpointFixture struct {
	Fixture
	// Busy looks at a machine after its disk was copied while it wrote to it; nil: nothing is looked at.
	Busy func(t testing.TB, m vmm.Machine)
}

// RunCheckpoints runs the suite of vmm.Checkpointer.
func RunCheckpoints(t *testing.T, f CheckpointFixture) {
	s := points{f, TestGuest{}}
	must(t, s.Machine(t).Close()) // what a driver keeps from the first machine on is no leak
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"a line", s.line},
		{"a machine that was booted", s.booted},
		{"a paused machine", s.paused},
		{"a disk that is written to", s.busyDisk},
		{"an open connection", s.connected},
		{"two at once", s.twoAtOnce},
		{"what cannot be", s.refused},
		{"a machine that is over", s.over},
		{"given up half-way", s.cancelled},
	} {
		t.Run(c.name, func(t *testing.T) {
			NoLeaks(t, f.Dirs...)
			c.test(t)
		})
	}
}

type points struct {
	CheckpointFixture
	guest TestGuest
}

func (s points) ask(t testing.TB, m vmm.Machine, line string) string {
	t.Helper()
	answer, err := s.guest.Ask(deadline(t), m, line)
	if err != nil {
		t.Fatalf("ask %q: %v; console:\n%s", line, err, m.Console())
	}
	return answer
}

// do asks and wants "ok".
func (s points) do(t testing.TB, m vmm.Machine, line string) {
	t.Helper()
	if answer := s.ask(t, m, line); answer != "ok" {
		t.Fatalf("%q is answered with %q", line, answer)
	}
}

// point takes a checkpoint of m against base, as a template.
func (s points) point(t testing.TB, m vmm.Machine, base vmm.Template) (vmm.Checkpoint, vmm.Template) {
	t.Helper()
	dir := t.TempDir()
	c, err := m.(vmm.Checkpointer).Checkpoint(deadline(t), dir, base)
	must(t, err)
	t.Logf("paused for %v, %d KiB of memory, %d KiB of disk", c.Paused, c.MemoryBytes>>10, c.ScratchBytes>>10)
	return c, s.template(t, c, dir, base)
}

// template makes one of a checkpoint in dir.
func (s points) template(t testing.TB, c vmm.Checkpoint, dir string, base vmm.Template) vmm.Template {
	t.Helper()
	flat, layer := t.TempDir(), checkpoint.Layer{Dir: dir}
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		info, err := e.Info()
		must(t, err)
		if info.Mode().Perm()&0o222 != 0 {
			t.Errorf("%s can be written: %v", e.Name(), info.Mode())
		}
		if !strings.HasSuffix(e.Name(), checkpoint.IndexSuffix) {
			layer.Files = append(layer.Files, e.Name())
		}
	}
	must(t, checkpoint.Flatten(flat, func(name string) string {
		if name == checkpoint.ScratchFile {
			return base.Boot.Scratch
		}
		return filepath.Join(base.Dir, name)
	}, []checkpoint.Layer{layer}))
	if r, ok := s.Driver.(vmm.Releaser); ok {
		t.Cleanup(func() { must(t, r.Release(flat)) })
	}
	b := c.Boot
	b.Scratch = filepath.Join(flat, checkpoint.ScratchFile)
	return vmm.Template{Dir: flat, Driver: c.Driver, Boot: b}
}

// clone restores a machine of a template.
func (s points) clone(t testing.TB, tmpl vmm.Template) vmm.Machine {
	t.Helper()
	f := s.Fixture
	f.Template = tmpl
	return f.Machine(t)
}

// Checkpoints of a machine, each the difference to the one before, and of a clone of one.
func (s points) line(t *testing.T) {
	m := s.Machine(t)
	s.do(t, m, "set first")
	s.do(t, m, "disk-put one")
	s.do(t, m, "dirty 20")
	_, one := s.point(t, m, s.Template)
	s.do(t, m, "set second")
	s.do(t, m, "disk-put two")
	c, two := s.point(t, m, one)
	if c.MemoryBytes > 16<<20 {
		t.Errorf("the second checkpoint holds %d MiB: what the first holds already", c.MemoryBytes>>20)
	}
	if got := s.ask(t, m, "get"); got != "second" {
		t.Errorf("the machine runs on with %q", got)
	}
	must(t, m.Close())
	s.holds(t, one, "first", "one")
	s.holds(t, one, "first", "one")
	s.holds(t, two, "second", "two")

	child := s.clone(t, two)
	s.do(t, child, "set third")
	s.do(t, child, "disk-put three")
	_, three := s.point(t, child, two)
	s.holds(t, three, "third", "three")
	must(t, child.Close())
	s.holds(t, two, "second", "two")
}

// holds wants a template's clone to hold these.
func (s points) holds(t testing.TB, tmpl vmm.Template, value, disk string) {
	t.Helper()
	m := s.clone(t, tmpl)
	if got := s.ask(t, m, "get"); got != value {
		t.Errorf("the clone's memory holds %q, want %q", got, value)
	}
	if got := s.ask(t, m, "disk-get"); got != disk {
		t.Errorf("the clone's disk holds %q, want %q", got, disk)
	}
	must(t, m.Close())
}

// A machine that was booted has nothing that it could be the difference to.
func (s points) booted(t *testing.T) {
	m, err := s.Driver.Boot(deadline(t), s.Boot, vmm.Attach{})
	must(t, err)
	defer m.Close()
	s.do(t, m, "set booted")
	c, tmpl := s.point(t, m, vmm.Template{})
	if !c.Full {
		t.Error("it is not whole")
	}
	clone := s.clone(t, tmpl)
	if got := s.ask(t, clone, "get"); got != "booted" {
		t.Errorf("the clone's memory holds %q", got)
	}
	must(t, clone.Close())
	if got := s.ask(t, m, "get"); got != "booted" {
		t.Errorf("the machine runs on with %q", got)
	}
}

func (s points) paused(t *testing.T) {
	m := s.Machine(t)
	must(t, m.Pause(deadline(t)))
	_, tmpl := s.point(t, m, s.Template) // nobody has spoken to it yet
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := s.guest.Ask(ctx, m, "get"); err == nil {
		t.Error("it runs")
	}
	must(t, m.Resume(deadline(t)))
	s.ask(t, m, "get")
	must(t, m.Close())
	clone := s.clone(t, tmpl)
	s.ask(t, clone, "get")
	must(t, clone.Close())
}

// What a guest writes while its disk is copied is not in the copy, and all that it wrote before is.
func (s points) busyDisk(t *testing.T) {
	m := s.Machine(t)
	s.do(t, m, "disk-fill")
	s.do(t, m, "disk-put before")
	stop := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := s.guest.Do(deadline(t), m, "disk-put after"); err != nil {
				t.Error(err)
				return
			}
		}
	})
	_, tmpl := s.point(t, m, s.Template)
	close(stop)
	writing.Wait()
	if s.Busy != nil {
		s.Busy(t, m)
	}
	got := map[string]bool{}
	for range 2 {
		clone := s.clone(t, tmpl)
		got[s.ask(t, clone, "sum /dev/vdb")] = true
		must(t, clone.Close())
	}
	if len(got) != 1 {
		t.Errorf("two clones have the disks %v", got)
	}
	must(t, m.Close())
}

// The connection to the agent lives on in the machine, and is none of its clone's.
func (s points) connected(t *testing.T) {
	m := s.Machine(t)
	conn, err := s.guest.Dial(deadline(t), m)
	must(t, err)
	defer conn.Close()
	_, err = conn.Ask("set connected")
	must(t, err)
	_, tmpl := s.point(t, m, s.Template)
	if got, err := conn.Ask("get"); err != nil || got != "connected" {
		t.Errorf("the connection gives %q, %v", got, err)
	}
	for range 3 {
		clone := s.clone(t, tmpl)
		start := time.Now()
		if got := s.ask(t, clone, "get"); got != "connected" {
			t.Errorf("the clone's memory holds %q", got)
		}
		t.Logf("the clone answers after %v", time.Since(start))
		own, err := s.guest.Dial(deadline(t), clone)
		must(t, err)
		_, again := s.point(t, clone, tmpl)
		must(t, own.Close())
		must(t, clone.Close())
		tmpl = again
	}
	if got, err := conn.Ask("get"); err != nil || got != "connected" {
		t.Errorf("after its clones' ends the connection gives %q, %v", got, err)
	}
	must(t, m.Close())
}

// Two are taken one after the other.
func (s points) twoAtOnce(t *testing.T) {
	m := s.Machine(t)
	s.do(t, m, "set both")
	var taking sync.WaitGroup
	dirs := [2]string{t.TempDir(), t.TempDir()}
	var taken [2]vmm.Checkpoint
	var errs [2]error
	for i := range dirs {
		taking.Go(func() { taken[i], errs[i] = m.(vmm.Checkpointer).Checkpoint(deadline(t), dirs[i], s.Template) })
	}
	taking.Wait()
	s.ask(t, m, "get")
	must(t, m.Close())
	for i := range dirs {
		must(t, errs[i])
		clone := s.clone(t, s.template(t, taken[i], dirs[i], s.Template))
		if got := s.ask(t, clone, "get"); got != "both" {
			t.Errorf("the clone's memory holds %q", got)
		}
		must(t, clone.Close())
	}
}

func (s points) refused(t *testing.T) {
	m := s.Machine(t)
	point := func(dir string, base vmm.Template) error {
		_, err := m.(vmm.Checkpointer).Checkpoint(deadline(t), dir, base)
		return err
	}
	small := vmm.Template{Dir: t.TempDir(), Boot: s.Template.Boot}
	must(t, os.WriteFile(filepath.Join(small.Dir, checkpoint.MemoryFile), []byte("small"), 0o444))
	for name, err := range map[string]error{
		"no base":              point(t.TempDir(), vmm.Template{}),
		"a base of no memory":  point(t.TempDir(), vmm.Template{Dir: t.TempDir(), Boot: s.Template.Boot}),
		"a base of other size": point(t.TempDir(), small),
		"no directory":         point(filepath.Join(t.TempDir(), "gone"), s.Template),
	} {
		if err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
	s.ask(t, m, "get") // it runs on, and can still be kept
	s.point(t, m, s.Template)
	must(t, m.Close())
}

func (s points) over(t *testing.T) {
	m := s.Machine(t)
	must(t, m.Close())
	if _, err := m.(vmm.Checkpointer).Checkpoint(deadline(t), t.TempDir(), s.Template); err == nil {
		t.Error("a machine that is over was kept")
	}
	m = s.Machine(t)
	s.do(t, m, "dirty 20")
	closed := make(chan error, 1)
	go func() { closed <- m.Close() }()
	_, err := m.(vmm.Checkpointer).Checkpoint(deadline(t), t.TempDir(), s.Template)
	t.Log("closed meanwhile:", err) // either may be first
	must(t, <-closed)
	if exit := m.Exit(); exit != (vmm.Exit{}) {
		t.Errorf("exit of a machine that was closed: %+v", exit)
	}
}

func (s points) cancelled(t *testing.T) {
	m := s.Machine(t)
	s.do(t, m, "disk-fill")
	for wait := 5 * time.Millisecond; wait < 2*time.Second; wait *= 3 {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		_, err := m.(vmm.Checkpointer).Checkpoint(ctx, t.TempDir(), s.Template)
		cancel()
		t.Logf("after %v: %v", wait, err)
		s.ask(t, m, "get") // it runs on
	}
	s.point(t, m, s.Template)
	must(t, m.Close())
}
