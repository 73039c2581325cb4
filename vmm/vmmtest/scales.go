package vmmtest

import (
	"context"
	"slices"
	"sync"

	"github.com/paddockvm/paddock/vmm"
)

// Scales is a launcher whose processes can be weighed and bounded, and of which it tells what they weigh and are bound to.
type Scales struct {
	vmm.Launcher

	mu     sync.Mutex
	weight map[string]vmm.Weight
	bounds map[string][]int64
	refuse error
}

// Launch implements vmm.Launcher.
func (s *Scales) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	p, err := s.Launcher.Launch(ctx, c)
	if err != nil {
		return nil, err
	}
	w := &weighed{Process: p, s: s, name: c.Name}
	w.noted(c.Share.MemoryBytes)
	return w, w.Weigh(c.Share.Weight)
}

// Refuse has changes fail from now on, and be made in part, as a cgroup's files are written one by one; nil lets them be.
func (s *Scales) Refuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
}

// Weight is what a machine weighs.
func (s *Scales) Weight(machine string) vmm.Weight {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.weight[machine]
}

// Bounds are what a machine's memory was bounded to, one after the other.
func (s *Scales) Bounds(machine string) []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.bounds[machine])
}

type weighed struct {
	vmm.Process
	s    *Scales
	name string
}

var (
	_ vmm.Weigher = (*weighed)(nil)
	_ vmm.Bounder = (*weighed)(nil)
)

func (w *weighed) noted(bytes int64) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.s.bounds == nil {
		w.s.bounds = map[string][]int64{}
	}
	w.s.bounds[w.name] = append(w.s.bounds[w.name], bytes)
}

func (w *weighed) BoundMemory(bytes int64) error {
	w.s.mu.Lock()
	refuse := w.s.refuse
	w.s.mu.Unlock()
	if refuse != nil {
		return refuse
	}
	w.noted(bytes)
	return vmm.BoundMemory(w.Process, bytes)
}

func (w *weighed) Weigh(to vmm.Weight) error {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.s.weight == nil {
		w.s.weight = map[string]vmm.Weight{}
	}
	if w.s.refuse != nil {
		to.MemoryBytes = w.s.weight[w.name].MemoryBytes
	}
	w.s.weight[w.name] = to
	return w.s.refuse
}
