package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Host makes and keeps the slots of one host.
type Host struct {
	cfg     Config
	ns      *os.File // where the host's ends of slots are
	locks   *locks
	mtu     int
	own     []netip.Addr // the host's among those that a bridge's slots are given
	metrics *metrics

	ready   chan *Slot
	waiting atomic.Int64  // in ready, or in the hands of fill
	free    chan struct{} // has one where a slot has been given back
	ended   chan struct{} // closed when Run takes no more
	asking  chan struct{} // one for each question that DNS servers are asked, but for ownQuestions of a slot

	mu       sync.Mutex
	slots    map[*Slot]bool
	gone     chan struct{} // closed, once set, when slots is empty
	problems []Problem
	never    []netip.Prefix // what no machine reaches, whatever anybody allows: the host's own addresses, other machines
}

// New checks that slots can be made here, and removes what workers that died left of theirs. Run has to be called, and ends it.
func New(ctx context.Context, cfg Config) (*Host, error) {
	h, err := open(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("hostnet: %w", err)
	}
	return h, nil
}

func open(ctx context.Context, cfg Config) (_ *Host, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root for network namespaces")
	}
	cfg, err = cfg.complete()
	if err != nil {
		return nil, err
	}
	h := &Host{
		cfg: cfg, slots: map[*Slot]bool{}, ready: make(chan *Slot, max(cfg.Slots-1, 0)), free: make(chan struct{}, 1), ended: make(chan struct{}),
		asking: make(chan struct{}, questionsOut),
	}
	if h.ns, err = openNetns(cfg.Netns); err != nil {
		return nil, fmt.Errorf("open the host's network namespace: %w", err)
	}
	defer func() {
		if err != nil {
			_ = h.ns.Close() // was only read
		}
	}()
	if h.cfg.StateDir == "" {
		if h.cfg.StateDir, err = stateDir(h.ns); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Join(h.cfg.StateDir, "netns"), 0o700); err != nil {
		return nil, err
	}
	if h.locks, err = openLocks(h.cfg.StateDir, cfg.MaxSlots); err != nil {
		return nil, err
	}
	if err := h.begin(ctx); err != nil {
		return nil, errors.Join(err, h.locks.leave(ctx, func(alone bool) error {
			if !alone {
				return nil
			}
			return h.dropHostRules()
		}))
	}
	h.metrics = newMetrics(h, cfg.Registerer)
	return h, nil
}

// stateDir is what the workers of a network namespace share, named for it.
func stateDir(ns *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &st); err != nil {
		return "", err
	}
	return filepath.Join("/run/paddock/net", strconv.FormatUint(st.Ino, 10)), nil
}

func (h *Host) begin(ctx context.Context) error {
	if err := h.uplink(); err != nil {
		return err
	}
	if _, err := h.refreshNever(); err != nil {
		return err
	}
	err := h.locks.change(ctx, func(alone bool) error {
		ns, err := h.ns.Stat()
		if err != nil {
			return err
		}
		text := fmt.Sprintf("%s, its own addresses there %s, network namespace %d", h.cfg.common(), h.own, ns.Sys().(*syscall.Stat_t).Ino)
		if err := h.locks.common(alone, text); err != nil {
			return err
		}
		if alone { // nobody has any
			if err := os.RemoveAll(filepath.Join(h.cfg.StateDir, "leases")); err != nil {
				return err
			}
		}
		return h.hostRules()
	})
	if err != nil {
		return err
	}
	if err := h.sweep(ctx); err != nil {
		return err
	}
	return h.look(ctx)
}

// netlink gives a handle into a namespace; the caller closes it.
func handle(ns *os.File) (*netlink.Handle, error) {
	return netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
}

// uplink finds the way out, what fits through it, and lets answers in by it: an interface forwards what comes in, where it is told so.
func (h *Host) uplink() error {
	nl, err := handle(h.ns)
	if err != nil {
		return err
	}
	defer nl.Close()
	name := h.cfg.Uplink
	if h.cfg.Bridge != nil {
		name = h.cfg.Bridge.Name
	}
	if name == "" {
		if name, err = defaultRoute(nl); err != nil {
			return err
		}
	}
	l, err := nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find uplink %s: %w", name, err)
	}
	if h.cfg.Bridge != nil && l.Type() != "bridge" {
		return fmt.Errorf("%s is no bridge", name)
	}
	if h.mtu == 0 {
		h.mtu = min(l.Attrs().MTU, 1500)
	}
	if h.cfg.Bridge != nil {
		return nil
	}
	return within(int(h.ns.Fd()), func() error {
		if h.cfg.IPv6 { // with it the host no longer learns routes by itself, except where accept_ra is 2
			if err := sysctl("ipv6/conf/all/forwarding", "1"); err != nil {
				return err
			}
		}
		return sysctl("ipv4/conf/"+name+"/forwarding", "1")
	})
}

func defaultRoute(nl *netlink.Handle) (string, error) {
	routes, err := whole(func() ([]netlink.Route, error) { return nl.RouteList(nil, unix.AF_INET) })
	if err != nil {
		return "", fmt.Errorf("list the host's routes: %w", err)
	}
	slices.SortStableFunc(routes, func(a, b netlink.Route) int { return a.Priority - b.Priority })
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		index := r.LinkIndex
		if len(r.MultiPath) > 0 {
			index = r.MultiPath[0].LinkIndex
		}
		l, err := nl.LinkByIndex(index)
		if err != nil {
			return "", err
		}
		return l.Attrs().Name, nil
	}
	return "", errors.New("this host has no default route: say which interface leads out")
}

// refreshNever reads the host's own addresses, and tells whether what no machine may reach is other than before.
func (h *Host) refreshNever() (bool, error) {
	nl, err := handle(h.ns)
	if err != nil {
		return false, err
	}
	defer nl.Close()
	addrs, err := whole(func() ([]netlink.Addr, error) { return nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return false, fmt.Errorf("list the host's addresses: %w", err)
	}
	never := append(metadata(), h.cfg.Denied...)
	never = append(never, link, link6, h.cfg.Range, h.cfg.Range6)
	if h.cfg.Bridge != nil {
		never = append(never, h.cfg.Bridge.lease())
	}
	var own []netip.Addr
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		if b := h.cfg.Bridge; ok && b != nil && b.lease().Contains(ip) {
			own = append(own, ip)
		}
		if ok && !ip.IsLinkLocalUnicast() && !anyContains(never, ip) { // those are private, and each slot's link has one
			never = append(never, single(ip))
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.never == nil {
		h.own = own
	}
	if slices.Equal(never, h.never) {
		return false, nil
	}
	h.never = never
	return true, nil
}

// sweep removes the slots whose workers are gone.
func (h *Host) sweep(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(h.cfg.StateDir, "netns"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		i, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		free, err := lock(h.locks.slots, i, unix.F_WRLCK)
		if err != nil {
			return err
		}
		if !free {
			continue
		}
		if err := h.remove(i); err != nil {
			return fmt.Errorf("remove slot %d, whose worker is gone: %w", i, err)
		}
		if _, err := lock(h.locks.slots, i, unix.F_UNLCK); err != nil {
			return err
		}
		zerolog.Ctx(ctx).Info().Int("slot", i).Msg("a slot whose worker is gone was removed")
	}
	return nil
}

// Run keeps slots ready until ctx ends, closes those, and returns when those that were taken are closed too and nothing is left.
func (h *Host) Run(ctx context.Context) error {
	g, either := errgroup.WithContext(ctx)
	g.Go(func() error { h.fill(either); return nil })
	g.Go(func() error { return h.watch(either) })
	err := g.Wait()
	close(h.ended)
	err = errors.Join(err, h.drain())
	<-h.allGone()
	last, done := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer done()
	err = errors.Join(err, h.locks.leave(last, func(alone bool) error {
		if !alone {
			return nil
		}
		return h.dropHostRules()
	}), h.ns.Close())
	h.metrics.unregister()
	if err != nil {
		return fmt.Errorf("hostnet: %w", err)
	}
	return nil
}

// drain closes the slots that nobody took.
func (h *Host) drain() (err error) {
	for {
		select {
		case s := <-h.ready:
			h.waiting.Add(-1)
			err = errors.Join(err, s.Close())
		default:
			return err
		}
	}
}

// fill makes slots, one after the other: one takes some milliseconds.
func (h *Host) fill(ctx context.Context) {
	wait := 100 * time.Millisecond
	for ctx.Err() == nil {
		s, err := h.create(ctx)
		if err == nil {
			wait = 100 * time.Millisecond
			h.waiting.Add(1)
			select {
			case h.ready <- s:
			case <-ctx.Done():
				h.waiting.Add(-1)
				if err := s.Close(); err != nil {
					zerolog.Ctx(ctx).Error().Err(err).Msg("a network slot could not be removed")
				}
			}
			continue
		}
		if ctx.Err() == nil && !errors.Is(err, errAllUsed) {
			zerolog.Ctx(ctx).Error().Err(err).Msg("a network slot could not be made")
		}
		select {
		case <-h.free:
		case <-time.After(wait): // other workers give slots back without a word
		case <-ctx.Done():
		}
		wait = min(2*wait, 5*time.Second)
	}
}

// Take gives a slot to one machine, waiting where none is ready. It is denied everything until Allow. The caller closes it.
func (h *Host) Take(ctx context.Context) (*Slot, error) {
	begun := time.Now()
	select {
	case s := <-h.ready:
		h.waiting.Add(-1)
		h.metrics.taken.Observe(time.Since(begun).Seconds())
		return s, nil
	case <-h.ended:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, fmt.Errorf("hostnet: wait for a slot: %w", context.Cause(ctx))
	}
}

// Ready is how many slots Take gives at once.
func (h *Host) Ready() int { return int(h.waiting.Load()) }

// Problems gives what on this host keeps machines from being reached or from reaching what they may.
func (h *Host) Problems() []Problem {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.problems)
}

func (h *Host) add(s *Slot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slots[s] = true
}

func (h *Host) forget(s *Slot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.slots, s)
	if len(h.slots) == 0 && h.gone != nil {
		close(h.gone)
		h.gone = nil
	}
	select {
	case h.free <- struct{}{}:
	default:
	}
}

func (h *Host) allGone() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	gone := make(chan struct{})
	if len(h.slots) == 0 {
		close(gone)
	} else {
		h.gone = gone
	}
	return gone
}

// watch keeps up with what others do to the host: its addresses, which the kernel tells, and its rules, which are looked at.
func (h *Host) watch(ctx context.Context) error {
	changed, stop := make(chan netlink.AddrUpdate), make(chan struct{})
	at := netns.NsHandle(h.ns.Fd())
	err := netlink.AddrSubscribeWithOptions(changed, stop, netlink.AddrSubscribeOptions{Namespace: &at})
	if err != nil {
		return fmt.Errorf("listen to the host's addresses: %w", err)
	}
	defer func() {
		close(stop)
		for range changed { // its goroutine sends what it has, and closes it
		}
	}()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	open := changed
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-open:
			if !ok {
				open = nil // the kernel had more to tell than fits: the next look finds it
				continue
			}
			h.addressesChanged(ctx)
		case <-tick.C:
			h.addressesChanged(ctx)
			if err := h.look(ctx); err != nil {
				zerolog.Ctx(ctx).Error().Err(err).Msg("the host's firewall could not be looked at")
			}
		}
	}
}

// lookEvery is how long a firewall that has been loaded anew can keep machines from the network.
const lookEvery = 5 * time.Second

func (h *Host) addressesChanged(ctx context.Context) {
	changed, err := h.refreshNever()
	if err != nil {
		zerolog.Ctx(ctx).Error().Err(err).Msg("the host's addresses could not be listed")
	}
	if !changed {
		return
	}
	for _, s := range h.live() {
		if err := s.refreshNever(ctx); err != nil && !errors.Is(err, ErrClosed) {
			zerolog.Ctx(ctx).Error().Err(err).Int("slot", s.index).Msg("a slot was not told of the host's new address")
		}
	}
}

func (h *Host) live() []*Slot {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := make([]*Slot, 0, len(h.slots))
	for s := range h.slots {
		l = append(l, s)
	}
	return l
}
