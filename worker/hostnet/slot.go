package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"github.com/google/nftables"
)

// Slot is one machine's network.
type Slot struct {
	host   *Host
	index  int
	ns     *os.File
	tap    *os.File
	policy atomic.Pointer[allowed]
	server *server

	changing chan struct{} // whoever has put one in may change the slot's rules, by nft
	nft      *nftables.Conn
	life     context.Context //nolint:containedctx // ends when Close begins; what runs until then has no other
	end      context.CancelFunc
	once     sync.Once
	err      error
}

// allowed is a policy in force. The generation marks connections that were made under it.
type allowed struct {
	Policy
	generation uint32
}

// Tap is attached to the slot's tap interface: IFF_TAP, IFF_NO_PI and IFF_VNET_HDR, non-blocking, close-on-exec (kernel:
// Documentation/networking/tuntap.rst). Whoever holds it is the guest's card, in whatever namespace; the slot keeps it open until Close.
func (s *Slot) Tap() *os.File { return s.tap }

// Guest is what the guest has to configure.
func (s *Slot) Guest() Guest {
	g := Guest{
		MAC: GuestMAC, MTU: s.host.mtu, Address: netip.PrefixFrom(guestAddr(), link.Bits()), Gateway: gatewayAddr(), DNS: gatewayAddr(),
	}
	if s.host.cfg.IPv6 {
		g.Address6, g.Gateway6 = netip.PrefixFrom(guestAddr6(), link6.Bits()), gatewayAddr6()
	}
	return g
}

// Address is the machine's on the LAN where the host bridges; else invalid: nobody can connect to a machine, but through Dial.
func (s *Slot) Address() netip.Addr {
	if s.host.cfg.Bridge == nil {
		return netip.Addr{}
	}
	return s.host.leased(s.index)
}

// Allow replaces what the machine may do, all at once. What it had connected to and may no longer is cut off.
func (s *Slot) Allow(ctx context.Context, p Policy) error {
	err := p.check()
	if err == nil {
		err = s.host.offers(p)
	}
	if err == nil {
		err = s.change(ctx, func() error {
			next := &allowed{p, s.policy.Load().generation + 1}
			if err := s.applyPolicy(next); err != nil {
				return err
			}
			s.policy.Store(next)
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("hostnet: allow %s: %w", p.Kind, err)
	}
	return nil
}

// offers tells what of a policy this host never gives.
func (h *Host) offers(p Policy) error {
	if p.IPv6 && !h.cfg.IPv6 {
		return errors.New("this host offers no IPv6")
	}
	h.mu.Lock()
	never := h.never
	h.mu.Unlock()
	for _, prefix := range p.Prefixes {
		if covers(never, prefix) || covers(private(), prefix) && !covers(h.cfg.Allowed, prefix) && !overlaps(h.cfg.Allowed, prefix) {
			return fmt.Errorf("%s is always denied: %w", prefix, ErrDenied)
		}
	}
	return nil
}

// change runs f, which changes the slot's rules, while no one else does. After an error the socket goes: there may be something in it.
func (s *Slot) change(ctx context.Context, f func() error) error {
	select {
	case s.changing <- struct{}{}:
	case <-s.life.Done():
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.changing }()
	select {
	case <-s.life.Done(): // both were ready
		return ErrClosed
	default:
	}
	err := f()
	if err != nil {
		err = errors.Join(err, s.hangUp())
	}
	return err
}

// Close destroys the slot, and cuts every connection through it; the machine has ended before. It takes some tens of milliseconds, in
// which the kernel waits until nobody looks at the links any more. Idempotent.
func (s *Slot) Close() error {
	s.once.Do(func() {
		s.end()
		s.changing <- struct{}{} // and stays: nothing is changed any more
		s.err = s.destroy()
		if s.err != nil {
			s.err = fmt.Errorf("hostnet: remove slot %d: %w", s.index, s.err)
		}
	})
	return s.err
}

func (s *Slot) destroy() error {
	err := s.server.close()
	s.host.metrics.denied(s)
	err = errors.Join(err, s.hangUp())
	if s.tap != nil {
		err = errors.Join(err, s.tap.Close())
	}
	if s.ns != nil {
		err = errors.Join(err, s.ns.Close())
	}
	err = errors.Join(err, s.host.remove(s.index))
	s.host.locks.giveIndex(s.index) // where something is left, who has the index next removes it first
	s.host.forget(s)
	return err
}
