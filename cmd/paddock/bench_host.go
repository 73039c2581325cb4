package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker/hostnet"
)

func benchNetwork() *cobra.Command {
	c := &cobra.Command{
		Use: "network", Short: "Take a place in a network from the pool, and open it", Args: cobra.NoArgs,
		Long: "In a network namespace that nothing else is in. Taking comes before a machine's VMM is started, opening when a job has it.",
	}
	n := c.Flags().IntP("slots", "n", 200, "how many are taken, one after the other")
	_ = c.Flags().String("image-dir", "", "not used")
	_ = c.Flags().MarkHidden("image-dir") // bench.sh gives it to all
	out := benchOutput(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		r := newReport("network")
		r.Settings = map[string]any{"slots": *n}
		if err := measureSlots(zerolog.Nop().WithContext(c.Context()), r, *n); err != nil {
			return err
		}
		return r.print(c.OutOrStdout(), out())
	}
	return c
}

// measureSlots takes slots from a pool that is full each time, so that nobody waits for one to be made.
func measureSlots(ctx context.Context, r *benchReport, n int) (err error) {
	dir, err := os.MkdirTemp("", "pd-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ns, err := newNetns()
	if err != nil {
		return err
	}
	defer ns.Close()
	const pool = 4
	h, err := hostnet.New(ctx, hostnet.Config{
		StateDir: dir, Netns: fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), Slots: pool, Uplink: "lo",
		Upstream: []netip.AddrPort{netip.AddrPortFrom(netip.IPv6Loopback(), 53)}, // nobody asks
	})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- h.Run(running) }()
	defer func() { stop(); err = errors.Join(err, <-ended) }()
	for range n {
		for h.Ready() < pool {
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		start := time.Now()
		s, err := h.Take(ctx)
		if err != nil {
			return err
		}
		taken := time.Now()
		err = s.Allow(ctx, hostnet.Policy{Kind: hostnet.Internet})
		opened := time.Now()
		r.add("take ms", taken.Sub(start))
		r.add("take and open ms", opened.Sub(start))
		if err = errors.Join(err, s.Close()); err != nil {
			return err
		}
		r.add("close ms", time.Since(opened))
	}
	return nil
}

func benchJail() *cobra.Command {
	c := &cobra.Command{
		Use: "jail", Short: "Prepare a VMM in its jail, beside one that is a plain child, in the same run", Args: cobra.NoArgs,
		Long: "In turn, from the same template. A claim of a ready machine runs no code of the jail's.",
	}
	n := c.Flags().IntP("vmms", "n", 60, "VMMs of each kind")
	inLab(c, func(ctx context.Context, l *lab, r *benchReport, _ string) error {
		r.Settings["vmms"], r.Settings["degraded"] = *n, fmt.Sprint(l.caps.Degraded)
		return l.compareJail(ctx, r, *n)
	})
	return c
}

// compareJail prepares VMMs in turn, jailed and not.
func (l *lab) compareJail(ctx context.Context, r *benchReport, n int) (err error) {
	run := filepath.Join(l.dir, "plain")
	if err := os.Mkdir(run, 0o700); err != nil {
		return err
	}
	plain, _, closePlain, err := openDriver(ctx, labConfig(l.driver.Name(), run, "off"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closePlain()) }()
	for range n {
		jailed, err := l.prepareOne(ctx, r, "jailed", l.driver)
		if err != nil {
			return err
		}
		bare, err := l.prepareOne(ctx, r, "plain", plain)
		if err != nil {
			return err
		}
		r.add("added by the jail ms", jailed-bare)
	}
	return nil
}

// prepareOne prepares a VMM and ends it, and gives how long the first took.
func (l *lab) prepareOne(ctx context.Context, r *benchReport, name string, d vmm.Driver) (time.Duration, error) {
	start := time.Now()
	p, err := d.Prepare(ctx, l.template, vmm.Attach{})
	if err != nil {
		return 0, err
	}
	took := time.Since(start)
	r.add(name+": prepared ms", took)
	start = time.Now()
	err = p.Close()
	r.add(name+": gone ms", time.Since(start))
	return took, err
}
