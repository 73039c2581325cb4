package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
)

// ResizeRequests takes requests for another size of a running job's machine, as SnapshotRequests takes those for snapshots.
type ResizeRequests interface {
	ServeResizes(ctx context.Context, tenant, job string, resize func(context.Context, jobs.ResizeRequest) (jobs.Resources, error)) (stop func(), err error)
}

// growsBy is the step in which a machine's memory grows, in MiB, and memorySteps how many steps there are at most: with more, a step is
// larger (vmm/qemu plugs DIMMs).
const (
	growsBy     = 128
	memorySteps = 32
)

// headroom rounds what a machine may grow to up to what a machine can have.
func headroom(size, most jobs.Resources) jobs.Resources {
	if most.MemoryMiB <= size.MemoryMiB {
		most.MemoryMiB = 0
	}
	if most.VCPUs <= size.VCPUs {
		most.VCPUs = 0
	}
	if most.MemoryMiB > 0 {
		growth := most.MemoryMiB - size.MemoryMiB
		step := max(1, (growth+growsBy*memorySteps-1)/(growsBy*memorySteps)) * growsBy
		most.MemoryMiB = size.MemoryMiB + (growth+step-1)/step*step
	}
	return most
}

// sizing is a machine whose size may change.
type sizing struct {
	a   *attempt
	m   *machine
	vmm vmm.Resizer

	mu  sync.Mutex
	now jobs.Resources
	// most is what the machine may have: more than now where it could not be made as it was. That much is taken from the worker's capacity.
	most    jobs.Resources
	ungrown func() // gives the memory that it grew by back to the pools
}

// serveResizes has the machine resized when the job's tenant asks, until stop. A request that is under way then is given up: the machine ends,
// and with it what it has grown by.
func (a *attempt) serveResizes(ctx context.Context, m *machine) (stop func()) {
	r, ok := m.Machine.(vmm.Resizer)
	if !ok || a.w.cfg.Resizes == nil || a.spec.Headroom == (jobs.Resources{}) {
		return func() {}
	}
	s := &sizing{a: a, m: m, vmm: r, now: a.spec.Resources, most: a.spec.Resources, ungrown: func() {}}
	ctx, giveUp := context.WithCancel(ctx)
	unserve, err := a.w.cfg.Resizes.ServeResizes(ctx, a.lease.Tenant, a.lease.Job, s.resize)
	if err != nil { // the job runs all the same
		giveUp()
		zerolog.Ctx(ctx).Warn().Err(err).Msg("nobody can resize this job's machine")
		return func() {}
	}
	a.ungrow = func() {
		s.ungrown()
		a.w.cap.release(minus(s.most, a.spec.Resources))
	}
	return func() {
		giveUp()
		unserve()
	}
}

// resize answers one request. What the machine grows by is taken from the worker's capacity before, and what it has no more given back after.
func (s *sizing) resize(ctx context.Context, r jobs.ResizeRequest) (jobs.Resources, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	want, err := s.wanted(r)
	if err != nil {
		return s.now, err
	}
	larger := largest(want, s.most)
	if !s.a.w.cap.tryTake(minus(larger, s.most)) {
		return s.now, &jobs.Error{Code: jobs.CodeNoCapacity, Message: "the worker has no room for so large a machine now", RetryAfterMS: 1000}
	}
	s.count(larger)
	if err := s.change(ctx, want); err != nil {
		err = errors.Join(err, s.undo(ctx))
		zerolog.Ctx(ctx).Warn().Err(err).Str("machine", s.m.ID()).Msg("resize")
		return s.now, &jobs.Error{Code: jobs.CodeUnsupported, Message: "the machine could not be resized: " + said(err.Error())}
	}
	s.now = want
	s.shrunk()
	return want, nil
}

// count notes what the machine may have, which has been taken.
func (s *sizing) count(most jobs.Resources) {
	s.most = most
	s.ungrown()
	s.ungrown = s.a.w.pools.demand(most.MemoryMiB - s.a.spec.Resources.MemoryMiB)
}

// shrunk notes that the machine has no more than it has now.
func (s *sizing) shrunk() {
	s.a.w.cap.release(minus(s.most, s.now))
	s.count(s.now)
}

// wanted is what a request asks for, within what the machine can have.
func (s *sizing) wanted(r jobs.ResizeRequest) (jobs.Resources, error) {
	least, most := s.a.spec.Resources, s.a.spec.Headroom
	want := s.now
	if r.VCPUs > 0 {
		want.VCPUs = r.VCPUs
	}
	if r.MemoryMiB > 0 {
		want.MemoryMiB = r.MemoryMiB
		if step := headroom(least, jobs.Resources{MemoryMiB: r.MemoryMiB}).MemoryMiB; step > 0 {
			want.MemoryMiB = step
		}
	}
	var faults []jobs.Fault
	check := func(path string, v, least, most int) {
		if v < least || v > max(least, most) {
			faults = append(faults, jobs.Fault{Path: path, Message: fmt.Sprintf("%d, and this machine can have %d to %d", v, least, max(least, most))})
		}
	}
	check("vcpus", want.VCPUs, least.VCPUs, most.VCPUs)
	check("memory_mib", want.MemoryMiB, least.MemoryMiB, most.MemoryMiB)
	if len(faults) > 0 {
		return want, &jobs.Error{Code: jobs.CodeInvalid, Message: "invalid request", Faults: faults}
	}
	return want, nil
}

// change has the machine grow before its guest uses more, and the guest use less before the machine shrinks.
func (s *sizing) change(ctx context.Context, want jobs.Resources) error {
	larger := largest(want, s.now)
	if err := s.vmm.Resize(ctx, larger.VCPUs, larger.MemoryMiB); err != nil { // also where it may have that already, and more
		return err
	}
	if err := s.guest(ctx, want); err != nil || want == larger {
		return err
	}
	return s.vmm.Resize(ctx, want.VCPUs, want.MemoryMiB)
}

// undo has the machine be as it was, unless ctx is over: then it ends. One that does not let go of what it was given keeps it, in the books too.
func (s *sizing) undo(ctx context.Context) error {
	err := s.guest(ctx, s.now)
	if resizeErr := s.vmm.Resize(ctx, s.now.VCPUs, s.now.MemoryMiB); resizeErr != nil {
		return errors.Join(err, resizeErr)
	}
	s.shrunk()
	return err
}

// guestWithin is how long a guest may take to answer: twice what its agent gives its kernel (guestagent). What runs in it may have silenced it.
const guestWithin = 20 * time.Second

var errGuestUnsized = fmt.Errorf("the guest has not answered for %v", guestWithin)

// guest has the guest use what it shall have.
func (s *sizing) guest(ctx context.Context, want jobs.Resources) error {
	ctx, cancel := context.WithTimeoutCause(ctx, guestWithin, errGuestUnsized)
	defer cancel()
	uses, err := s.m.agent.Resize(ctx, wire.Resize{VCPUs: want.VCPUs, PluggedMiB: want.MemoryMiB - s.a.spec.Resources.MemoryMiB})
	if err != nil {
		return err
	}
	if uses.VCPUs != want.VCPUs || uses.PluggedMiB != want.MemoryMiB-s.a.spec.Resources.MemoryMiB {
		return fmt.Errorf("the guest uses %d processors and %d MiB of plugged memory", uses.VCPUs, uses.PluggedMiB)
	}
	return nil
}

func largest(a, b jobs.Resources) jobs.Resources {
	return jobs.Resources{VCPUs: max(a.VCPUs, b.VCPUs), MemoryMiB: max(a.MemoryMiB, b.MemoryMiB)}
}

func minus(a, b jobs.Resources) jobs.Resources {
	return jobs.Resources{VCPUs: a.VCPUs - b.VCPUs, MemoryMiB: a.MemoryMiB - b.MemoryMiB}
}
