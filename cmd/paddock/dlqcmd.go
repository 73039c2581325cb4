package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

func dlqCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "dlq", Short: "Look after dead jobs: those that Paddock could not run",
		Long: "A job is dead when every attempt that it may have was ended by Paddock's own failure, or when it has ended machines on several workers.\n" +
			"It stays in the dead-letter queue until somebody runs it again or drops it. `show` tells what became of each attempt.",
	}
	c.AddCommand(dlqLs(), dlqShow(),
		dlqEach("redrive", "Run dead jobs again: a new job each, of the same spec", (*client.Client).Redrive, func(w io.Writer, _ string, j jobs.Job) {
			fmt.Fprintln(w, j.ID)
		}),
		dlqEach("drop", "Take dead jobs out of the queue; their records stay", (*client.Client).DropDead, func(io.Writer, string, jobs.Job) {}))
	return c
}

func dlqLs() *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: "List dead jobs, newest first", Args: arguments(0, 0)}
	flags := addClientFlags(c)
	out := outputFlag(c)
	limit := c.Flags().IntP("limit", "n", 50, "how many")
	before := c.Flags().String("before", "", "go on after this id")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		r, err := cl.List(c.Context(), jobs.ListRequest{States: []jobs.State{jobs.StateDead}, Limit: *limit, Before: *before})
		if err != nil {
			return err
		}
		if r.Next != "" {
			defer say("more with --before %s", r.Next)
		}
		return show(c.OutOrStdout(), *out, r, func(to io.Writer) error {
			w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "JOB\tENDING\tIMAGE\tATTEMPTS\tENDED\tREASON")
			for _, j := range r.Jobs {
				if j.Result != nil {
					fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%.80s\n", j.ID, j.Result.Ending, j.Image, j.Attempt, j.EndedAt.Local().Format(time.DateTime), j.Result.Reason)
				}
			}
			return w.Flush()
		})
	}
	return c
}

func dlqShow() *cobra.Command {
	c := &cobra.Command{Use: "show JOB", Short: "Show what became of each attempt at a job", Args: arguments(1, 1)}
	flags := addClientFlags(c)
	completeJobs(c, flags, func(s jobs.State) bool { return s == jobs.StateDead })
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		j, err := cl.Get(c.Context(), args[0])
		if err != nil {
			return hint(err)
		}
		return show(c.OutOrStdout(), *out, j, func(to io.Writer) error {
			w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ATTEMPT\tWORKER\tENDING\tTOOK\tREASON")
			for _, a := range j.Attempts {
				fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", a.Attempt, a.Worker, a.Ending, a.EndedAt.Sub(a.LeasedAt).Round(time.Millisecond), a.Reason)
			}
			if r := j.Result; r != nil {
				took := ""
				if !j.LeasedAt.IsZero() {
					took = j.EndedAt.Sub(j.LeasedAt).Round(time.Millisecond).String()
				}
				fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", j.Attempt, j.Worker, r.Ending, took, r.Reason)
			}
			return w.Flush()
		})
	}
	return c
}

// dlqEach is a command that does something to each of several dead jobs.
func dlqEach(use, short string, do func(*client.Client, context.Context, string) (jobs.Job, error), tell func(io.Writer, string, jobs.Job)) *cobra.Command {
	c := &cobra.Command{Use: use + " JOB…", Short: short, Args: arguments(1, -1)}
	flags := addClientFlags(c)
	completeJobs(c, flags, func(s jobs.State) bool { return s == jobs.StateDead })
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		list := []jobs.Job{}
		var errs []error
		for _, id := range args {
			j, err := do(cl, c.Context(), id)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", id, hint(err)))
				continue
			}
			list = append(list, j)
		}
		err = show(c.OutOrStdout(), *out, list, func(w io.Writer) error {
			for _, j := range list {
				tell(w, j.ID, j)
			}
			return nil
		})
		return errors.Join(append(errs, err)...)
	}
	return c
}
