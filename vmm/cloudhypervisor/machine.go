package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor/api"
	"github.com/paddockvm/paddock/vmm/hostfile"
)

// What Cloud Hypervisor may have beside the guest's memory. Of the address space each of its threads, one for a device and a processor each,
// has a stack and a malloc arena, which are mapped and hardly used: what it really uses is some 20 MiB, and vmmMemory is what it may.
const (
	vmmSpace    = 4 << 30
	threadSpace = (8 + 2*64) << 20
	vmmMemory   = 64 << 20
)

// machine is a Cloud Hypervisor with a guest in it, or ready for one.
type machine struct {
	*process
	d        *Driver
	channel  *channel
	boot     vmm.Boot
	release  release
	platform manifest
	memory   *os.File // of a machine that was booted, for Snapshot; nil for a clone
	template *os.File // the memory that a clone maps, for Checkpoint
	config   []byte   // of a clone, as it was restored from
	scratch  *os.File // the disk, for Checkpoint; nil: none
	tap      *os.File // of a clone that is not restored yet: the caller's

	turns chan struct{} // guards what follows, and whether it runs; a channel and not a mutex because it is held while asking
	vcpus int           // unknown where the VMM did not answer, or its guest has yet to let go of some
	fewer int           // how many there will be once it has; 0: it has

	memoryMiB int // what the guest may have, and has no more than; unknown as vcpus is
	boundMiB  int // what the process's bound is for
}

var (
	_ vmm.Machine = (*machine)(nil)
	_ vmm.Resizer = (*machine)(nil)
)

// Boot starts a machine from its kernel, a bzImage or an ELF with a PVH entry. What it writes to its memory ends in a file that Snapshot keeps.
func (d *Driver) Boot(ctx context.Context, b vmm.Boot, a vmm.Attach) (vmm.Machine, error) {
	if err := attached(b, a); err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	m, err := d.bootCold(ctx, b, a)
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	return m, nil
}

// attached says what does not fit before anything is started. A template and its clones must agree on what the card can leave to the host,
// so that a tap is taken only if it is of the kind that vmm.Attach names.
func attached(b vmm.Boot, a vmm.Attach) error {
	switch {
	case b.NIC && a.Tap == nil:
		return errors.New("the machine has a network card, and no tap is attached")
	case !b.NIC && a.Tap != nil:
		return errors.New("a tap is attached, and the machine has no network card")
	case !b.NIC:
		return nil
	}
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(int(a.Tap.Fd()), unix.TUNGETIFF, ifr); err != nil {
		return fmt.Errorf("the attached descriptor is no tap's: %w", err)
	}
	const want = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if flags := ifr.Uint16(); flags&(want|unix.IFF_MULTI_QUEUE) != want {
		return fmt.Errorf("the attached tap was made with %#x, want IFF_TAP, IFF_NO_PI and IFF_VNET_HDR (%#x)", flags, want)
	}
	return nil
}

func (d *Driver) bootCold(ctx context.Context, b vmm.Boot, a vmm.Attach) (*machine, error) {
	if err := checkHeadroom(b); err != nil {
		return nil, err
	}
	caps, err := d.Probe(ctx)
	if err != nil {
		return nil, err
	}
	size := int64(b.MemoryMiB) << 20
	dir, err := newDirectory(size + vmmMemory)
	if err != nil {
		return nil, err
	}
	memory, err := dir.create(memoryFile)
	if err == nil {
		err = memory.Truncate(size)
	}
	if err != nil {
		_ = memory.Close()
		dir.close()
		return nil, fmt.Errorf("memory: %w", err)
	}
	kernel, err := os.Open(b.Kernel)
	if err != nil {
		_ = memory.Close()
		dir.close()
		return nil, err
	}
	m, err := d.machine(ctx, b, dir, kernel, b.Initrd)
	if err != nil {
		_ = memory.Close()
		return nil, err
	}
	m.memory, m.platform = memory, manifestOf(caps)
	if err := m.create(ctx, d.cold(b), a); err != nil {
		return nil, m.abandon("boot", err)
	}
	return m, nil
}

// create makes the machine of its configuration and lets it run.
func (m *machine) create(ctx context.Context, v api.VM, a vmm.Attach) error {
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	if err := m.api.Create(ctx, v); err != nil {
		return err
	}
	if m.boot.NIC {
		if _, err := m.api.AddNet(ctx, api.Net{ID: netID, MAC: vmm.GuestMAC}, a.Tap); err != nil {
			return err
		}
	}
	if err := m.api.Boot(ctx); err != nil {
		return err
	}
	m.opened()
	return nil
}

// opened notes that the VMM has opened the console: it ends with the VMM now.
func (m *machine) opened() { _ = m.hold.Close() }

// Prepare spawns a Cloud Hypervisor that has all that vm.restore reads.
func (d *Driver) Prepare(ctx context.Context, t vmm.Template, a vmm.Attach) (vmm.Prepared, error) {
	if err := attached(t.Boot, a); err != nil {
		return nil, fmt.Errorf("prepare a clone of %s: %w", t.Dir, err)
	}
	m, err := d.prepare(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("prepare a clone of %s: %w", t.Dir, err)
	}
	m.tap = a.Tap
	return &prepared{m: m}, nil
}

func (d *Driver) prepare(ctx context.Context, t vmm.Template) (*machine, error) {
	platform, err := d.samePlatform(ctx, t.Dir)
	if err != nil {
		return nil, err
	}
	template, err := readOnly(t.Dir)
	if err != nil {
		return nil, err
	}
	defer template.close()
	memory, config, state, err := d.load(template, int64(t.Boot.MemoryMiB)<<20)
	if err != nil {
		return nil, err
	}
	m, err := d.restorable(ctx, t.Boot, template, config, state)
	if err != nil {
		_ = memory.Close()
		return nil, err
	}
	m.template, m.platform, m.channel.spend = memory, platform, toSpend(platform.Ports)
	m.config = config
	m.channel.ports.Store(platform.Ports) // its guest has what that of the template had, until there is a connection
	return m, nil
}

// restorable starts a VMM with a template's files in its directory, and a view of the template.
func (d *Driver) restorable(ctx context.Context, b vmm.Boot, template *directory, config, state []byte) (*machine, error) {
	dir, err := newDirectory(int64(len(config)+len(state)) + 1<<20)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(dir.write(configFile, config), dir.write(stateFile, state)); err != nil {
		dir.close()
		return nil, err
	}
	view, err := template.open(".", os.O_RDONLY, 0)
	if err != nil {
		dir.close()
		return nil, err
	}
	return d.machine(ctx, b, dir, view, "")
}

// machine starts a VMM with the machine's files and waits until it answers. It takes dir and extra, for the descriptor of that name, over.
func (d *Driver) machine(ctx context.Context, b vmm.Boot, dir *directory, extra *os.File, initrd string) (*machine, error) {
	files, err := d.files(b, extra, initrd)
	if err != nil {
		dir.close()
		return nil, err
	}
	m := &machine{d: d, boot: b, channel: newChannel(dir), turns: make(chan struct{}, 1), vcpus: b.VCPUs, memoryMiB: b.MemoryMiB, boundMiB: b.MemoryMiB}
	if b.Scratch != "" {
		if m.scratch, err = hostfile.Duplicate(files[scratchFD-extraFD]); err != nil {
			closeAll(files)
			dir.close()
			return nil, err
		}
	}
	m.process, err = d.start(ctx, newID(), dir, files, vmm.Command{
		AddressSpaceBytes: int64(b.MemoryMiB)<<20 + headroom(b) + vmmSpace + int64(max(b.VCPUs, b.MaxVCPUs))*threadSpace, FileBytes: fileBytes(b), Share: share(b, d.cfg.Disk),
	})
	if err != nil {
		_ = m.scratch.Close()
		return nil, err
	}
	ctx, cancel := d.step(ctx)
	defer cancel()
	if _, m.release, err = ask(ctx, m.api); err != nil {
		return nil, m.abandon("start", err)
	}
	return m, nil
}

// files opens a machine's from extraFD on. It takes extra over.
func (d *Driver) files(b vmm.Boot, extra *os.File, initrd string) ([]*os.File, error) {
	files := []*os.File{extra}
	for _, open := range []func() (*os.File, error){
		func() (*os.File, error) { return openOr(initrd) },
		func() (*os.File, error) { return openOr(b.Root) },
		func() (*os.File, error) {
			if b.Scratch == "" {
				return openOr("")
			}
			return scratchCopy(b.Scratch, d.cfg.RunDir)
		},
	} {
		f, err := open()
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// fileBytes is how large the VMM's files become that are no disk: the memory's, which vm.snapshot would copy to another of that size, that of
// what a machine that is booted may grow by, and the state's (memory_manager.rs and vm.rs of v53.0).
func fileBytes(b vmm.Boot) int64 { return max(int64(b.MemoryMiB)<<20, headroom(b), maxState) }

// memoryBytes is the memory that a machine of that size may use.
func memoryBytes(memoryMiB int) int64 { return int64(memoryMiB)<<20 + vmmMemory }

// share is what a machine may use of its host: its processors and half of one for its devices. Its memory is that which it has, and no more
// before it is resized: all that it may grow by is mapped, and nothing else keeps a guest from writing there.
func share(b vmm.Boot, disk vmm.DiskLimits) vmm.Share {
	cpus := max(b.VCPUs, b.MaxVCPUs)
	return vmm.Share{
		CPUs: float64(cpus) + 0.5, MemoryBytes: memoryBytes(b.MemoryMiB), PIDs: 64 + cpus, DiskBytesPerSecond: disk.BytesPerSecond,
		Weight: weight(b.VCPUs, b.MemoryMiB),
	}
}

// weight is what a machine of that size counts for.
func weight(vcpus, memoryMiB int) vmm.Weight {
	return vmm.Weight{CPUs: float64(vcpus) + 0.5, MemoryBytes: memoryBytes(memoryMiB)}
}

// prepared is a machine that has no state yet.
type prepared struct {
	m    *machine
	used atomic.Bool
}

// Restore clones the template and lets the machine run.
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
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	r := api.Restore{Source: "file://" + fdPath(dirFD), Resume: m.release.resumesItself()}
	var taps []*os.File
	if m.boot.NIC {
		r.NetFDs, taps = []api.NetFD{{ID: netID, Num: 1}}, []*os.File{m.tap}
	}
	if err := m.api.Restore(ctx, r, taps...); err != nil {
		return err
	}
	m.opened()
	if !r.Resume {
		if err := m.api.Resume(ctx); err != nil {
			return err
		}
	}
	m.clear() // it is read, and memory
	return nil
}

// Close ends the VMM that nobody restored.
func (p *prepared) Close() error {
	if p.used.Swap(true) {
		return nil
	}
	return p.m.Close()
}

func (m *machine) ID() string            { return m.id }
func (m *machine) Done() <-chan struct{} { return m.done }
func (m *machine) Console() string       { return m.console.String() }

// Exit waits for the machine's end.
func (m *machine) Exit() vmm.Exit {
	<-m.done
	return m.exit
}

func (m *machine) DialGuest(ctx context.Context) (net.Conn, error) { return m.channel.dial(ctx) }

func (m *machine) Pause(ctx context.Context) error {
	release, err := m.turn(ctx)
	if err != nil {
		return err
	}
	defer release()
	ordered, err := m.become(ctx, api.Paused, m.api.Pause)
	if ordered && err != nil { // it may have obeyed all the same, or half
		err = errors.Join(err, m.runOn(ctx, false))
	}
	return err
}

func (m *machine) Resume(ctx context.Context) error {
	release, err := m.turn(ctx)
	if err != nil {
		return err
	}
	defer release()
	_, err = m.become(ctx, api.Running, m.api.Resume)
	return err
}

// become orders what leads to a state, and tells whether it did: not where the machine is in it, which Cloud Hypervisor would refuse.
func (m *machine) become(ctx context.Context, state string, order func(context.Context) error) (ordered bool, err error) {
	info, err := m.info(ctx)
	if err != nil || info.State == state {
		return false, err
	}
	return true, m.order(ctx, order)
}

// Close ends the machine.
func (m *machine) Close() error {
	err := m.process.close()
	m.channel.close()
	m.turns <- struct{}{} // who takes a checkpoint sees that it is over
	defer func() { <-m.turns }()
	closeAll([]*os.File{m.memory, m.template, m.scratch})
	return err
}

// abandon ends a machine that never came to be and tells why.
func (m *machine) abandon(what string, err error) error {
	err = m.d.orReplaced(m.fail(what, err))
	_ = m.Close()
	return err
}

// load reads a template for a clone, and opens its memory.
func (d *Driver) load(template *directory, memorySize int64) (memory *os.File, config, state []byte, err error) {
	if config, state, err = d.loadState(template); err != nil {
		return nil, nil, nil, err
	}
	f, err := template.open(memoryFile, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() != memorySize) {
		err = fmt.Errorf("%s is %s of %d bytes, want %d", memoryFile, info.Mode(), info.Size(), memorySize)
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, nil, err
	}
	return f, config, state, nil
}

// loadState gives a clone's configuration and state.
func (d *Driver) loadState(template *directory) (config, state []byte, err error) {
	if template.exists(copiedFile) {
		return nil, nil, fmt.Errorf("there is a %s: memory that each clone would copy", copiedFile)
	}
	saved, err := template.read(configFile)
	if err != nil {
		return nil, nil, err
	}
	if config, err = d.clone(saved); err != nil {
		return nil, nil, err
	}
	state, err = template.read(stateFile)
	return config, state, err
}

// samePlatform checks that the template in dir was made by this VMM on this host: it checks little of another one's state itself.
func (d *Driver) samePlatform(ctx context.Context, dir string) (manifest, error) {
	m, err := readManifest(filepath.Join(dir, manifestFile))
	if err != nil {
		return m, err
	}
	caps, err := d.Probe(ctx)
	if err != nil {
		return m, err
	}
	here := manifestOf(caps)
	here.Ports = m.Ports
	if m != here {
		return m, fmt.Errorf("the template was made on %+v, and this is %+v: build it anew", m, here)
	}
	return m, nil
}
