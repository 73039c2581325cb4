package cloudhypervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor/api"
	"github.com/paddockvm/paddock/vmm/hostfile"
)

// Files of a template.
const (
	memoryFile   = "memory"                // the guest's memory, sparse
	configFile   = "config.json"           // what the machine is, in Cloud Hypervisor's words
	stateFile    = "state.json"            // its devices' state
	manifestFile = "cloud-hypervisor.json" // a manifest
	// copiedFile is where Cloud Hypervisor puts memory that is in no shared file. Templates have none.
	copiedFile = "memory-ranges"
)

// maxState bounds what is read of a configuration and a state. A state has 0.3 MB, and some 10 KB more for each processor.
const maxState = 16 << 20

// Snapshot stops a booted machine, saves its devices' state, ends it, and writes its memory.
func (m *machine) Snapshot(ctx context.Context, dir string) (vmm.Template, error) {
	if m.memory == nil {
		return vmm.Template{}, fmt.Errorf("snapshot %s: a clone has no memory of its own: %w", m.id, vmm.ErrUnsupported)
	}
	if err := m.snapshot(ctx, dir); err != nil {
		for _, name := range []string{stateFile, configFile, memoryFile, manifestFile} {
			err = errors.Join(err, hostfile.RemoveIfExists(filepath.Join(dir, name)))
		}
		return vmm.Template{}, m.abandon("snapshot", err)
	}
	return vmm.Template{Dir: dir, Driver: m.d.Name(), Boot: m.boot}, m.Close()
}

func (m *machine) snapshot(ctx context.Context, dir string) error {
	m.channel.hangUp() // a connection would be part of the state
	saved, err := m.save(ctx)
	if err != nil {
		return err
	}
	if err := m.process.close(); err != nil { // the memory is whole only when nothing maps it any more
		return err
	}
	if err := writeSaved(dir, saved); err != nil {
		return err
	}
	if err := hostfile.WriteOnce(filepath.Join(dir, memoryFile), func(f *os.File) error { return hostfile.CopySparse(f, m.memory) }); err != nil {
		return err
	}
	return hostfile.SyncDir(dir)
}

// save has the VMM write the machine's state into its directory, and gives what a template keeps of it.
func (m *machine) save(ctx context.Context) (map[string][]byte, error) {
	release, err := m.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if _, err := m.become(ctx, api.Paused, m.api.Pause); err != nil {
		return nil, err
	}
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	if err := m.api.Snapshot(ctx, "file://"+fdPath(dirFD)); err != nil {
		return nil, err
	}
	if m.dir.exists(copiedFile) {
		return nil, errors.New("cloud-hypervisor has copied the memory, which was to stay in its file")
	}
	return m.saved()
}

// saved reads what the VMM has saved, and gives what a template keeps of it. Of a clone the configuration is its template's, whatever a VMM
// says that its guest may have taken over.
func (m *machine) saved() (_ map[string][]byte, err error) {
	saved := map[string][]byte{configFile: m.config}
	if m.config == nil {
		if saved[configFile], err = m.dir.read(configFile); err != nil {
			return nil, err
		}
	}
	if saved[stateFile], err = m.dir.read(stateFile); err != nil {
		return nil, err
	}
	platform := m.platform
	platform.Ports = m.channel.ports.Load()
	b, err := json.MarshalIndent(platform, "", "  ")
	if err != nil {
		return nil, err
	}
	saved[manifestFile] = append(b, '\n')
	if _, err := m.d.clone(saved[configFile]); err != nil { // better now than at the first clone
		return nil, err
	}
	return saved, nil
}

// writeSaved makes a template's files of what was saved.
func writeSaved(dir string, saved map[string][]byte) error {
	for name, b := range saved {
		if err := hostfile.WriteOnce(filepath.Join(dir, name), func(f *os.File) error {
			_, err := f.Write(b)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// manifest is what a template depends on, kept beside it: a clone is made on the very same platform.
type manifest struct {
	Version string `json:"version"`
	Machine string `json:"machine"`
	CPU     string `json:"cpu"`
	// Ports is how many the VMM had used of its side of the channel. It is not the platform's.
	Ports int64 `json:"ports,omitempty"`
}

func manifestOf(c vmm.Caps) manifest {
	return manifest{Version: c.Version, Machine: c.Machine, CPU: c.CPU}
}

func readManifest(path string) (m manifest, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("read %s: %w", manifestFile, err)
	}
	return m, nil
}
