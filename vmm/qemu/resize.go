package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/paddockvm/paddock/vmm"
)

// A machine grows by processors of its own kind and by DIMMs of memory, all of one size, plugged into slots that it was booted with. It
// shrinks by the same, last in first out, as its guest lets go of them by ACPI.

// size is what is plugged into a machine, as it was last looked at, or changed.
type size struct {
	cpus  []string // by id, in the order in which they came
	dimms []string
	named int // ids given so far: none is used twice
	unit  int // MiB of a DIMM
}

func newSize(b vmm.Boot) *size { return &size{unit: dimmMiB(b)} }

// plugged tells whether the machine has more than its template's devices.
func (s *size) plugged() bool { return len(s.cpus)+len(s.dimms) > 0 }

// Resize has the machine weigh what it shall have, grows first and shrinks then; where a step fails, those before it are undone. Memory that the
// guest does not give up, or a processor, is an error after StepTimeout.
func (m *machine) Resize(ctx context.Context, vcpus, memoryMiB int) error {
	if err := m.resize(ctx, vcpus, memoryMiB); err != nil {
		return fmt.Errorf("resize %s to %d processors and %d MiB: %w", m.id, vcpus, memoryMiB, err)
	}
	return nil
}

func (m *machine) resize(ctx context.Context, vcpus, memoryMiB int) error {
	release, err := m.oneCheckpoint(ctx) // what is taken of a machine is of one size
	if err != nil {
		return err
	}
	defer release()
	if err := m.look(ctx); err != nil {
		return err
	}
	if err := m.canBe(vcpus, memoryMiB); err != nil {
		return err
	}
	hadCPUs, hadDIMMs := len(m.size.cpus), len(m.size.dimms)
	if err = vmm.Weigh(m.proc, weight(vcpus, memoryMiB)); err == nil {
		err = m.plug(ctx, vcpus-m.boot.VCPUs, (memoryMiB-m.boot.MemoryMiB)/m.size.unit)
	}
	if err == nil {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	if lookErr := m.look(ctx); lookErr != nil { // QEMU may have obeyed where nobody heard its answer
		return errors.Join(err, lookErr)
	}
	err = errors.Join(err, m.plug(ctx, hadCPUs, hadDIMMs)) // and it may keep more than it had
	return errors.Join(err, vmm.Weigh(m.proc, weight(m.boot.VCPUs+len(m.size.cpus), m.boot.MemoryMiB+len(m.size.dimms)*m.size.unit)))
}

// canBe tells whether the machine can have that size.
func (m *machine) canBe(vcpus, memoryMiB int) error {
	b := m.boot
	switch {
	case m.memory != nil:
		return fmt.Errorf("a machine that is to be a template keeps its size: %w", vmm.ErrUnsupported)
	case vcpus < b.VCPUs || memoryMiB < b.MemoryMiB:
		return fmt.Errorf("it was booted with %d processors and %d MiB, and cannot have less: %w", b.VCPUs, b.MemoryMiB, vmm.ErrUnsupported)
	case vcpus > max(b.VCPUs, b.MaxVCPUs) || memoryMiB > max(b.MemoryMiB, b.MaxMemoryMiB):
		return fmt.Errorf("it can have at most %d processors and %d MiB: %w", max(b.VCPUs, b.MaxVCPUs), max(b.MemoryMiB, b.MaxMemoryMiB), vmm.ErrUnsupported)
	case m.platform.Accel == accelTCG && vcpus-b.VCPUs < len(m.size.cpus):
		return errEmulated
	case (memoryMiB-b.MemoryMiB)%m.size.unit != 0:
		return fmt.Errorf("its memory grows from %d MiB by %d MiB at a time: %w", b.MemoryMiB, m.size.unit, vmm.ErrUnsupported)
	}
	return nil
}

// errEmulated is why an emulated machine keeps its processors: QEMU 7.2 dies when one is plugged in after one was pulled.
var errEmulated = fmt.Errorf("an emulated processor cannot be pulled: %w", vmm.ErrUnsupported)

// plug plugs in and pulls. What it has to leave is an error once it has done the rest.
func (m *machine) plug(ctx context.Context, cpus, dimms int) error {
	s := m.size
	for len(s.dimms) < dimms {
		if err := m.addDIMM(ctx); err != nil {
			return err
		}
	}
	for len(s.cpus) < cpus {
		if err := m.addCPU(ctx); err != nil {
			return err
		}
	}
	var left error
	if len(s.cpus) > cpus && m.platform.Accel == accelTCG {
		left, cpus = errEmulated, len(s.cpus)
	}
	for len(s.cpus) > cpus {
		if err := m.pull(ctx, s.cpus[len(s.cpus)-1]); err != nil {
			return err
		}
		s.cpus = s.cpus[:len(s.cpus)-1]
	}
	for len(s.dimms) > dimms {
		if err := m.pull(ctx, s.dimms[len(s.dimms)-1]); err != nil {
			return err
		}
		s.dimms = s.dimms[:len(s.dimms)-1]
	}
	return left
}

// cpuPlace is where a processor can be plugged in (qapi/machine.json, HotpluggableCPU).
type cpuPlace struct {
	Type  string         `json:"type"`
	Props map[string]int `json:"props"`
	Taken string         `json:"qom-path"` // empty: it is free
}

func (p cpuPlace) compare(o cpuPlace) int {
	for _, level := range []string{"socket-id", "die-id", "core-id", "thread-id"} {
		if c := cmp.Compare(p.Props[level], o.Props[level]); c != 0 {
			return c
		}
	}
	return 0
}

// addCPU plugs a processor into the first free place, so that the guest counts them as they come.
func (m *machine) addCPU(ctx context.Context) error {
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	var places []cpuPlace
	if err := m.qmp.execute(ctx, "query-hotpluggable-cpus", nil, &places); err != nil {
		return err
	}
	slices.SortFunc(places, cpuPlace.compare)
	for _, p := range places {
		if p.Taken != "" {
			continue
		}
		id := m.size.name("cpu")
		args := map[string]any{"driver": p.Type, "id": id}
		for name, n := range p.Props {
			args[name] = n
		}
		if err := m.qmp.execute(ctx, "device_add", args, nil); err != nil {
			return err
		}
		m.size.cpus = append(m.size.cpus, id)
		return nil
	}
	return errors.New("no place is free for another processor")
}

// addDIMM plugs memory in. It is nobody's but this machine's, and gone with it.
func (m *machine) addDIMM(ctx context.Context) error {
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	id := m.size.name("dimm")
	err := m.qmp.execute(ctx, "object-add", map[string]any{
		"qom-type": "memory-backend-ram", "id": memoryOf(id), "size": int64(m.size.unit) << 20, "dump": false, "merge": false,
	}, nil)
	if err != nil {
		return err
	}
	if err := m.qmp.execute(ctx, "device_add", map[string]any{"driver": "pc-dimm", "id": id, "memdev": memoryOf(id)}, nil); err != nil {
		return err // look gives the memory back
	}
	m.size.dimms = append(m.size.dimms, id)
	return nil
}

// memoryOf names the memory of a DIMM.
func memoryOf(dimm string) string { return "memory-" + dimm }

// pull asks the guest to let go of a device, and waits until it has. A guest that refuses, or does nothing, is asked again until its time is
// up: it may still be about to take in what was just plugged, and misses what it is asked meanwhile.
func (m *machine) pull(ctx context.Context, id string) error {
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := m.ask(ctx, id)
		if err == nil {
			return m.freeMemory(context.WithoutCancel(ctx), id)
		}
		if !errors.Is(err, errKept) {
			return fmt.Errorf("pull %s: %w", id, err)
		}
		select {
		case <-time.After(wait):
		case <-m.done:
			return errOver
		case <-ctx.Done():
			return fmt.Errorf("pull %s: %w", id, err)
		}
	}
}

// askAgain is when a guest that says nothing is asked again.
const askAgain = 2 * time.Second

// ask asks once.
func (m *machine) ask(ctx context.Context, id string) error {
	answer := m.unplugs.expect(id)
	err := m.qmp.execute(ctx, "device_del", map[string]string{"id": id}, nil)
	if err == nil {
		err = m.pulled(ctx, id, answer)
	}
	e, refused := errors.AsType[*qmpError](err)
	if gone := m.unplugs.giveUp(id); gone || refused && e.Class == "DeviceNotFound" { // who has given up may have asked before
		return nil
	}
	return err
}

// pulled waits for the guest's answer. QEMU's emulator never tells of a processor that has gone, for something in it holds on to what it was:
// so it is looked for too.
func (m *machine) pulled(ctx context.Context, id string, answer <-chan error) error {
	again := time.After(askAgain)
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		select {
		case err := <-answer:
			return err
		case <-again:
			return errKept
		case <-m.done:
			return errOver
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
		devices, err := m.list(ctx, peripherals)
		if err != nil {
			return err
		}
		if !slices.Contains(devices, id) {
			return nil
		}
	}
}

// Where QEMU keeps those devices that have an id, and what is no device, as a DIMM's memory.
const (
	peripherals = "/machine/peripheral"
	objects     = "/objects"
)

// list gives the names of what is somewhere.
func (m *machine) list(ctx context.Context, path string) (names []string, err error) {
	var properties []struct {
		Name string `json:"name"`
	}
	err = m.qmp.execute(ctx, "qom-list", map[string]string{"path": path}, &properties)
	for _, p := range properties {
		names = append(names, p.Name)
	}
	return names, err
}

// freeMemory gives a DIMM's memory back; a processor has none.
func (m *machine) freeMemory(ctx context.Context, id string) error {
	if !slices.Contains(m.size.dimms, id) {
		return nil
	}
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	return m.qmp.execute(ctx, "object-del", map[string]string{"id": memoryOf(id)}, nil)
}

// look asks QEMU what is plugged in. It is not always what was heard: a guest may have let go when nobody waited for it any more, and QEMU, which
// does one command after the other, may have obeyed when nobody waited for its answer. Memory of which there is no DIMM is given back.
func (m *machine) look(ctx context.Context) error {
	s := m.size
	if s.named == 0 { // nothing ever was
		return nil
	}
	ctx, cancel := m.d.step(ctx)
	defer cancel()
	devices, err := m.list(ctx, peripherals)
	if err != nil {
		return err
	}
	s.cpus, s.dimms = nil, nil
	var errs []error
	memory, err := m.list(ctx, objects)
	errs = append(errs, err)
	for n := range s.named {
		cpu, dimm := idOf("cpu", n+1), idOf("dimm", n+1)
		switch {
		case slices.Contains(devices, cpu):
			s.cpus = append(s.cpus, cpu)
		case slices.Contains(devices, dimm):
			s.dimms = append(s.dimms, dimm)
		case slices.Contains(memory, memoryOf(dimm)):
			errs = append(errs, m.qmp.execute(ctx, "object-del", map[string]string{"id": memoryOf(dimm)}, nil))
		}
	}
	return errors.Join(errs...)
}

func (s *size) name(kind string) string {
	s.named++
	return idOf(kind, s.named)
}

func idOf(kind string, n int) string { return kind + "-" + strconv.Itoa(n) }
