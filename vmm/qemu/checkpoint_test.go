package qemu_test

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/checkpoint"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// point takes a checkpoint of m against base, as a template of the lab.
func (l *lab) point(t testing.TB, m vmm.Machine, base vmm.Template) (vmm.Checkpoint, vmm.Template) {
	t.Helper()
	dir, flat := t.TempDir(), t.TempDir()
	c, err := m.(vmm.Checkpointer).Checkpoint(within(t), dir, base)
	must(t, err)
	t.Logf("paused for %v, %d KiB of memory, %d KiB of disk", c.Paused, c.MemoryBytes>>10, c.ScratchBytes>>10)
	layer := checkpoint.Layer{Dir: dir, Files: []string{checkpoint.StateFile, checkpoint.MemoryFile, checkpoint.ScratchFile, "qemu.json"}}
	must(t, checkpoint.Flatten(flat, func(name string) string {
		if name == checkpoint.ScratchFile {
			return base.Boot.Scratch
		}
		return filepath.Join(base.Dir, name)
	}, []checkpoint.Layer{layer}))
	t.Cleanup(func() { must(t, l.driver.Release(flat)) })
	b := c.Boot
	b.Scratch = filepath.Join(flat, checkpoint.ScratchFile)
	return c, vmm.Template{Dir: flat, Driver: c.Driver, Boot: b}
}

// clone restores a machine of a template.
func (l *lab) clone(t testing.TB, tmpl vmm.Template) vmm.Machine {
	t.Helper()
	f := l.Fixture
	f.Template = tmpl
	return f.Machine(t)
}

func TestCheckpoint(t *testing.T) {
	l := newLab(t, vmm.Direct{})
	must(t, l.Machine(t).Close())
	vmmtest.NoLeaks(t, l.runDir)
	m := l.Machine(t)
	must(t, l.Do(within(t), m, "set first"))
	must(t, l.Do(within(t), m, "disk-put one"))
	must(t, l.Do(within(t), m, "dirty 20"))
	_, one := l.point(t, m, l.Template)
	must(t, l.Do(within(t), m, "set second"))
	must(t, l.Do(within(t), m, "disk-put two"))
	c, two := l.point(t, m, one)
	if c.MemoryBytes > 16<<20 {
		t.Errorf("the second checkpoint holds %d MiB: what the first holds already", c.MemoryBytes>>20)
	}
	if got := l.ask(t, m, "get"); got != "second" {
		t.Errorf("the machine runs on with %q", got)
	}
	for _, want := range []struct {
		tmpl        vmm.Template
		value, disk string
	}{{one, "first", "one"}, {two, "second", "two"}} {
		for range 2 {
			c := l.clone(t, want.tmpl)
			if got := l.ask(t, c, "get"); got != want.value {
				t.Errorf("the clone's memory holds %q, want %q", got, want.value)
			}
			if got := l.ask(t, c, "disk-get"); got != want.disk {
				t.Errorf("the clone's disk holds %q, want %q", got, want.disk)
			}
			must(t, c.Close())
		}
	}
	must(t, m.Close())

	for name, test := range map[string]func(*testing.T, *lab){
		"a machine that was booted": testCheckpointBooted,
		"a paused machine":          testCheckpointPaused,
		"a disk that is written to": testCheckpointBusyDisk,
		"what cannot be":            testCheckpointRefused,
		"a machine that is over":    testCheckpointOver,
		"given up half-way":         testCheckpointCancelled,
	} {
		t.Run(name, func(t *testing.T) {
			vmmtest.NoLeaks(t, l.runDir)
			test(t, l)
		})
	}
}

// A machine that was booted has nothing that it could be the difference to.
func testCheckpointBooted(t *testing.T, l *lab) {
	m, err := l.driver.Boot(within(t), l.Boot, vmm.Attach{})
	must(t, err)
	defer m.Close()
	must(t, l.Do(within(t), m, "set booted"))
	c, tmpl := l.point(t, m, vmm.Template{})
	if !c.Full {
		t.Error("it is not whole")
	}
	clone := l.clone(t, tmpl)
	if got := l.ask(t, clone, "get"); got != "booted" {
		t.Errorf("the clone's memory holds %q", got)
	}
	must(t, clone.Close())
	if got := l.ask(t, m, "get"); got != "booted" {
		t.Errorf("the machine runs on with %q", got)
	}
	must(t, l.driver.Release(tmpl.Dir))
}

func testCheckpointPaused(t *testing.T, l *lab) {
	m := l.Machine(t)
	must(t, m.Pause(within(t)))
	l.point(t, m, l.Template)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := l.Ask(ctx, m, "get"); err == nil {
		t.Error("it runs")
	}
	must(t, m.Resume(within(t)))
	l.ask(t, m, "get")
	must(t, m.Close())
}

// What a guest writes while its disk is copied is not in the copy, and all that it wrote before is.
func testCheckpointBusyDisk(t *testing.T, l *lab) {
	m := l.Machine(t)
	must(t, l.Do(within(t), m, "disk-fill"))
	must(t, l.Do(within(t), m, "disk-put before"))
	stop := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := l.Do(within(t), m, "disk-put after"); err != nil {
				t.Error(err)
				return
			}
		}
	})
	_, tmpl := l.point(t, m, l.Template)
	close(stop)
	writing.Wait()
	got := map[string]bool{}
	for range 2 {
		clone := l.clone(t, tmpl)
		got[l.ask(t, clone, "sum /dev/vdb")] = true
		must(t, clone.Close())
	}
	if len(got) != 1 {
		t.Errorf("two clones have the disks %v", got)
	}
	must(t, l.driver.Release(tmpl.Dir))
	must(t, m.Close())
}

func testCheckpointRefused(t *testing.T, l *lab) {
	m := l.Machine(t)
	point := func(dir string, base vmm.Template) error {
		_, err := m.(vmm.Checkpointer).Checkpoint(within(t), dir, base)
		return err
	}
	small := vmm.Template{Dir: t.TempDir(), Boot: l.Template.Boot}
	must(t, os.WriteFile(filepath.Join(small.Dir, "memory"), []byte("small"), 0o444))
	for name, err := range map[string]error{
		"no base":              point(t.TempDir(), vmm.Template{}),
		"a base of no memory":  point(t.TempDir(), vmm.Template{Dir: t.TempDir(), Boot: l.Template.Boot}),
		"a base of other size": point(t.TempDir(), small),
		"no directory":         point(filepath.Join(t.TempDir(), "gone"), l.Template),
	} {
		if err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
	l.ask(t, m, "get") // it runs on, and can still be kept
	l.point(t, m, l.Template)
	must(t, m.Close())
}

func testCheckpointOver(t *testing.T, l *lab) {
	m := l.Machine(t)
	must(t, m.Close())
	if _, err := m.(vmm.Checkpointer).Checkpoint(within(t), t.TempDir(), l.Template); err == nil {
		t.Error("a machine that is over was kept")
	}
	m = l.Machine(t)
	must(t, l.Do(within(t), m, "dirty 20"))
	closed := make(chan error, 1)
	go func() { closed <- m.Close() }()
	_, err := m.(vmm.Checkpointer).Checkpoint(within(t), t.TempDir(), l.Template)
	t.Log("closed meanwhile:", err) // either may be first
	must(t, <-closed)
}

func testCheckpointCancelled(t *testing.T, l *lab) {
	m := l.Machine(t)
	must(t, l.Do(within(t), m, "disk-fill"))
	for wait := time.Duration(0); wait < 160*time.Millisecond; wait += 10 * time.Millisecond {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		_, err := m.(vmm.Checkpointer).Checkpoint(ctx, t.TempDir(), l.Template)
		cancel()
		t.Logf("after %v: %v", wait, err)
		l.ask(t, m, "get") // it runs on
	}
	l.point(t, m, l.Template)
	must(t, m.Close())
}
