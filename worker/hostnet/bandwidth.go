package hostnet

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// shape bounds what is sent on an interface: a token bucket (tc-tbf(8)). On the tap that is what the guest receives, on the way out what
// it sends; both delay before they drop.
func shape(nl *netlink.Handle, l netlink.Link, bitsPerSecond uint64) error {
	if bitsPerSecond == 0 {
		return nil
	}
	rate := bitsPerSecond / 8
	burst := bucket(rate)
	q := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate,
		Buffer:     netlink.Xmittime(rate, burst),
		Limit:      burst + uint32(min(rate/20, 16<<20)), // 50 ms of it wait
	}
	if err := nl.QdiscAdd(q); err != nil {
		return fmt.Errorf("bound %s to %d bit/s: %w", l.Attrs().Name, bitsPerSecond, err)
	}
	return nil
}

// bucket is how many bytes may go at once: 10 ms of the rate, which timers are good for, and a whole segment of a card that segments.
func bucket(rate uint64) uint32 { return uint32(min(max(rate/100, 64<<10), 16<<20)) }
