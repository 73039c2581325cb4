package qemu

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/hostfile"
)

// tapOf gives a descriptor of its own of the tap that a machine's network card leads to; nil where it has no card. A template and its clones
// must agree on what the card can leave to the host (TUNSETOFFLOAD), so that a tap is taken only if it is of the kind that vmm.Attach names.
func tapOf(b vmm.Boot, a vmm.Attach) (*os.File, error) {
	switch {
	case b.NIC && a.Tap == nil:
		return nil, errors.New("the machine has a network card, and no tap is attached")
	case !b.NIC && a.Tap != nil:
		return nil, errors.New("a tap is attached, and the machine has no network card")
	case !b.NIC:
		return nil, nil
	}
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlIfreq(int(a.Tap.Fd()), unix.TUNGETIFF, ifr); err != nil {
		return nil, fmt.Errorf("the attached descriptor is no tap's: %w", err)
	}
	const want = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if flags := ifr.Uint16(); flags&(want|unix.IFF_MULTI_QUEUE) != want {
		return nil, fmt.Errorf("the attached tap was made with %#x, want IFF_TAP, IFF_NO_PI and IFF_VNET_HDR (%#x)", flags, want)
	}
	return hostfile.Duplicate(a.Tap)
}

// nic is the machine's card. The descriptor is attached to its interface already, so that QEMU needs no right to the host's network, nor a
// network of its own. It has no boot ROM.
func (c *commandLine) nic(tap *os.File) {
	c.add("-netdev", fmt.Sprintf("tap,id=nic,fd=%d,vhost=off", c.file(tap)),
		"-device", "virtio-net-pci,netdev=nic,romfile=,mac="+vmm.GuestMAC,
		// A machine that was moved to another host would tell its switch, five times. A clone is new: nobody knows it elsewhere.
		"-global", "migration.announce-rounds=0")
}
