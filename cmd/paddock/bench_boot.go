package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/vmm"
)

func benchBoot() *cobra.Command {
	c := &cobra.Command{
		Use: "boot", Short: "Boot a machine from its kernel until the agent answers, beside what the kernel says of its own boot", Args: cobra.NoArgs,
		Long: "Each machine is booted from nothing, as a template is made, in a jail. Answer is from the VMM's start to the agent's greeting; kernel is\n" +
			"the kernel's own time until it runs the first program, by its log. The rest is the VMM's start, the firmware, the kernel's unpacking, the\n" +
			"agent's bringing up the system, and the way to it.",
	}
	n := c.Flags().IntP("machines", "n", 10, "machines, one after the other")
	inLab(c, func(ctx context.Context, l *lab, r *benchReport, _ string) error {
		r.Settings["machines"] = *n
		for range *n {
			if err := l.boot(ctx, r); err != nil {
				return err
			}
		}
		r.Figures["ratio of p50s"] = percentile(r.Samples["answer ms"], 50) / percentile(r.Samples["kernel ms"], 50)
		return nil
	})
	return c
}

// boot measures one machine.
func (l *lab) boot(ctx context.Context, r *benchReport) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	at := time.Now()
	m, err := l.driver.Boot(ctx, l.template.Boot, vmm.Attach{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	conn, err := m.DialGuest(ctx)
	if err != nil {
		return err
	}
	a, err := client.Connect(ctx, conn)
	if err != nil {
		return fmt.Errorf("%w; console: %q", err, m.Console())
	}
	defer a.Close() //nolint:errcheck // never fails
	r.add("answer ms", time.Since(at))
	kernel, err := ownBoot(ctx, a)
	if err == nil {
		r.add("kernel ms", kernel)
	}
	return err
}

// firstProgram is the kernel's line before it runs /init (init/main.c, run_init_process).
var firstProgram = regexp.MustCompile(`\[ *([0-9]+\.[0-9]+)\] Run \S+ as init process`)

// ownBoot is how long the kernel had run when it ran the first program.
func ownBoot(ctx context.Context, a *client.Client) (time.Duration, error) {
	var log bytes.Buffer
	exit, err := a.Exec(ctx, wire.Exec{ID: "log", Argv: []string{"dmesg"}, Env: []string{"PATH=/usr/bin:/bin"}, User: "root"}, client.Streams{Stdout: &log})
	if err != nil {
		return 0, err
	}
	line := firstProgram.FindSubmatch(log.Bytes())
	if exit.Code != 0 || line == nil {
		return 0, fmt.Errorf("the kernel's log, of %d bytes, does not say when it ran the first program (dmesg ended with %d)", log.Len(), exit.Code)
	}
	seconds, err := strconv.ParseFloat(string(line[1]), 64)
	return time.Duration(seconds * float64(time.Second)), err
}
