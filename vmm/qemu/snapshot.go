package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/hostfile"
)

// Snapshot stops a booted machine, saves its devices' state, ends it, and writes its memory.
func (m *machine) Snapshot(ctx context.Context, dir string) (vmm.Template, error) {
	if m.memory == nil {
		return vmm.Template{}, fmt.Errorf("snapshot %s: a clone has no memory of its own: %w", m.id, vmm.ErrUnsupported)
	}
	if err := m.snapshot(ctx, dir); err != nil {
		for _, name := range []string{stateFile, memoryFile, manifestFile} {
			err = errors.Join(err, hostfile.RemoveIfExists(filepath.Join(dir, name)))
		}
		return vmm.Template{}, m.abandon("snapshot", err)
	}
	return vmm.Template{Dir: dir, Driver: m.d.Name(), Boot: m.boot}, m.Close()
}

func (m *machine) snapshot(ctx context.Context, dir string) error {
	m.channel.hangUp() // a connection would be part of the state
	if err := m.saveState(ctx, filepath.Join(dir, stateFile)); err != nil {
		return err
	}
	if err := m.process.close(); err != nil { // the memory is whole only when nothing maps it any more
		return err
	}
	if err := hostfile.WriteOnce(filepath.Join(dir, memoryFile), func(f *os.File) error { return hostfile.CopySparse(f, m.memory) }); err != nil {
		return err
	}
	b, err := json.MarshalIndent(m.platform, "", "  ")
	if err != nil {
		return err
	}
	if err := hostfile.WriteOnce(filepath.Join(dir, manifestFile), func(f *os.File) error {
		_, err := f.Write(append(b, '\n'))
		return err
	}); err != nil {
		return err
	}
	return hostfile.SyncDir(dir)
}

func (m *machine) saveState(ctx context.Context, path string) error {
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	if err := m.qmp.execute(ctx, "stop", nil, nil); err != nil {
		return err
	}
	if err := m.capabilities(ctx); err != nil {
		return err
	}
	return hostfile.WriteOnce(path, func(f *os.File) error {
		if err := m.qmp.execute(ctx, "getfd", map[string]string{"fdname": "state"}, nil, f); err != nil {
			return err
		}
		if err := m.qmp.execute(ctx, "migrate", map[string]string{"uri": "fd:state"}, nil); err != nil {
			return err
		}
		return m.migration(ctx)
	})
}
