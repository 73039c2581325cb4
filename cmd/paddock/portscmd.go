package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

func portsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "ports JOB", Short: "Show where a running job's ports can be reached", Args: arguments(1, 1),
		Long: "Shows where the ports that a job's spec lists (network.ports) can be reached while it runs: addresses and URLs of its worker's host.\n" +
			"Where there are none, it says why; that is no error.",
	}
	flags := addClientFlags(c)
	completeJobs(c, flags, func(s jobs.State) bool { return s == jobs.StateRunning })
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		ports, err := cl.Ports(c.Context(), args[0])
		if err != nil {
			return hint(err)
		}
		if len(ports) == 0 {
			if err := sayNoPorts(c.Context(), cl, args[0]); err != nil {
				return hint(err)
			}
			ports = []jobs.Port{} // a list, to whoever reads it
		}
		return show(c.OutOrStdout(), *out, ports, func(w io.Writer) error { return printPorts(w, ports) })
	}
	return c
}

func printPorts(to io.Writer, ports []jobs.Port) error {
	if len(ports) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PORT\tADDRESS\tURL")
	for _, p := range ports {
		url := p.URL
		if url == "" {
			url = "-"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\n", p.Guest, p.Host, url)
	}
	return w.Flush()
}

// sayNoPorts says why none can be reached.
func sayNoPorts(ctx context.Context, cl *client.Client, id string) error {
	j, err := cl.Get(ctx, id)
	if err != nil {
		return err
	}
	switch {
	case j.State.Terminal():
		say("job %s has ended: no port of it can be reached", id)
	case j.Spec == nil || len(j.Spec.Network.Ports) == 0:
		say("job %s has no ports: its spec lists none in network.ports", id)
	case j.State == jobs.StateQueued:
		say("job %s waits for a machine: no port of it can be reached yet", id)
	default:
		say("job %s has not told of its ports: it has just begun, or what it told is not kept any more", id)
	}
	return nil
}
