package hostnet

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumps is how often a list is asked for. One takes a millisecond or so, and a change has to fall into each of them.
const dumps = 100

// whole gives a list of the kernel's as it was at one moment. Where something changes while it is told, as it does when another worker makes
// a slot, the answer is marked as inconsistent, and who asked has to ask again (NLM_F_DUMP_INTR, Linux' Documentation/userspace-api/netlink/intro.rst).
func whole[T any](list func() ([]T, error)) (l []T, err error) {
	for range dumps {
		if l, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return l, err
		}
	}
	return nil, err
}
