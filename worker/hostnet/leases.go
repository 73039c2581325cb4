package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// leased is the LAN's address of a slot: each index has its own, so that whoever has locked the index has the address. The network's own
// address, broadcast, the gateway's and the host's are left out.
func (h *Host) leased(i int) netip.Addr {
	b := h.cfg.Bridge
	at := uint64(i)
	for n := uint64(0); ; n++ {
		a := nth(b.lease(), n)
		if a == b.CIDR.Masked().Addr() || a == last(b.CIDR) || a == b.Gateway || slices.Contains(h.own, a) {
			continue
		}
		if at == 0 {
			return a
		}
		at--
	}
}

func (h *Host) leaseFile(i int) string {
	return filepath.Join(h.cfg.StateDir, "leases", h.leased(i).String())
}

// lease writes down that a slot has its address, for operators to read; the lock on the index is what gives it.
func (h *Host) lease(i int) error {
	if h.cfg.Bridge == nil {
		return nil
	}
	if !h.cfg.Bridge.lease().Contains(h.leased(i)) {
		return fmt.Errorf("slot %d finds no address in %s", i, h.cfg.Bridge.lease())
	}
	if err := os.MkdirAll(filepath.Join(h.cfg.StateDir, "leases"), 0o700); err != nil {
		return err
	}
	return os.WriteFile(h.leaseFile(i), []byte("slot "+strconv.Itoa(i)+" "+linkName(i)+"\n"), 0o600)
}

func (h *Host) unlease(i int) error {
	if h.cfg.Bridge == nil {
		return nil
	}
	if err := os.Remove(h.leaseFile(i)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
