package cloudhypervisor

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor/api"
)

// probeGuest is a kernel of a few instructions: probe_guest.asm.
//
//go:embed probe_guest.bin
var probeGuest []byte

// prober remembers what a probe found.
type prober struct {
	held chan struct{} // by the one who probes
	caps *vmm.Caps
}

// Probe runs a guest of a few instructions. That /dev/kvm exists, opens and makes virtual machines proves nothing. The first success is
// remembered.
func (d *Driver) Probe(ctx context.Context) (vmm.Caps, error) {
	p := &d.prober
	select {
	case p.held <- struct{}{}:
		defer func() { <-p.held }()
	case <-ctx.Done():
		return vmm.Caps{}, fmt.Errorf("probe cloud-hypervisor: %w", context.Cause(ctx))
	}
	if err := context.Cause(ctx); err != nil {
		return vmm.Caps{}, fmt.Errorf("probe cloud-hypervisor: %w", err)
	}
	if p.caps == nil {
		caps, err := d.probe(ctx)
		if _, noKVM := os.Stat("/dev/kvm"); err != nil && noKVM != nil {
			err = fmt.Errorf("%w: Cloud Hypervisor needs KVM (modprobe kvm_intel or kvm_amd): %w", noKVM, err)
		}
		if err != nil {
			return vmm.Caps{}, fmt.Errorf("probe cloud-hypervisor: %w", err)
		}
		p.caps = &caps
	}
	caps := *p.caps
	caps.Degraded = slices.Clone(caps.Degraded)
	return caps, nil
}

// probeMiB is the probe guest's memory.
const probeMiB = 16

func (d *Driver) probe(ctx context.Context) (vmm.Caps, error) {
	cpu, err := hostCPU()
	if err != nil {
		return vmm.Caps{}, err
	}
	dir, err := newDirectory(probeMiB<<20 + 1<<20)
	if err != nil {
		return vmm.Caps{}, err
	}
	if err := dir.write("kernel", probeKernel()); err != nil {
		dir.close()
		return vmm.Caps{}, err
	}
	p, err := d.start(ctx, "probe", dir, nil, vmm.Command{AddressSpaceBytes: probeMiB<<20 + vmmSpace, FileBytes: probeMiB<<20 + vmmSpace})
	if err != nil {
		return vmm.Caps{}, err
	}
	version, took, err := d.runProbe(ctx, p)
	if err != nil {
		return vmm.Caps{}, p.fail("run", err)
	}
	return vmm.Caps{
		// The machine is the version's: Cloud Hypervisor has one kind, and does not promise that a later one has the same.
		Version: version, Accel: "kvm", Machine: "x86_64", CPU: cpu,
		Isolated: true, Degraded: slices.Clone(d.cfg.Launcher.Degraded()), BootProbe: took,
	}, p.close()
}

// runProbe boots the guest, and waits until it has powered off.
func (d *Driver) runProbe(ctx context.Context, p *process) (version string, took time.Duration, err error) {
	step, cancel := d.step(ctx)
	defer cancel()
	if version, _, err = ask(step, p.api); err != nil {
		return "", 0, err
	}
	v := api.VM{
		CPUs:    api.CPUs{Boot: 1, Max: 1, Scheduling: "Vm"},
		Memory:  api.Memory{Size: probeMiB << 20},
		Payload: api.Payload{Kernel: fdPath(dirFD, "kernel")},
	}
	walls(&v)
	if err := p.api.Create(step, v); err != nil {
		return "", 0, err
	}
	start := time.Now()
	if err := p.api.Boot(step); err != nil {
		select { // a guest that is faster than the answer
		case <-p.done:
		case <-p.over:
		default:
			return "", 0, err
		}
	}
	late := time.NewTimer(d.cfg.ProbeTimeout)
	defer late.Stop()
	select {
	case <-p.done:
	case <-late.C:
		return "", 0, fmt.Errorf("a guest of a few instructions did not come through in %v: %w", d.cfg.ProbeTimeout, errUnusable)
	case <-ctx.Done():
		return "", 0, context.Cause(ctx)
	}
	took = time.Since(start)
	switch said := p.console.String(); {
	case !p.exit.Guest:
		return "", 0, fmt.Errorf("the guest died: %w", errors.Join(p.exit.Err, errUnusable))
	case said != "+":
		return "", 0, fmt.Errorf("the guest computed wrongly and says %q: %w", said, errUnusable)
	}
	return version, took, nil
}

var errUnusable = errors.New("KVM does not work here")

// probeAddress is where the guest is loaded: Cloud Hypervisor wants kernels above 1 MiB.
const probeAddress = 1 << 20

// probeKernel is the guest as an ELF file with a PVH entry (Xen's docs/misc/pvh.pandoc: a note of the name "Xen" and type 18).
func probeKernel() []byte {
	type header struct { // elf(5), Elf64_Ehdr
		Ident                             [16]byte
		Type, Machine                     uint16
		Version                           uint32
		Entry, ProgramOffset, SectionsOff uint64
		Flags                             uint32
		Size, ProgramSize, Programs       uint16
		SectionSize, Sections, Names      uint16
	}
	type program struct { // Elf64_Phdr
		Type, Flags                                     uint32
		Offset, Virtual, Physical, Size, InMemory, Algn uint64
	}
	note := struct {
		NameSize, DescriptorSize, Type uint32
		Name                           [4]byte
		Entry                          uint64
	}{4, 8, 18, [4]byte{'X', 'e', 'n'}, probeAddress}
	const headers, noteSize = 64 + 2*56, 24
	var b bytes.Buffer
	for _, part := range []any{
		header{
			Ident: [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, Type: 2, Machine: 62, Version: 1, Entry: probeAddress, ProgramOffset: 64,
			Size: 64, ProgramSize: 56, Programs: 2, SectionSize: 64,
		},
		program{Type: 1, Flags: 7, Offset: headers + noteSize, Virtual: probeAddress, Physical: probeAddress, Size: uint64(len(probeGuest)), InMemory: uint64(len(probeGuest)), Algn: 1},
		program{Type: 4, Flags: 4, Offset: headers, Size: noteSize, Algn: 4},
		note, probeGuest,
	} {
		_ = binary.Write(&b, binary.LittleEndian, part) // never fails
	}
	return b.Bytes()
}

// hostCPU tells the processor and the kernel: guests see this very one, and a state is restored on no other (Cloud Hypervisor compares
// what of CPUID it can).
func hostCPU() (string, error) {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(string(b), "\n\n")
	is := map[string]string{}
	for line := range strings.Lines(first) {
		name, value, _ := strings.Cut(line, ":")
		is[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %s-%s-%s microcode %s flags %.4x Linux %s", is["model name"], is["cpu family"], is["model"], is["stepping"],
		is["microcode"], sha256.Sum256([]byte(is["flags"])), unix.ByteSliceToString(u.Release[:])), nil
}
