package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/jobs"
)

func scheduleCommand() *cobra.Command {
	c := &cobra.Command{Use: "schedule", Short: "Bring in a job again and again, at times that a cron line names"}
	c.AddCommand(schedulePut(), scheduleLs(), scheduleRm())
	return c
}

func schedulePut() *cobra.Command {
	c := &cobra.Command{
		Use: "put NAME", Short: "Make a schedule, or change the one of that name", Args: arguments(1, 1),
		Example: "  paddock schedule put nightly --cron '0 3 * * *' --time-zone Europe/Berlin -f job.yaml",
	}
	flags := addClientFlags(c)
	out := outputFlag(c)
	var s jobs.Schedule
	file := c.Flags().StringP("file", "f", "", "the spec's file, - for standard input")
	c.Flags().StringVar(&s.Cron, "cron", "", "when: minute, hour, day, month, weekday; or @hourly, @daily, @weekly, @monthly, @every 90s")
	c.Flags().StringVar(&s.TimeZone, "time-zone", "", "an IANA name (UTC)")
	c.Flags().BoolVar(&s.Paused, "paused", false, "bring in nothing, until it is put again without")
	addChoice(c, "overlap", "", jobs.OverlapSkip, "when it is time and the last job has not ended", jobs.OverlapSkip, jobs.OverlapAllow)
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		s.Name = args[0]
		s.Overlap, _ = c.Flags().GetString("overlap")
		if s.Spec, err = readSpec(*file, c.InOrStdin()); err != nil {
			return err
		}
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		now, err := cl.PutSchedule(c.Context(), s)
		if err != nil {
			return err
		}
		return show(c.OutOrStdout(), *out, now, func(w io.Writer) error { return printSchedules(w, []jobs.Schedule{now}) })
	}
	return c
}

func printSchedules(to io.Writer, list []jobs.Schedule) error {
	at := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.Local().Format(time.DateTime)
	}
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SCHEDULE\tCRON\tNEXT\tLAST\tLAST JOB\tMISSED\tERROR")
	for _, s := range list {
		next, wrong := at(s.NextAt), ""
		if s.Paused {
			next = "paused"
		}
		if s.LastError != nil {
			wrong = s.LastError.Error()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%.80s\n", s.Name, s.Cron, next, at(s.LastAt), s.LastJob, s.Missed, wrong)
	}
	return w.Flush()
}

func scheduleLs() *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: "List schedules", Args: arguments(0, 0)}
	flags := addClientFlags(c)
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		list, err := cl.Schedules(c.Context())
		if err != nil {
			return err
		}
		return show(c.OutOrStdout(), *out, list, func(w io.Writer) error { return printSchedules(w, list) })
	}
	return c
}

func scheduleRm() *cobra.Command {
	c := &cobra.Command{Use: "rm NAME…", Short: "Take schedules away; the jobs that they brought in stay", Args: arguments(1, -1)}
	flags := addClientFlags(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		for _, name := range args {
			if err := cl.DeleteSchedule(c.Context(), name); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}
