package soak_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/paddockvm/paddock/vmm"
)

// steps of a machine's life, at each of which it may be killed.
const (
	duringPrepare = iota
	duringRestore
	duringIntroduction
	duringRun
	duringClose
	never
	stepsOfLife
)

var stepNames = [stepsOfLife]string{"in prepare", "in restore", "in its introduction", "in run", "in close", "never"}

// result is how a machine fared: whether its program ran, and whether something was done to it.
type result struct{ ran, hit bool }

// tally counts machines by the step at which they were to be hit.
type tally struct {
	mu    sync.Mutex
	steps [stepsOfLife]struct{ aimed, hit, ran int }
}

func (c *tally) add(step int, r result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.steps[step]
	s.aimed++
	if r.hit {
		s.hit++
	}
	if r.ran {
		s.ran++
	}
}

func (c *tally) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []string
	for step, s := range c.steps {
		all = append(all, fmt.Sprintf("%s %d of %d (%d ran a program)", stepNames[step], s.hit, s.aimed, s.ran))
	}
	return "machines hit: " + strings.Join(all, ", ")
}

// victim is a machine to which something may be done behind its driver's back.
type victim struct {
	cancel context.CancelFunc // ends the context of its driver's calls

	mu     sync.Mutex
	vmm    vmm.Process // nil until it is launched
	doomed bool        // it is killed as soon as it is launched
	hit    bool
}

// victimKey is under which a context has its victim.
type victimKey struct{}

// watched is a launcher that tells victims of their VMMs.
type watched struct{ vmm.Launcher }

func (w watched) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	p, err := w.Launcher.Launch(ctx, c)
	if v, ok := ctx.Value(victimKey{}).(*victim); ok && err == nil {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.vmm = p; v.doomed {
			v.kill()
		}
	}
	return p, err
}

// shoot kills the VMM as an out-of-memory killer would: now, or when there is one.
func (v *victim) shoot() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.doomed = v.vmm == nil; !v.doomed {
		v.kill()
	}
}

// kill wants mu.
func (v *victim) kill() {
	select {
	case <-v.vmm.Done(): // there is nobody left to kill
	default:
		v.hit = true
		_ = syscall.Kill(v.vmm.PID(), syscall.SIGKILL)
	}
}

// abandon ends the context.
func (v *victim) abandon() {
	v.mu.Lock()
	v.hit = true
	v.mu.Unlock()
	v.cancel()
}

func (v *victim) wasHit() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.hit
}

// excuse forgives a failure where something was done to the machine.
func (v *victim) excuse(err error) error {
	if v.wasHit() {
		return nil
	}
	return err
}

// hurt is what happens to a machine during a step of its life, until stop is called.
type hurt func(step int, v *victim) (stop func())

// measure does nothing but to note how long the steps take.
func (h *host) measure(step int, _ *victim) (stop func()) {
	start := time.Now()
	return func() { h.took[step] = time.Since(start) }
}

// attack is a kill of the VMM, or the end of the context, at a step.
type attack struct {
	step     int
	abandons bool
	// wait is from the step's beginning. None is at once, or in prepare as soon as there is a VMM: that hits.
	wait time.Duration
}

// violence is an attack at a moment that is chosen by chance. It may miss, where the step is over before.
func (h *host) violence(step int, r *rand.Rand) attack {
	a := attack{step: step, wait: time.Duration(1 + r.Float64()*1.3*float64(h.took[step]))}
	a.abandons = step != duringClose && r.IntN(2) == 0 // closing has no context
	return a
}

func (a attack) hurt(step int, v *victim) (stop func()) {
	if step != a.step {
		return func() {}
	}
	if a.wait == 0 {
		v.shoot()
		return func() {}
	}
	done := make(chan struct{})
	timer := time.AfterFunc(a.wait, func() {
		defer close(done)
		if a.abandons {
			v.abandon()
		} else {
			v.shoot()
		}
	})
	return func() {
		if !timer.Stop() {
			<-done
		}
	}
}
