package qemu_test

import (
	"path/filepath"
	"testing"

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
}
