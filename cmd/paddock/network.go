package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/netip"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker"
	"github.com/paddockvm/paddock/worker/forward"
	"github.com/paddockvm/paddock/worker/hostnet"
)

// networks puts the host's networks, a worker and its templates together.
type networks struct {
	host *hostnet.Host
	ipv6 bool
}

var _ worker.Networks = (*networks)(nil)

// openNetworks begins to keep networks for machines; nil where the configuration wants none, or leaves it to what the host can.
func openNetworks(ctx context.Context, c config, r prometheus.Registerer) (_ *networks, closeNetworks func() error, err error) {
	none := func() error { return nil }
	wanted := c.Network == "on" || c.Network == "auto"
	if !wanted || c.Driver == "hostproc" || c.Driver == "inproc" { // what is no machine has no card
		return nil, none, nil
	}
	cfg, err := networkConfig(c, r)
	if err != nil {
		return nil, nil, err
	}
	host, err := hostnet.New(ctx, cfg)
	if err != nil && c.Network == "auto" {
		zerolog.Ctx(ctx).Warn().Err(err).Msg("no job can have a network on this host; --network off says so for good")
		return nil, none, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w; --network off does without", err)
	}
	for _, p := range host.Problems() {
		zerolog.Ctx(ctx).Warn().Stringer("problem", p).Msg("machines' networks")
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- host.Run(running) }()
	return &networks{host, c.NetworkIPv6}, func() error { stop(); return <-ended }, nil
}

// networkConfig is the configuration in hostnet's terms.
func networkConfig(c config, r prometheus.Registerer) (hostnet.Config, error) {
	cfg := hostnet.Config{Uplink: c.NetworkUplink, IPv6: c.NetworkIPv6, Bandwidth: uint64(c.NetworkMbit) * 1_000_000, Registerer: r}
	var errs []error
	for key, into := range map[string]struct {
		from []string
		to   *[]netip.Prefix
	}{"network_allow": {c.NetworkAllow, &cfg.Allowed}, "network_deny": {c.NetworkDeny, &cfg.Denied}} {
		for _, text := range into.from {
			p, err := netip.ParsePrefix(text)
			errs = append(errs, ofKey(key, err))
			*into.to = append(*into.to, p)
		}
	}
	for _, text := range c.NetworkDNS {
		at, err := netip.ParseAddrPort(text)
		if addr, bare := netip.ParseAddr(text); err != nil && bare == nil {
			at, err = netip.AddrPortFrom(addr, 53), nil
		}
		errs = append(errs, ofKey("network_dns", err))
		cfg.Upstream = append(cfg.Upstream, at)
	}
	if c.NetworkRange != "" {
		var err error
		cfg.Range, err = netip.ParsePrefix(c.NetworkRange)
		errs = append(errs, ofKey("network_range", err))
	}
	if c.NetworkBridge != "" {
		b, err := bridgeOf(c)
		errs = append(errs, err)
		cfg.Bridge = b
	}
	return cfg, errors.Join(errs...)
}

// bridgeOf reads what machines on an operator's LAN need.
func bridgeOf(c config) (*hostnet.Bridge, error) {
	b := &hostnet.Bridge{Name: c.NetworkBridge, Inbound: c.NetworkInbound}
	var errs []error
	var err error
	b.CIDR, err = netip.ParsePrefix(c.NetworkCIDR)
	errs = append(errs, ofKey("network_cidr", err))
	b.Gateway, err = netip.ParseAddr(c.NetworkGateway)
	errs = append(errs, ofKey("network_gateway", err))
	if c.NetworkLease != "" {
		b.Lease, err = netip.ParsePrefix(c.NetworkLease)
		errs = append(errs, ofKey("network_lease", err))
	}
	return b, errors.Join(errs...)
}

func ofKey(key string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", key, err)
}

// Offers are the policies besides none, and IPv6 where the host has it for machines.
func (n *networks) Offers() []string {
	l := []string{jobs.NetworkInternet, jobs.NetworkAllowlist}
	if n.ipv6 {
		l = append(l, jobs.NetworkIPv6)
	}
	return l
}

// Take gives a machine a slot.
func (n *networks) Take(ctx context.Context) (worker.Network, error) {
	s, err := n.host.Take(ctx)
	if err != nil {
		return nil, err
	}
	return place{s}, nil
}

// tap gives a machine that becomes a template a slot from which nothing is reached.
func (n *networks) tap(ctx context.Context) (*os.File, func() error, error) {
	s, err := n.host.Take(ctx)
	if err != nil {
		return nil, nil, err
	}
	return s.Tap(), s.Close, nil
}

// place is a slot as a worker wants it.
type place struct{ *hostnet.Slot }

// Guest is the slot's other end in the agent's words.
func (p place) Guest() wire.Network {
	g := p.Slot.Guest()
	w := wire.Network{
		Address: g.Address.String(), Gateway: g.Gateway.String(), GatewayMAC: hostnet.HostMAC, DNS: []string{g.DNS.String()}, MTU: g.MTU,
	}
	if g.Address6.IsValid() {
		w.Address6, w.Gateway6 = g.Address6.String(), g.Gateway6.String()
	}
	return w
}

// Allow translates a job's policy.
func (p place) Allow(ctx context.Context, n jobs.Network) error {
	policy, err := hostnet.ParsePolicy(n.Policy, n.Allow)
	if err == nil {
		policy.IPv6 = n.IPv6
		err = p.Slot.Allow(ctx, policy)
	}
	if errors.Is(err, hostnet.ErrDenied) {
		return fmt.Errorf("%w: %w", worker.ErrNeverAllowed, err)
	}
	return err
}

// The address that VMMs give their guests' cards is the one that slots let speak.
var _ = map[bool]int{false: 0, vmm.GuestMAC == hostnet.GuestMAC: 1}

// openProxy begins to lead HTTP to machines' ports; nil where the configuration wants none, or no ports at all.
func openProxy(ctx context.Context, c config) (_ *forward.Proxy, closeProxy func() error, err error) {
	if c.Ports == "" || c.PortsHTTP == "" {
		return nil, func() error { return nil }, nil
	}
	l, err := net.Listen("tcp", c.PortsHTTP)
	if err != nil {
		return nil, nil, fmt.Errorf("ports_http: %w; another address is given with --ports-http", err)
	}
	bugs := zerolog.Ctx(ctx).With().Str("level", zerolog.LevelErrorValue).Str("part", "proxy to ports").Logger()
	p := forward.NewProxy(l, c.PortsDomain, log.New(bugs, "", 0))
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- p.Run(running) }()
	return p, func() error { stop(); return <-ended }, nil
}

// portsOf gives the listeners for machines' ports; nil where the configuration wants none.
func portsOf(c config) (func() (net.Listener, error), error) {
	if c.Ports == "" {
		return nil, nil
	}
	r, err := forward.ParseRange(c.Ports)
	if err != nil {
		return nil, fmt.Errorf("ports: %w", err)
	}
	return r.Listen, nil
}
