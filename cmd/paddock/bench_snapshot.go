package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
)

func benchSnapshot() *cobra.Command {
	c := &cobra.Command{
		Use: "snapshot", Short: "Keep the state of machines that have written memory and disk, and restore it", Args: cobra.NoArgs,
		Long: "Each round clones a machine, has it write as much memory and disk as is said, and makes three snapshots: a difference to the template, a\n" +
			"difference to that after a second's pause, and a whole one. Then machines are restored in turn from the template and from the second.",
	}
	rounds := c.Flags().Int("rounds", 10, "machines")
	written := c.Flags().Int("written", 16, "MiB that each writes, to memory and to disk")
	inLab(c, func(ctx context.Context, l *lab, r *benchReport, imageDir string) error {
		r.Settings["rounds"], r.Settings["written MiB"], r.Settings["memory MiB"] = *rounds, *written, l.template.Boot.MemoryMiB
		return l.snapshots(ctx, r, imageDir, *rounds, *written)
	})
	return c
}

// snapshots makes them in the store, and removes them.
func (l *lab) snapshots(ctx context.Context, r *benchReport, imageDir string, rounds, written int) (err error) {
	store, err := images.Open(imageDir)
	if err != nil {
		return err
	}
	n, err := store.Snapshots()
	if err != nil {
		return err
	}
	for i := range rounds {
		if err := l.snapshotRound(ctx, r, n, i, written); err != nil {
			return err
		}
	}
	return nil
}

func (l *lab) snapshotRound(ctx context.Context, r *benchReport, n *images.Snapshots, i, written int) (err error) {
	m, a, err := l.introduced(ctx, l.template, fmt.Sprint("bench-", i))
	if err != nil {
		return err
	}
	defer m.Close() //nolint:errcheck // it has served
	defer a.Close() //nolint:errcheck // never fails
	if err := write(ctx, a, written); err != nil {
		return err
	}
	var made []string
	defer func() {
		for j := len(made) - 1; j >= 0; j-- { // children first
			err = errors.Join(err, n.Remove(ctx, made[j]))
		}
	}()
	last := ""
	for _, kind := range []string{"first", "second", "whole"} {
		parent := jobs.ParentAuto
		if kind == "whole" {
			parent = jobs.ParentNone
		}
		at := time.Now()
		s, err := n.Create(ctx, m, l.template, l.caps, jobs.SnapshotOrigin{Tenant: "bench", Last: last}, jobs.SnapshotRequest{Parent: parent})
		if err != nil {
			return err
		}
		r.add(kind+" made ms", time.Since(at))
		r.Samples[kind+" paused ms"] = append(r.Samples[kind+" paused ms"], s.PausedMS)
		r.Samples[kind+" stored MiB"] = append(r.Samples[kind+" stored MiB"], float64(s.StoredBytes)/(1<<20))
		made = append(made, s.ID)
		if kind == "second" {
			last = ""
		} else {
			last = s.ID
			if err := a.Ping(ctx); err != nil { // it runs on
				return err
			}
		}
		time.Sleep(time.Second) // as jobs do: some pages change
	}
	return l.restored(ctx, r, n, made[1])
}

// restored restores a machine of the template and one of a snapshot.
func (l *lab) restored(ctx context.Context, r *benchReport, n *images.Snapshots, id string) error {
	at := time.Now()
	t, release, err := n.Open(ctx, id, l.driver.Name(), l.caps)
	if err != nil {
		return err
	}
	defer release()
	r.add("snapshot opened ms", time.Since(at))
	for name, t := range map[string]vmm.Template{"template": l.template, "snapshot": t} {
		p, err := l.driver.Prepare(ctx, t, vmm.Attach{})
		if err != nil {
			return err
		}
		at := time.Now()
		m, err := p.Restore(ctx)
		if err != nil {
			return err
		}
		r.add("restore of "+name+" ms", time.Since(at))
		conn, err := m.DialGuest(ctx)
		if err == nil {
			err = told(ctx, conn, r, "of "+name+" ", at)
		}
		if err = errors.Join(err, m.Close()); err != nil {
			return err
		}
	}
	if d, ok := l.driver.(vmm.Releaser); ok {
		return d.Release(t.Dir)
	}
	return nil
}

// introduced gives a machine of a template that is one of its own.
func (l *lab) introduced(ctx context.Context, t vmm.Template, name string) (vmm.Machine, *client.Client, error) {
	p, err := l.driver.Prepare(ctx, t, vmm.Attach{})
	if err != nil {
		return nil, nil, err
	}
	m, err := p.Restore(ctx)
	if err != nil {
		return nil, nil, err
	}
	conn, err := m.DialGuest(ctx)
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	a, err := introduceMachine(ctx, conn, name)
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	return m, a, nil
}

// write has a machine write what cannot be told from what a program would: neither zero nor what was there.
func write(ctx context.Context, a *client.Client, mib int) error {
	line := fmt.Sprintf("head -c %d /dev/urandom > /dev/shm/x && cp /dev/shm/x /work/x && sync", mib<<20)
	exit, err := a.Exec(ctx, wire.Exec{
		ID: "write", Argv: []string{"/bin/sh", "-c", line}, Env: []string{"PATH=/usr/bin:/bin"}, User: "sandbox",
	}, client.Streams{Stdout: io.Discard, Stderr: io.Discard})
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("%q ended with %d", line, exit.Code)
	}
	return err
}
