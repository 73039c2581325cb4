// Package hostnet gives machines their networks: each a slot of its own, a network namespace with a tap for the machine's card, rules that
// deny what nobody allowed, a DNS server that answers what the policy lets be known, and ports of the host that lead to ports of the
// guest. Slots are made before anybody asks. Linux and root are needed; docs/networking.md says how it behaves.
//
// It imports nothing of this module: jobs' policies and machines' cards are put together with it by whoever wires them.
package hostnet

import (
	"errors"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// GuestMAC and HostMAC are the same in every slot, because clones of one template have them in their memory: the guest's card (it must be
// the one that VMMs give their guests) and the tap, which is the guest's gateway.
const (
	GuestMAC = "02:fc:00:00:00:05"
	HostMAC  = "02:fc:00:00:00:06"
)

// Config says how a host's machines are connected. Its zero value is what most hosts want.
type Config struct {
	// StateDir is where the workers of one network namespace agree on who has which slot, and find what those that died left; a directory
	// below /run/paddock/net that is named for the namespace where empty. It must not outlive a boot.
	StateDir string
	// Netns is the path of the network namespace that slots are connected to, and DNS is asked from; the
	// calling process's where empty.
	Netns string
	// Slots is how many slots are kept ready; 4 where 0. MaxSlots bounds those that are ready or taken on this host, by all of its
	// workers; 1024 where 0.
	Slots, MaxSlots int
	// Range has the addresses between host and slots, two for each; 100.96.0.0/16 where invalid. The host must not use it for anything
	// else. The workers of a host have the same.
	Range netip.Prefix
	// IPv6 lets policies ask for IPv6. Without it slots have none. Range6 is then what Range is for IPv4; a /64 of fd70:6164:6463::/48
	// where invalid.
	IPv6   bool
	Range6 netip.Prefix
	// Uplink is the interface that leads out; that of the default route where empty. Bridge replaces it, where set.
	Uplink string
	Bridge *Bridge
	// Upstream are the DNS servers to ask, in order; those of /etc/resolv.conf where empty.
	Upstream []netip.AddrPort
	// Allowed are private or reserved ranges that machines may reach nevertheless, as far as their policies let them; the host's own
	// addresses, other machines, link-local addresses and clouds' metadata services stay denied. Denied are further ranges that none may.
	Allowed, Denied []netip.Prefix
	// Bandwidth bounds what a machine sends, and what it receives, in bits per second; 0 is no bound. Connections bounds those that it
	// has at once; 2048 where 0.
	Bandwidth   uint64
	Connections uint32
	// MinPin is how long an address that a domain's answer named can be connected to, at least; 30 s where 0.
	MinPin time.Duration
	// Registerer takes the metrics; nil is none.
	Registerer prometheus.Registerer
}

// Bridge puts machines on a LAN: each slot has an address of CIDR on the operator's bridge, and inbound connections to it go to the guest.
type Bridge struct {
	// Name is of a bridge that exists. It is not changed, but for the slots' ports on it.
	Name string
	// CIDR is the LAN, Lease the part of it that machines get their addresses from, all of it where invalid; nobody else may hand those
	// out. Gateway is the LAN's, never leased.
	CIDR, Lease netip.Prefix
	Gateway     netip.Addr
	// Inbound lets the LAN connect to machines.
	Inbound bool
}

// Guest is what the guest's end of the tap has to be: the same in each slot, so that a template's memory may hold it.
type Guest struct {
	MAC     string
	MTU     int
	Address netip.Prefix // with the prefix of its link
	Gateway netip.Addr
	DNS     netip.Addr
	// Address6 and Gateway6 are invalid where the host offers no IPv6.
	Address6 netip.Prefix
	Gateway6 netip.Addr
}

// ErrClosed says that the host, or the slot, is closed.
var ErrClosed = errors.New("hostnet: closed")
