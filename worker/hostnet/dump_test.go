package hostnet_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/paddockvm/paddock/worker/hostnet"
)

// A worker comes up on a host whose addresses change all the time, as they do where another one makes slots.
func TestNewOnABusyHost(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	nl := rtnl(t, l.host)
	defer nl.Close()
	lo, err := nl.LinkByName("lo")
	must(t, err)
	addr := func(a, b byte) *netlink.Addr {
		return &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(45, 10, a, b), Mask: net.CIDRMask(32, 32)}}
	}
	for i := range 1000 { // more than one message holds: between two of them a change is seen
		must(t, nl.AddrAdd(lo, addr(byte(100+i/250), byte(i%250))))
	}
	churn := rtnl(t, l.host)
	defer churn.Close()
	busy, stop := context.WithCancel(t.Context())
	var changes sync.WaitGroup
	defer changes.Wait()
	defer stop()
	changes.Go(func() {
		for busy.Err() == nil {
			if err := errors.Join(churn.AddrAdd(lo, addr(200, 1)), churn.AddrDel(lo, addr(200, 1))); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for end := time.Now().Add(time.Minute); ; {
		if _, err := nl.AddrList(nil, netlink.FAMILY_ALL); errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no list is interrupted: there is nothing to see here")
		}
	}
	cfg := l.config(t)
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		h, err := hostnet.New(ctx, cfg)
		must(t, err)
		cancel()
		must(t, h.Run(ctx))
	}
}

// A list that is interrupted for ever is an error, and so is any other, at once.
func TestListThatIsNeverWhole(t *testing.T) {
	asked := 0
	_, err := hostnet.Whole(func() ([]int, error) { asked++; return []int{1}, netlink.ErrDumpInterrupted })
	if !errors.Is(err, netlink.ErrDumpInterrupted) || asked < 2 {
		t.Errorf("%v, asked %d times", err, asked)
	}
	asked = 0
	other := errors.New("no")
	if _, err := hostnet.Whole(func() ([]int, error) { asked++; return nil, other }); !errors.Is(err, other) || asked != 1 {
		t.Errorf("%v, asked %d times", err, asked)
	}
}
