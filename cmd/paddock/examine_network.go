package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/worker/hostnet"
)

// examineNetwork makes a machine's place in a network of its own, and so changes nothing of this host's; then it looks at what of this host's
// would be in the way.
func examineNetwork(ctx context.Context) []finding {
	const off = "jobs can have no network"
	if os.Geteuid() != 0 {
		return []finding{{"network", degraded, off + ": network namespaces need root", "run as root"}}
	}
	took, err := trySlot(ctx)
	if err != nil {
		return []finding{{"network", degraded, off + ": " + err.Error(), "use a kernel with network namespaces, TUN, veth and nf_tables: modprobe tun veth nf_tables"}}
	}
	problems, err := hostnet.Examine(hostnet.Config{})
	if err != nil {
		return []finding{{"network", degraded, off + ": " + err.Error(), "use a kernel with nf_tables: modprobe nf_tables"}}
	}
	var list []finding
	for _, p := range problems {
		list = append(list, finding{"network", degraded, p.What, p.Remedy})
	}
	if len(list) > 0 {
		return list
	}
	return []finding{{"network", ok, fmt.Sprintf("a machine's place was made and opened in %s", took.Round(time.Millisecond)), ""}}
}

// trySlot makes a slot in a network namespace that nobody else has, opens it, and removes it.
func trySlot(ctx context.Context) (took time.Duration, err error) {
	dir, err := os.MkdirTemp("", "pd-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ns, err := newNetns()
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	h, err := hostnet.New(ctx, hostnet.Config{
		StateDir: dir, Netns: fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), Slots: 1, Uplink: "lo",
		Upstream: []netip.AddrPort{netip.AddrPortFrom(netip.IPv6Loopback(), 53)}, // nobody asks
	})
	if err != nil {
		return 0, err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- h.Run(running) }()
	defer func() { stop(); err = errors.Join(err, <-ended) }()
	within, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	start := time.Now()
	s, err := h.Take(within)
	if err != nil {
		return 0, err
	}
	err = s.Allow(within, hostnet.Policy{Kind: hostnet.Internet})
	return time.Since(start), errors.Join(err, s.Close())
}

// newNetns makes a network namespace that ends with its descriptor.
func newNetns() (f *os.File, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its namespace is nobody else's
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
	}()
	<-done
	if err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return f, nil
}
