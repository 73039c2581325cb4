package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/jobs"
)

func resizeCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "resize JOB", Short: "Give a running job's machine more, or less again", Args: arguments(1, 1),
		Long: "Gives the machine of a job that runs another number of processors or another amount of memory, from what its spec's resources\n" +
			"say to its headroom. What its guest does not give up, it keeps: that is an error, and the machine has what it had.",
		Example: "  paddock resize 01a21… --vcpus 4 --memory-mib 1024",
	}
	flags := addClientFlags(c)
	completeJobs(c, flags, func(s jobs.State) bool { return s == jobs.StateRunning })
	out := outputFlag(c)
	var r jobs.ResizeRequest
	c.Flags().IntVar(&r.VCPUs, "vcpus", 0, "processors that it shall have (as many as it has)")
	c.Flags().IntVar(&r.MemoryMiB, "memory-mib", 0, "memory that it shall have, in MiB (as much as it has); rounded up to what can be plugged")
	c.RunE = func(c *cobra.Command, args []string) error {
		if r == (jobs.ResizeRequest{}) {
			return errors.New("to what size? --vcpus N, --memory-mib N, or both")
		}
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		now, err := cl.Resize(c.Context(), args[0], r)
		if err != nil {
			return hint(err)
		}
		return show(c.OutOrStdout(), *out, now, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%d processors, %d MiB\n", now.VCPUs, now.MemoryMiB)
			return err
		})
	}
	return c
}
