package worker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
)

// machine is a restored machine whose agent has answered: a machine of its own, ready for one attempt.
type machine struct {
	vmm.Machine
	agent *client.Client
	net   Network // nil: it has no network card
	tmpl  vmm.Template
	// restored and ready are how long the VMM's restore and the agent's first answers took.
	restored, ready time.Duration
	closed          func() // gives its memory back to the pools; may be called again
}

// restore turns a prepared VMM into a machine. On error nothing is left of it.
func (p *pool) restore(ctx context.Context, v *spare) (_ *machine, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.ps.cfg.ReadyWithin)
	defer cancel()
	start := time.Now()
	m, err := v.Restore(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("restore: %w", err), leave(v.net))
	}
	restored := time.Now()
	agent, err := introduce(ctx, m, p.tmpl.Boot.Scratch != "", guestNetwork(v.net))
	ready := time.Since(restored)
	if err == nil && p.ps.cfg.Caps.Accel == "tcg" {
		if err = rehearse(ctx, agent); err != nil {
			_ = agent.Close()
		}
	}
	if err != nil {
		console := m.Console()
		_ = errors.Join(m.Close(), leave(v.net))
		return nil, fmt.Errorf("machine %s did not become ready: %w; console: %q", m.ID(), err, console)
	}
	return &machine{Machine: m, agent: agent, net: v.net, tmpl: p.tmpl, restored: restored.Sub(start), ready: ready}, nil
}

// introduce gives the clone its own identity, randomness and clock, in the agent's native code and order.
func introduce(ctx context.Context, m vmm.Machine, scratch bool, network *wire.Network) (*client.Client, error) {
	conn, err := m.DialGuest(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial guest: %w", err)
	}
	agent, err := client.Connect(ctx, conn)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("reach agent: %w", err)
	}
	random := make([]byte, 16+64+16)
	rand.Read(random) // never fails (crypto/rand)
	_, err = agent.Restore(ctx, wire.Restore{
		Epoch: random[:16], Entropy: random[16:80], MachineID: hex.EncodeToString(random[80:]),
		TimeUnixNS: time.Now().UnixNano(), Hostname: m.ID(), Scratch: scratch, Network: network,
	})
	if err != nil {
		_ = agent.Close()
		return nil, fmt.Errorf("after-restore: %w", err)
	}
	return agent, nil
}

// rehearse runs a program that does nothing, the way an attempt's will be run. An emulating VMM translates each piece of a guest's code
// when it first runs, in every process anew: what a rehearsal has run through is fast when the attempt comes, and the disk has the usual
// limit. The result does not count.
func rehearse(ctx context.Context, agent *client.Client) error {
	_, err := agent.Exec(ctx, wire.Exec{
		ID: "rehearsal", Argv: []string{"/bin/sh", "-c", "echo | cat"}, Env: []string{"PATH=/usr/bin:/bin"}, User: "sandbox",
		Limits: wire.ExecLimits{
			WallMS: 10_000, CPUMS: 10_000, MemoryBytes: 64 << 20, PIDs: 32, OutputBytes: 4096, FileBytes: 4096, OpenFiles: 64,
			DiskBytes: jobs.DefaultLimits().DiskBytes,
		},
	}, client.Streams{})
	var refused *wire.Error
	if errors.As(err, &refused) && refused.Kind == wire.ErrStart {
		return nil // an image without a shell
	}
	if err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	return nil
}

// Close ends the machine, its agent's connection first, so that nobody takes the machine's end for the agent's failure.
func (m *machine) Close() error {
	_ = m.agent.Close()
	err := errors.Join(m.Machine.Close(), leave(m.net))
	m.closed()
	return err
}

// over tells whether the machine has ended by itself.
func (m *machine) over() bool {
	select {
	case <-m.Done():
		return true
	case <-m.agent.Done():
		return true
	default:
		return false
	}
}

// blame gives the host's fault in place of what came of an attempt on it, where the host let the machine down: whatever the guest says then,
// success included, cannot be trusted.
func (m *machine) blame(ctx context.Context, err error) error {
	h, ok := m.Machine.(vmm.HostFault)
	if !ok || ctx.Err() != nil {
		return err
	}
	if fault := h.HostFault(); fault != nil {
		return &failure{jobs.HostResources, fmt.Errorf("the host failed the machine: %w", fault)}
	}
	return err
}
