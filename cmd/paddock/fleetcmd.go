package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

func fleetCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "fleet", Short: "Show workers, and keep jobs from some of them",
		Long: "Shows the workers of a fleet, and takes some out of it and in again: for an upgrade, drain a worker, start it anew, and uncordon it.\n" +
			"What is said of a worker holds, whatever is started anew, until something else is said.",
	}
	c.AddCommand(fleetLs(), fleetDrain(),
		fleetOne("cordon", "Give a worker no more jobs; it ends what it has", (*client.Client).Cordon),
		fleetOne("uncordon", "Give a worker jobs again, also after a drain", (*client.Client).Uncordon),
		fleetOne("rm", "Forget a worker that is gone; what it still had is given to others", (*client.Client).RemoveWorker))
	return c
}

func printWorkers(to io.Writer, list []jobs.WorkerInfo) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WORKER\tSTATE\tPOOL\tJOBS\tVCPUS\tMEMORY\tDRIVER\tVERSION\tSEEN\tLABELS")
	for _, i := range list {
		var labels []string
		if l := jobs.Required(i.Labels); l != "" {
			labels = strings.Split(l, ",")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d MiB\t%s\t%s\t%s ago\t%s\n", i.Name, i.State, i.Pool, i.Running, i.Capacity.VCPUs, i.Capacity.MemoryMiB, i.Driver,
			i.Version, time.Since(i.SeenAt).Round(time.Second), strings.Join(labels, " "))
	}
	return w.Flush()
}

func fleetLs() *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: "List workers", Args: arguments(0, 0)}
	flags := addClientFlags(c)
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		list, err := cl.Workers(c.Context())
		if err != nil {
			return err
		}
		return show(c.OutOrStdout(), *out, list, func(w io.Writer) error { return printWorkers(w, list) })
	}
	return c
}

// fleetOne is a command about one worker, or several.
func fleetOne(use, short string, do func(*client.Client, context.Context, string) ([]jobs.WorkerInfo, error)) *cobra.Command {
	c := &cobra.Command{Use: use + " WORKER…", Short: short, Args: arguments(1, -1)}
	flags := addClientFlags(c)
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		return aboutWorkers(c, flags, *out, args, do)
	}
	return c
}

// aboutWorkers does something to each worker, and shows how they are then.
func aboutWorkers(c *cobra.Command, flags clientFlags, out string, names []string, do func(*client.Client, context.Context, string) ([]jobs.WorkerInfo, error)) error {
	cl, err := flags.connect()
	if err != nil {
		return err
	}
	defer cl.Close()
	all := []jobs.WorkerInfo{}
	for _, name := range names {
		list, err := do(cl, c.Context(), name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, list...)
	}
	return show(c.OutOrStdout(), out, all, func(w io.Writer) error { return printWorkers(w, all) })
}

func fleetDrain() *cobra.Command {
	c := &cobra.Command{
		Use: "drain WORKER…", Short: "Give a worker no more jobs, and wait until it has none", Args: arguments(1, -1),
		Example: "  paddock fleet drain worker-1 --within 10m\n  systemctl restart paddock-worker && paddock fleet uncordon worker-1",
	}
	flags := addClientFlags(c)
	out := outputFlag(c)
	within := c.Flags().Duration("within", 0, "give what it has not ended by then to others, at no cost to their retries; 0 lets it end what it has")
	wait := c.Flags().Bool("wait", true, "wait until the workers have no jobs")
	c.RunE = func(c *cobra.Command, args []string) error {
		if *within < 0 {
			return fmt.Errorf("--within %v: want 0 or more", *within)
		}
		return aboutWorkers(c, flags, *out, args, func(cl *client.Client, ctx context.Context, name string) ([]jobs.WorkerInfo, error) {
			list, err := cl.Drain(ctx, name, *within)
			for err == nil && *wait && len(list) == 1 && list[0].State == jobs.FleetDraining {
				select {
				case <-ctx.Done():
					return list, context.Cause(ctx)
				case <-time.After(drainLooks):
				}
				list, err = workerNamed(ctx, cl, name)
			}
			return list, err
		})
	}
	return c
}

// drainLooks is how often a worker that is drained is looked at.
const drainLooks = 500 * time.Millisecond

func workerNamed(ctx context.Context, cl *client.Client, name string) ([]jobs.WorkerInfo, error) {
	all, err := cl.Workers(ctx)
	for _, i := range all {
		if i.Name == name {
			return []jobs.WorkerInfo{i}, err
		}
	}
	return nil, err
}
