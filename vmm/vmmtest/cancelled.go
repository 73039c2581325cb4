package vmmtest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/paddockvm/paddock/vmm"
)

// This file interrupts drivers in every step.

func (s suite) cancelledBefore(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if p, err := s.Driver.Prepare(gone, s.Template, vmm.Attach{}); !errors.Is(err, context.Canceled) {
		t.Errorf("prepare: %v", err)
		if err == nil {
			p.Close()
		}
	}
	p, err := s.Driver.Prepare(deadline(t), s.Template, vmm.Attach{})
	must(t, err)
	if m, err := p.Restore(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("restore: %v", err)
		if err == nil {
			m.Close()
		}
	}
	must(t, p.Close())
	m := s.Machine(t)
	if conn, err := m.DialGuest(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("dial: %v", err)
		if err == nil {
			conn.Close()
		}
	}
	if got, err := s.Guest.Echo(deadline(t), m, []byte("x")); err != nil || string(got) != "x" {
		t.Errorf("echo after a cancelled dial: %q, %v", got, err)
	}
}

// cancelled calls f with ever longer times to live, from none to as much as it needs, so that it is interrupted in every step.
func cancelled(t *testing.T, f func(context.Context) error) {
	t.Helper()
	for ttl := time.Duration(0); ; ttl = ttl*5/4 + 300*time.Microsecond {
		ctx, cancel := context.WithTimeout(t.Context(), ttl)
		err := f(ctx)
		cancel()
		if err == nil {
			return
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("with %v to live: %v", ttl, err)
		}
		if ttl > limit {
			t.Fatalf("needs more than %v", ttl)
		}
	}
}

func (s suite) prepareCancelled(t *testing.T) {
	cancelled(t, func(ctx context.Context) error {
		p, err := s.Driver.Prepare(ctx, s.Template, vmm.Attach{})
		if err != nil {
			return err
		}
		return p.Close()
	})
}

func (s suite) restoreCancelled(t *testing.T) {
	cancelled(t, func(ctx context.Context) error {
		p, err := s.Driver.Prepare(deadline(t), s.Template, vmm.Attach{})
		must(t, err)
		m, err := p.Restore(ctx)
		if err != nil {
			must(t, p.Close())
			return err
		}
		return m.Close()
	})
}

func (s suite) bootCancelled(t *testing.T) {
	if s.Boot.Kernel == "" {
		t.Skip("the driver does not boot")
	}
	cancelled(t, func(ctx context.Context) error {
		m, err := s.Driver.Boot(ctx, s.Boot, vmm.Attach{})
		if err != nil {
			return err
		}
		return m.Close()
	})
}
