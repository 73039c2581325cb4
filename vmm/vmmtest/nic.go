package vmmtest

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/vmm"
)

// networkCard tries machines with a network card, which needs Command testguest in them.
func (s suite) networkCard(t *testing.T) {
	guest, ok := s.Guest.(TestGuest)
	if !ok || s.Boot.Kernel == "" {
		t.Skip("the driver does not boot, or its guest is another")
	}
	if got, err := guest.Ask(deadline(t), s.Machine(t), "nics"); err != nil || got != "" {
		t.Errorf("a machine without a card has %q, %v", got, err)
	}
	with := s.Boot
	with.NIC = true
	s.cardAttached(t, with)

	booted := NewWire(t)
	s.Template = buildWith(t, s.Driver, with, booted.Attach(), guest)
	if r, ok := s.Driver.(vmm.Releaser); ok {
		t.Cleanup(func() { must(t, r.Release(s.Template.Dir)) })
	}
	if _, err := s.Driver.Prepare(deadline(t), s.Template, vmm.Attach{}); err == nil {
		t.Error("a clone with a card was prepared without a tap")
	}
	a, other := NewWire(t), NewWire(t)
	a.announced, other.announced = s.Announces, s.Announces
	m, n := s.cloneOn(t, a), s.cloneOn(t, other)
	if got, err := guest.Ask(deadline(t), m, "nics"); err != nil || got != vmm.GuestMAC {
		t.Errorf("cards: %q, %v", got, err)
	}
	// A clone that nobody has asked for anything keeps silent: it does not tell of itself as a machine that was moved does.
	if frame, err := a.Receive(300 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a clone sent by itself: %x, %v", frame, err)
	}
	frames(t, guest, m, a)
	frames(t, guest, n, other)
	if frame, err := a.Receive(10 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the other machine's frame: %x, %v", frame, err)
	}
}

// cardAttached tries what does not fit together; nothing is started then.
func (s suite) cardAttached(t *testing.T, with vmm.Boot) {
	t.Helper()
	w := NewWire(t)
	null, err := os.Open(os.DevNull)
	must(t, err)
	defer null.Close()
	for name, c := range map[string]struct {
		boot   vmm.Boot
		attach vmm.Attach
	}{
		"a card without a tap": {with, vmm.Attach{}},
		"a tap without a card": {s.Boot, w.Attach()},
		"a tap that is none":   {with, vmm.Attach{Tap: null}},
	} {
		if m, err := s.Driver.Boot(deadline(t), c.boot, c.attach); err == nil {
			m.Close()
			t.Errorf("boot with %s", name)
		}
	}
	if p, err := s.Driver.Prepare(deadline(t), s.Template, w.Attach()); err == nil {
		p.Close()
		t.Error("prepare with a tap without a card")
	}
	if _, err := w.Tap.Stat(); err != nil {
		t.Errorf("the caller's tap: %v", err)
	}
}

func (s suite) cloneOn(t *testing.T, w *Wire) vmm.Machine {
	t.Helper()
	p, err := s.Driver.Prepare(deadline(t), s.Template, w.Attach())
	must(t, err)
	m, err := p.Restore(deadline(t))
	must(t, err)
	t.Cleanup(func() { must(t, m.Close()) })
	return m
}

// frames sends some each way, small and large.
func frames(t *testing.T, guest TestGuest, m vmm.Machine, w *Wire) {
	t.Helper()
	must(t, guest.Do(deadline(t), m, "frame-listen"))
	for _, payload := range []string{strings.Repeat("to the guest", 4), strings.Repeat("x", 1500)} {
		sent := Frame(true, payload)
		must(t, w.Send(sent))
		got, err := guest.Ask(deadline(t), m, "frame-get")
		must(t, err)
		if got != hex.EncodeToString(sent) {
			t.Errorf("the guest got %s of a frame of %d bytes", got, len(sent))
		}
		back := Frame(false, payload)
		must(t, guest.Do(deadline(t), m, "frame-send "+hex.EncodeToString(back)))
		arrived, err := w.Receive(limit)
		must(t, err)
		if !bytes.Equal(arrived, back) {
			t.Errorf("%x arrived", arrived)
		}
	}
}
