package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/hostfile"
)

// machine is a QEMU with a guest in it, or ready for one.
type machine struct {
	*process
	d        *Driver
	channel  *channel
	boot     vmm.Boot
	platform manifest
	memory   *os.File // of a machine that was booted, for Snapshot; nil for a clone
	size     *size

	uncleared *backup // of the last checkpoint, where QEMU may still have it
}

var (
	_ vmm.Machine   = (*machine)(nil)
	_ vmm.HostFault = (*machine)(nil)
	_ vmm.Resizer   = (*machine)(nil)
)

// Boot starts a machine from its kernel. What it writes to its memory ends in a file that Snapshot keeps.
func (d *Driver) Boot(ctx context.Context, b vmm.Boot, a vmm.Attach) (vmm.Machine, error) {
	caps, err := d.Probe(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkHeadroom(b); err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	tap, err := tapOf(b, a)
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	memory, err := newMemory("boot", int64(b.MemoryMiB)<<20)
	if err != nil {
		_ = tap.Close()
		return nil, fmt.Errorf("boot: %w", err)
	}
	m, err := d.cold(ctx, b, manifestOf(caps), memory, tap)
	if err != nil {
		memory.Close()
		return nil, fmt.Errorf("boot: %w", err)
	}
	m.memory = memory
	if err := m.Resume(ctx); err != nil {
		return nil, m.abandon("boot", err)
	}
	return m, nil
}

// cold starts a QEMU with a kernel, paused. memory stays the caller's, tap does not.
func (d *Driver) cold(ctx context.Context, b vmm.Boot, platform manifest, memory, tap *os.File) (_ *machine, err error) {
	c := &commandLine{}
	defer func() {
		if err != nil {
			c.closeFiles()
			_ = tap.Close()
		}
	}()
	kernel, err := os.Open(b.Kernel)
	if err != nil {
		return nil, err
	}
	c.add("-kernel", procFDNumber(c.file(kernel)), "-append", b.Cmdline)
	if b.Initrd != "" {
		initrd, err := os.Open(b.Initrd)
		if err != nil {
			return nil, err
		}
		c.add("-initrd", procFDNumber(c.file(initrd)))
	}
	theirs, err := hostfile.Duplicate(memory)
	if err != nil {
		return nil, err
	}
	return d.machine(ctx, c, b, platform, machineFiles{memory: theirs, shareMemory: true, tap: tap})
}

// Prepare spawns a QEMU that waits for the template's state.
func (d *Driver) Prepare(ctx context.Context, t vmm.Template, a vmm.Attach) (vmm.Prepared, error) {
	m, err := d.prepare(ctx, t, a)
	if err != nil {
		return nil, fmt.Errorf("prepare a clone of %s: %w", t.Dir, err)
	}
	return &prepared{m: m}, nil
}

func (d *Driver) prepare(ctx context.Context, t vmm.Template, a vmm.Attach) (*machine, error) {
	platform, err := d.platform(ctx, t.Dir)
	if err != nil {
		return nil, err
	}
	state, err := os.Open(filepath.Join(t.Dir, stateFile))
	if err != nil {
		return nil, err
	}
	defer state.Close()
	tap, err := tapOf(t.Boot, a)
	if err != nil {
		return nil, err
	}
	memory, err := d.memories.get(t.Dir, int64(t.Boot.MemoryMiB)<<20)
	if err != nil {
		_ = tap.Close()
		return nil, err
	}
	c := &commandLine{}
	c.add("-incoming", "defer")
	m, err := d.machine(ctx, c, t.Boot, platform, machineFiles{memory: memory, tap: tap})
	if err != nil {
		return nil, err
	}
	if err := m.prepareIncoming(ctx, state); err != nil {
		return nil, m.abandon("prepare", err)
	}
	return m, nil
}

// machine starts QEMU with the machine's devices. It takes f.memory and the files of c over.
func (d *Driver) machine(ctx context.Context, c *commandLine, b vmm.Boot, platform manifest, f machineFiles) (_ *machine, err error) {
	m := &machine{d: d, boot: b, platform: platform, size: newSize(b)}
	var output *os.File
	defer func() {
		if err != nil {
			c.closeFiles()
			f.close()
			_ = output.Close()
			if m.channel != nil {
				m.channel.close()
			}
		}
	}()
	id := newID()
	if m.channel, err = d.channel(id, platform, &f); err != nil {
		return nil, err
	}
	if output, f.console, err = socketPair("console"); err != nil {
		return nil, err
	}
	if b.Root != "" {
		if f.root, err = os.Open(b.Root); err != nil {
			return nil, err
		}
	}
	if b.Scratch != "" {
		if f.scratch, err = hostfile.Scratch(b.Scratch, d.cfg.RunDir); err != nil {
			return nil, err
		}
	}
	c.devices(b, platform, d.cfg.Disk, f)
	m.process, err = d.start(ctx, id, platform, c, output, vmm.Command{AddressSpaceBytes: addressSpace(b), FileBytes: most(b), Share: share(b, d.cfg.Disk)})
	return m, err
}

// channel makes the way to the guest's agent, and QEMU's part of it.
func (d *Driver) channel(id string, platform manifest, f *machineFiles) (*channel, error) {
	if platform.Channel == channelVsock {
		if err := d.unreached(platform); err != nil {
			return nil, err
		}
		l, err := d.cids.take()
		if err != nil {
			return nil, err
		}
		f.lease = l
		return newChannel(&vsock{lease: l}), nil
	}
	s, listener, err := newSerial(filepath.Join(d.cfg.RunDir, id))
	if err != nil {
		return nil, err
	}
	f.agent = listener
	return newChannel(s), nil
}

// capabilities leave the memory out of the state and tell of a migration's progress by events.
func (m *machine) capabilities(ctx context.Context) error {
	type capability struct {
		Name  string `json:"capability"`
		State bool   `json:"state"`
	}
	return m.qmp.execute(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []capability{{"x-ignore-shared", true}, {"events", true}},
	}, nil)
}

// prepareIncoming does all of a restore that can be done before there is a need for it.
func (m *machine) prepareIncoming(ctx context.Context, state *os.File) error {
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	if err := m.capabilities(ctx); err != nil {
		return err
	}
	return m.qmp.execute(ctx, "getfd", map[string]string{"fdname": "state"}, nil, state)
}

// prepared is a machine that has no state yet.
type prepared struct {
	m    *machine
	used atomic.Bool
}

// Restore loads the state and lets the machine run.
func (p *prepared) Restore(ctx context.Context) (vmm.Machine, error) {
	if p.used.Swap(true) {
		return nil, fmt.Errorf("restore %s: it was restored or closed before", p.m.id)
	}
	if err := p.m.restore(ctx); err != nil {
		return nil, p.m.abandon("restore", err)
	}
	return p.m, nil
}

func (m *machine) restore(ctx context.Context) error {
	if err := m.d.unreached(m.platform); err != nil { // it may have waited for long
		return err
	}
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	if err := m.qmp.execute(ctx, "migrate-incoming", map[string]string{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	if err := m.migration(ctx); err != nil {
		return err
	}
	if err := m.qmp.execute(ctx, "cont", nil, nil); err != nil {
		return err
	}
	return m.awake(ctx)
}

// awake waits until a guest that has a vsock device was told that its transport was reset, which QEMU does in its main loop after it has let
// the guest run, and before its next command: connections made later live (vsock.go).
func (m *machine) awake(ctx context.Context) error {
	v, ok := m.channel.way.(*vsock)
	if !ok {
		return nil
	}
	v.restored = true
	return m.qmp.execute(ctx, "query-name", nil, nil)
}

// Close ends the QEMU that nobody restored.
func (p *prepared) Close() error {
	if p.used.Swap(true) {
		return nil
	}
	return p.m.Close()
}

func (m *machine) ID() string            { return m.id }
func (m *machine) Done() <-chan struct{} { return m.done }
func (m *machine) Console() string       { return m.console.String() }

// HostFault gives the first failure of a disk's file.
func (m *machine) HostFault() error { return m.faulted() }

// Exit waits for the machine's end.
func (m *machine) Exit() vmm.Exit {
	<-m.done
	return m.exit
}

func (m *machine) DialGuest(ctx context.Context) (net.Conn, error) {
	return m.channel.dial(ctx, m.done)
}

// Pause waits for a checkpoint that is under way, which lets the machine run on.
func (m *machine) Pause(ctx context.Context) error {
	release, err := m.oneCheckpoint(ctx)
	if err != nil {
		return err
	}
	defer release()
	step, cancel := m.d.step(ctx)
	defer cancel()
	running, err := m.running(step)
	if err != nil || !running {
		return err
	}
	if err = m.qmp.execute(step, "stop", nil, nil); err != nil { // which QEMU may obey all the same
		err = errors.Join(err, m.runOn(context.WithoutCancel(ctx)))
	}
	return err
}

func (m *machine) Resume(ctx context.Context) error {
	release, err := m.oneCheckpoint(ctx)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	return m.qmp.execute(ctx, "cont", nil, nil)
}

// running asks QEMU whether the machine's processors run.
func (m *machine) running(ctx context.Context) (bool, error) {
	var status struct {
		Running bool `json:"running"`
	}
	err := m.qmp.execute(ctx, "query-status", nil, &status)
	return status.Running, err
}

// Close ends the machine.
func (m *machine) Close() error {
	err := m.process.close()
	m.channel.close()
	_ = m.memory.Close()
	return err
}

// abandon ends a machine that never came to be and tells why.
func (m *machine) abandon(what string, err error) error {
	err = m.d.orReplaced(m.fail(what, err))
	_ = m.Close()
	return err
}

// manifest is what a template depends on, kept beside it: a clone is made on the very same platform.
type manifest struct {
	Version string `json:"version"`
	Accel   string `json:"accel"`
	Machine string `json:"machine"`
	CPU     string `json:"cpu"`
	Channel string `json:"channel"`
}

func manifestOf(c vmm.Caps) manifest {
	return manifest{Version: c.Version, Accel: c.Accel, Machine: c.Machine, CPU: c.CPU, Channel: c.Channel}
}

// platform gives the template's, which has to be this driver's: QEMU loads another one's state half-way, or wrongly.
func (d *Driver) platform(ctx context.Context, dir string) (m manifest, err error) {
	b, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("read %s: %w", manifestFile, err)
	}
	caps, err := d.Probe(ctx)
	if err != nil {
		return m, err
	}
	if here := manifestOf(caps); m != here {
		return m, fmt.Errorf("the template was made on %+v, and this is %+v: build it anew", m, here)
	}
	return m, nil
}

func (f machineFiles) close() {
	for _, f := range []*os.File{f.memory, f.console, f.agent, f.root, f.scratch, f.tap} {
		_ = f.Close()
	}
	if f.lease != nil {
		_ = f.lease.device.Close()
	}
}
