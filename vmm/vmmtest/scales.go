package vmmtest

import (
	"context"
	"sync"

	"github.com/paddockvm/paddock/vmm"
)

// Scales is a launcher whose processes can be weighed, and of which it tells what they weigh.
type Scales struct {
	vmm.Launcher

	mu     sync.Mutex
	weight map[string]vmm.Weight
	refuse error
}

// Launch implements vmm.Launcher.
func (s *Scales) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	p, err := s.Launcher.Launch(ctx, c)
	if err != nil {
		return nil, err
	}
	w := &weighed{Process: p, s: s, name: c.Name}
	return w, w.Weigh(c.Share.Weight)
}

// Refuse has no weight change from now on; nil lets them.
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

type weighed struct {
	vmm.Process
	s    *Scales
	name string
}

var _ vmm.Weigher = (*weighed)(nil)

func (w *weighed) Weigh(to vmm.Weight) error {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.s.refuse != nil {
		return w.s.refuse
	}
	if w.s.weight == nil {
		w.s.weight = map[string]vmm.Weight{}
	}
	w.s.weight[w.name] = to
	return nil
}
